"""Every network with every kind of condition: what must hold however conditions are combined, missing or dropped."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from tests.networks.helpers import generator, parameters_without_gradient, randomise
from undiffuse.networks import DiTOptions, MLPOptions, TransformerOptions, UNetOptions, build_network
from undiffuse.networks.attention import math_attention
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.hooks import capture
from undiffuse.spec import ConditionSpec, DataSpec

LENGTH, BATCH = 6, 4
COLOURS = ConditionSpec(kind="label", classes=("red", "green"))
CAPTION = ConditionSpec(kind="text", length=LENGTH)
CLIP = ConditionSpec(kind="embedding", length=3, width=5)
POSE = ConditionSpec(kind="vector", width=2, null="zero")
KINDS = {"colour": COLOURS, "caption": CAPTION, "clip": CLIP, "pose": POSE}
MAPS = {"depth": ConditionSpec(kind="map", width=1), "mask": ConditionSpec(kind="map", width=2, null="zero")}
SHAPES = {
    "image": (2, 4, 6),
    "video": (3, 1, 4, 4),
    "volume": (1, 4, 4, 4),
    "signal": (2, 8),
    "vector": (3,),
    "tokens": (5,),
}
UNET = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
TEMPORAL = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, temporal=True)
DIT = DiTOptions(width=16, depth=2, heads=2, patch=2)
CASES = [
    ("image", UNET),
    ("video", TEMPORAL),
    ("volume", UNET),
    ("signal", UNET),
    ("image", DIT),
    ("video", DIT),
    ("vector", MLPOptions(width=16, depth=1)),
    ("tokens", TransformerOptions(width=16, depth=2, heads=2, time_dependent=True)),
]
every_network = pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{k}-{o.kind}" for k, o in CASES])


def spec_of(kind: str) -> DataSpec:
    maps = MAPS if kind not in ("vector", "tokens") else {}
    vocabulary = ("a", "b", "c") if kind == "tokens" else ()
    return DataSpec(kind=kind, shape=SHAPES[kind], vocabulary=vocabulary, classes=("x", "y", "z"), cond=KINDS | maps)


def built(kind: str, options) -> tuple[Backbone, DataSpec]:
    network = build_network(options, spec_of(kind))
    randomise(network)
    return network, spec_of(kind)


def given(spec: DataSpec) -> dict[str, torch.Tensor]:
    """One row of each condition for BATCH items; captions and embeddings of different lengths, the last ones empty."""
    draws = generator(7)
    caption = torch.randint(97, 123, (BATCH, LENGTH), generator=draws)
    clip = torch.randn(BATCH, 3, 5, generator=draws)
    for row, (letters, rows) in enumerate(zip((6, 3, 1, 0), (3, 2, 1, 0), strict=True)):
        caption[row, letters:] = -1
        clip[row, rows:] = 0.0
    cond = {
        "label": torch.tensor([0, 2, 1, 0]),
        "colour": torch.tensor([1, 0, 1, 0]),
        "caption": caption,
        "clip": clip,
        "pose": torch.randn(BATCH, 2, generator=draws),
    }
    grid = spec.shape[spec.channel_axis + 1 :]
    maps = {"depth": torch.randn(BATCH, 1, *grid, generator=draws), "mask": torch.ones(BATCH, 2, *grid)}
    return {name: rows for name, rows in (cond | maps).items() if name in spec.conditions}


def data(spec: DataSpec, batch: int = BATCH) -> torch.Tensor:
    if spec.is_discrete:
        return torch.randint(0, 3, (batch, *spec.shape), generator=generator(1))
    return torch.randn(batch, *spec.shape, generator=generator(1))


def shapes(embedded: Embedded) -> dict[str, tuple[int, ...]]:
    return {name: tuple(part.shape) for name, part in vars(embedded).items() if isinstance(part, torch.Tensor)}


@every_network
def test_the_structure_is_the_same_whatever_is_missing(kind, options):
    network, spec = built(kind, options)
    cond, x, level = given(spec), data(spec), torch.zeros(BATCH)
    whole = network.conditioners.embed(cond, BATCH)
    wanted, outputs = shapes(whole), []
    for count in (0, 1, 2, len(cond) - 1, len(cond)):
        for kept in combinations(cond, count):
            embedded = network.conditioners.embed({name: cond[name] for name in kept}, BATCH)
            found = shapes(embedded)
            if "maps" in found:  # where no map is given, size 1 stands for every size
                found["maps"] = wanted["maps"] if {*kept} & {*MAPS} else (*found["maps"][:2], *wanted["maps"][2:])
            assert found == wanted
            joined = Embedded.cat([whole, embedded])
            assert shapes(joined) == {name: (2 * BATCH, *shape[1:]) for name, shape in wanted.items()}
            if count < 2:
                outputs.append(network(x, level, embedded)["out"])
    assert all(output.isfinite().all() for output in outputs)
    for first, second in combinations(outputs, 2):  # each condition alone says something else
        assert not torch.allclose(first, second, atol=1e-5)


@every_network
def test_dropped_rows_are_those_of_a_missing_condition(kind, options):
    network, spec = built(kind, options)
    cond, x, level = given(spec), data(spec), torch.zeros(BATCH)
    drop = torch.tensor([True, False, True, False])
    for name in cond:
        rest = {other: rows for other, rows in cond.items() if other != name}
        mixed = network(x, level, network.conditioners.embed(cond, BATCH, {name: drop}))["out"]
        missing = network(x, level, network.conditioners.embed(rest, BATCH))["out"]
        whole = network(x, level, network.conditioners.embed(cond, BATCH))["out"]
        assert torch.equal(mixed[drop], missing[drop])
        assert torch.equal(mixed[~drop], whole[~drop])
    nothing = network.conditioners.embed(cond, BATCH, {name: torch.ones(BATCH, dtype=torch.bool) for name in cond})
    assert torch.equal(network(x, level, nothing)["out"], network(x, level)["out"])


@every_network
def test_zeros_are_the_null_of_what_is_never_dropped(kind, options):
    network, spec = built(kind, options)
    x, level = data(spec), torch.zeros(BATCH)
    zeros = {name: torch.zeros_like(rows) for name, rows in given(spec).items() if name in ("pose", "mask")}
    assert spec.kept_conditions == zeros.keys()
    assert torch.equal(network(x, level, network.conditioners.embed(zeros, BATCH))["out"], network(x, level)["out"])


@every_network
def test_padding_changes_no_bit(kind, options):
    network, spec = built(kind, options)
    cond, x, level = given(spec), data(spec), torch.zeros(BATCH)
    embedded = network.conditioners.embed(cond, BATCH)
    whole = network(x, level, embedded)["out"]
    other = cond | {"caption": torch.where(cond["caption"] < 0, -9, cond["caption"])}
    assert torch.equal(network(x, level, network.conditioners.embed(other, BATCH))["out"], whole)
    short = {"caption": cond["caption"][1:, :3], "clip": cond["clip"][1:, :2]}  # filled up by the conditioner
    rest = {name: rows[1:] for name, rows in cond.items()}
    cut, filled = (network.conditioners.embed(rows, BATCH - 1) for rows in (rest | short, rest))
    assert torch.equal(network(x[1:], level[1:], cut)["out"], network(x[1:], level[1:], filled)["out"])
    if embedded.tokens is not None:
        noise = torch.randn(embedded.tokens.shape, generator=generator(9))
        dirty = torch.where(embedded.mask[..., None], embedded.tokens, noise)
        replaced = Embedded(embedded.vector, dirty, embedded.mask, embedded.maps)
        assert torch.equal(network(x, level, replaced)["out"], whole)


@every_network
def test_rows_are_independent(kind, options):
    network, spec = built(kind, options)
    x, level, order = data(spec), torch.linspace(-1, 1, BATCH), torch.tensor([2, 0, 3, 1])
    cond = given(spec)
    whole = network(x, level, network.conditioners.embed(cond, BATCH))["out"]
    turned = network.conditioners.embed({name: rows[order] for name, rows in cond.items()}, BATCH)
    torch.testing.assert_close(network(x[order], level[order], turned)["out"], whole[order], rtol=1e-4, atol=1e-5)


@every_network
def test_gradient_reaches_every_parameter(kind, options):
    network, spec = built(kind, options)
    names = spec.conditions.keys() - spec.kept_conditions
    drop = {name: torch.tensor([True, False, False, False]) for name in names}
    cond = given(spec) | {"label": torch.tensor([0, 0, 1, 2]), "colour": torch.tensor([0, 0, 1, 1])}
    cond["caption"] = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH)
    level = torch.randn(BATCH, 3, generator=generator(2)) if kind == "vector" else torch.rand(BATCH)
    network(data(spec), level, network.conditioners.embed(cond, BATCH, drop))["out"].square().sum().backward()
    assert parameters_without_gradient(network) in ([], ["embedding.weight"])
    table = network.conditioners["caption"].table.weight.grad.abs().sum(1) > 0
    assert table[6:24].all() and table[256] and not table[24:256].any()


@pytest.mark.parametrize(("kind", "options"), [c for c in CASES if c[0] not in ("tokens", "vector")], ids=str)
def test_forward_mode_derivative_equals_finite_differences(kind, options):
    network, spec = built(kind, options)
    network.double()
    cond = network.conditioners.embed(given(spec), BATCH)
    x, level = data(spec).double(), torch.linspace(-1, 1, BATCH).double()
    tangent = torch.randn(x.shape, generator=generator(4), dtype=torch.float64)
    run = lambda y: network(y, level, cond)["out"]  # noqa: E731
    with math_attention():
        _, jvp = torch.func.jvp(run, (x,), (tangent,))
    step = 1e-5  # central differences: error O(step^2) + rounding 1e-16 / step
    difference = (run(x + step * tangent) - run(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-7)


def test_the_derivative_by_the_caption_s_tokens_equals_finite_differences():
    network, spec = built("image", UNET)
    network.double()
    embedded = network.conditioners.embed(given(spec), BATCH)
    x, level, tokens = data(spec).double(), torch.zeros(BATCH).double(), embedded.tokens.detach()
    tangent = torch.randn(tokens.shape, generator=generator(4), dtype=torch.float64)
    run = lambda y: network(x, level, Embedded(embedded.vector, y, embedded.mask, embedded.maps))["out"]  # noqa: E731
    with math_attention():
        _, jvp = torch.func.jvp(run, (tokens,), (tangent,))
    difference = (run(tokens + 1e-5 * tangent) - run(tokens - 1e-5 * tangent)) / 2e-5
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-7)
    assert jvp.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "options"), [("image", UNET), ("image", DIT), ("tokens", CASES[-1][1])], ids=["unet", "dit", "transformer"]
)
def test_a_fresh_network_does_not_listen_and_then_learns_to(kind, options):
    """Cross-attention starts as the identity, but not as a dead one: one of its layers has a gradient at once."""
    vocabulary = ("a", "b", "c") if kind == "tokens" else ()
    spec = DataSpec(kind=kind, shape=SHAPES[kind], vocabulary=vocabulary, cond={"a": CAPTION})
    network = build_network(options, spec)
    out = network.leave
    torch.nn.init.normal_(out.weight, generator=generator())
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1, generator=generator())
    x, level = data(spec, 2), torch.zeros(2)
    first, second = (network.conditioners.embed({"a": torch.full((2, LENGTH), letter)}, 2) for letter in (97, 105))
    same_vector = Embedded(first.vector, second.tokens, second.mask)
    assert torch.equal(network(x, level, first)["out"], network(x, level, same_vector)["out"])
    network(x, level, first)["out"].square().sum().backward()
    crossing = {name: p.grad for name, p in network.named_parameters() if "cross" in name and p.grad is not None}
    assert any(grad.abs().max() > 0 for grad in crossing.values())


def test_the_weights_of_cross_attention_can_be_read():
    network, spec = built("image", UNET)
    with capture(network, ["mid.cross", "mid.attention"]) as taken:
        network(data(spec), torch.zeros(BATCH), network.conditioners.embed(given(spec), BATCH))
    weights = taken["mid.cross"]
    assert weights.shape == (BATCH, 2, 2 * 3, 1 + LENGTH + 1 + 3)  # a null in front of either sequence
    assert taken["mid.attention"].shape == (BATCH, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, 2, 6))
    assert (weights[1, ..., 4:7] == 0).all() and (weights[1, ..., :4] > 0).all()


def test_maps_fit_any_size_and_say_so_where_they_do_not():
    network = build_network(UNET, DataSpec(kind="image", shape=(1, 4, 4), cond={"depth": MAPS["depth"]}))
    randomise(network)
    x, level = torch.randn(2, 1, 6, 10, generator=generator()), torch.zeros(2)
    embed = network.conditioners.embed
    constant = embed({"depth": torch.full((2, 1, 6, 10), 0.5)}, 2)
    same = embed({"depth": torch.full((2, 1, 1, 1), 0.5)}, 2)
    assert torch.equal(network(x, level, constant)["out"], network(x, level, same)["out"])
    assert network(x, level)["out"].shape == x.shape
    with pytest.raises(ValueError, match=r"a map has shape \(2, 1, 4, 4\); expected \(2, 1, 6, 10\)"):
        network(x, level, embed({"depth": torch.zeros(2, 1, 4, 4)}, 2))


@pytest.mark.parametrize("options", [UNET, DIT], ids=["unet", "dit"])
def test_a_map_of_a_video_may_be_of_every_frame(options):
    network = build_network(options, DataSpec(kind="video", shape=(3, 1, 4, 4), cond=MAPS))
    randomise(network)
    embed, still = network.conditioners.embed, torch.randn(2, 1, 4, 4, generator=generator())
    x, level = torch.randn(2, 3, 1, 4, 4, generator=generator(1)), torch.zeros(2)
    repeated = still[:, None].expand(2, 3, 1, 4, 4)
    shared = network(x, level, embed({"depth": still}, 2))["out"]
    assert torch.equal(network(x, level, embed({"depth": repeated}, 2))["out"], shared)
    moving = torch.cat([repeated[:, :2], 1 - repeated[:, 2:]], 1)
    mask = torch.ones(2, 2, 4, 4)
    assert not torch.allclose(network(x, level, embed({"depth": moving, "mask": mask}, 2))["out"], shared)
    joined = Embedded.cat([embed({"depth": still}, 2), embed({"depth": moving}, 2), embed(None, 2)])
    assert joined.maps.shape == (6, 3, 3, 4, 4)
    with pytest.raises(ValueError, match="have frames, but the data"):
        network(x[:, 0], level, embed({"depth": moving}, 2))


@pytest.mark.parametrize("kind", ["vector", "tokens"])
def test_data_without_a_grid_take_no_maps(kind):
    options = {"vector": MLPOptions(), "tokens": TransformerOptions()}[kind]
    spec = DataSpec(kind=kind, shape=(3,), vocabulary=("a", "b") if kind == "tokens" else (), cond=MAPS)
    with pytest.raises(ValueError, match="'depth' is a map, but these data have no spatial axes"):
        build_network(options, spec)


def test_an_mlp_reads_the_summary_alone():
    network, _ = built("vector", MLPOptions(width=16, depth=1))
    assert network.conditioners.fields == {"vector"}
    assert network.conditioners.embed(None, 2).tokens is None

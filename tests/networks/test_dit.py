from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.networks.helpers import generator, parameters_without_gradient, randomise
from undiffuse.networks import DiT, DiTOptions, build_network, capture
from undiffuse.networks.attention import math_attention
from undiffuse.spec import ConditionSpec, DataSpec

SMALL = DiTOptions(width=16, depth=2, heads=2)
SHAPES = {"signal": (2, 8), "image": (3, 4, 6), "volume": (1, 4, 2, 6), "video": (3, 2, 4, 6)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def build(kind: str = "image", options: DiTOptions = SMALL, scale: float = 0.2, **kwargs) -> DiT:
    spec = DataSpec(kind=kind, shape=SHAPES[kind], **kwargs)
    network = build_network(options, spec)
    assert isinstance(network, DiT)
    return randomise(network, scale=scale).eval() if scale else network.eval()


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_keeps_every_kind_and_starts_at_zero(kind, positions):
    options = replace(SMALL, positions=positions)
    x = draw(2, *SHAPES[kind])
    assert (build(kind, options, scale=0.0)(x, torch.zeros(2))["out"] == 0).all()
    out = build(kind, options)(x, torch.zeros(2))["out"]
    assert out.shape == x.shape and out.isfinite().all() and out.abs().max() > 1e-3


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_any_patch_that_divides_the_sizes(patch):
    spec = DataSpec(kind="image", shape=(1, 6, 12))
    network = randomise(build_network(replace(SMALL, patch=patch), spec))
    assert network(draw(2, 1, 6, 12), torch.zeros(2))["out"].shape == (2, 1, 6, 12)


def test_rotary_positions_allow_other_sizes_and_learned_ones_refuse_them():
    x, level = draw(2, 3, 8, 2), torch.zeros(2)
    assert build()(x, level)["out"].shape == x.shape
    with pytest.raises(ValueError, match=r"sizes \(8, 2\) are not those of the training, \(4, 6\)"):
        build(options=replace(SMALL, positions="learned"))(x, level)


def test_positions_matter():
    for positions in ("rope", "learned"):
        network, x, level = build(options=replace(SMALL, positions=positions)), draw(1, 3, 4, 6), torch.zeros(1)
        moved = network(x.roll(2, dims=3), level)["out"].roll(-2, dims=3)
        assert not torch.allclose(moved, network(x, level)["out"], atol=1e-4), positions


def test_permuting_the_batch_permutes_the_output():
    network, x, level = build().double(), draw(4, 3, 4, 6).double(), draw(4, seed=1).double()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[order], level[order])["out"], network(x, level)["out"][order])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_gradient_reaches_every_parameter(qk_norm):
    options = replace(SMALL, positions="learned", qk_norm=qk_norm)
    network = build("video", options, classes=("a", "b"), cond={"pose": ConditionSpec(kind="vector", width=2)})
    cond = {"label": torch.tensor([0, 0, 1]), "pose": torch.ones(3, 2)}
    drop = {name: torch.tensor([True, False, False]) for name in cond}
    embedded = network.conditioners.embed(cond, 3, drop)
    network(draw(3, 3, 2, 4, 6), draw(3, 3, seed=1), embedded)["out"].square().sum().backward()
    assert parameters_without_gradient(network) == []


def test_normalised_queries_and_keys_bound_the_scores():
    network = build(options=replace(SMALL, qk_norm=True), scale=3.0)
    for block in network.body:
        torch.nn.init.ones_(block.attention.inner.query_norm.weight)
        torch.nn.init.ones_(block.attention.inner.key_norm.weight)
    with capture(network, ["block1.attention"], inputs=True) as scores:
        network(draw(2, 3, 4, 6), torch.zeros(2))
    assert scores["block1.attention"].abs().max() < 8**0.5 * 1.0001  # |q| = |k| = sqrt(8), and turns keep lengths


@pytest.mark.filterwarnings("error")
def test_the_network_runs_in_bfloat16_under_autocast_and_by_itself():
    network = build("video", replace(SMALL, qk_norm=True, positions="learned"))
    x, level = draw(2, 3, 2, 4, 6), torch.zeros(2)
    exact = network(x, level)["out"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(x, level)["out"].float()
    whole = network.bfloat16()(x.bfloat16(), level.bfloat16())["out"].float()
    scale = exact.abs().max()
    assert (cast - exact).abs().max() < 0.05 * scale and (whole - exact).abs().max() < 0.05 * scale


# -- conditions -------------------------------------------------------------------------------------


EVERY_CONDITION = {
    "pose": ConditionSpec(kind="vector", width=3),
    "caption": ConditionSpec(kind="text", length=6),
    "depth": ConditionSpec(kind="map", width=1),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_condition_is_read_and_null_where_it_is_not_given(kind):
    network = build(kind, classes=("a", "b"), cond=EVERY_CONDITION)
    shape = SHAPES[kind]
    sizes = shape[2:] if kind == "video" else shape[1:]
    given = {
        "label": torch.tensor([0, 1]),
        "pose": draw(2, 3),
        "caption": torch.tensor([[99, 97, 116, -1, -1, -1], [100, 111, 103, 115, -1, -1]]),
        "depth": draw(2, 1, *sizes),
    }
    x, level, embed = draw(2, *shape), torch.zeros(2), network.conditioners.embed
    run = lambda cond: network(x, level, None if cond is None else embed(cond, 2))["out"]  # noqa: E731
    whole = run(given)
    assert whole.shape == x.shape
    for name in given:
        without = run({other: value for other, value in given.items() if other != name})
        assert not torch.allclose(without, whole, atol=1e-5), name
    torch.testing.assert_close(run({}), run(None))


def test_a_video_reads_the_same_text_and_its_own_map_in_every_frame():
    cond = {"caption": ConditionSpec(kind="text", length=3), "depth": ConditionSpec(kind="map", width=1)}
    network = build("video", replace(SMALL, temporal=False), cond=cond)
    embed = network.conditioners.embed
    x, level = draw(2, 3, 2, 4, 6), draw(2, 3, seed=4)
    text, maps = torch.tensor([[97, 98, -1], [99, -1, -1]]), draw(2, 3, 1, 4, 6, seed=3)
    video = network(x, level, embed({"caption": text, "depth": maps}, 2))["out"]
    one_by_one = embed({"caption": text.repeat_interleave(3, 0), "depth": maps.flatten(0, 1)}, 6)
    images = network(x.flatten(0, 1), level.flatten(), one_by_one)["out"]
    torch.testing.assert_close(video.flatten(0, 1), images)


# -- frames -----------------------------------------------------------------------------------------


def test_without_temporal_attention_each_frame_is_what_the_image_alone_gives():
    network = build("video", replace(SMALL, temporal=False), classes=("a", "b", "c"))
    x, level, label = draw(2, 3, 2, 4, 6), draw(2, 3, seed=2), torch.tensor([0, 2])
    embed = network.conditioners.embed
    video = network(x, level, embed({"label": label}, 2))["out"]
    images = network(x.flatten(0, 1), level.flatten(), embed({"label": label.repeat_interleave(3)}, 6))["out"]
    torch.testing.assert_close(video.flatten(0, 1), images)


def test_a_frame_s_level_modulates_that_frame_alone():
    network, x = build("video", replace(SMALL, temporal=False)), draw(2, 3, 2, 4, 6)
    level = torch.zeros(2, 3)
    changed = level.clone()
    changed[0, 1] = 1.0
    difference = (network(x, changed)["out"] - network(x, level)["out"]).abs().amax((2, 3, 4))
    assert difference[0, 1] > 1e-3
    difference[0, 1] = 0.0
    assert difference.max() < 1e-6


def test_equal_levels_per_frame_equal_the_shared_level():
    network, x, level = build("video"), draw(2, 3, 2, 4, 6), torch.tensor([0.4, -1.0])
    torch.testing.assert_close(network(x, level[:, None].expand(2, 3))["out"], network(x, level)["out"])


def test_video_lets_frames_meet_in_order_unless_told_otherwise():
    network, x, level = build("video"), draw(1, 3, 2, 4, 6), torch.zeros(1, 3)
    changed = torch.tensor([[0.0, 1.0, 0.0]])
    difference = (network(x, changed)["out"] - network(x, level)["out"]).abs().amax((2, 3, 4))
    assert (difference > 1e-4).all()
    swapped = network(x[:, [1, 0, 2]], level)["out"][:, [1, 0, 2]]
    assert not torch.allclose(swapped, network(x, level)["out"], atol=1e-4)
    assert not any("temporal" in name for name in build("image").blocks)


def test_temporal_attention_joins_the_tokens_of_one_place():
    network = build("video", replace(SMALL, depth=1))
    x = draw(1, 3, 2, 4, 6)
    other = x.clone()
    other[0, 0, :, :2, :2] += 1.0  # the first patch of the first frame
    level = torch.zeros(1, 3)
    with capture(network, ["block0.temporal"], stop_after="block0.temporal") as before:
        network(x, level)
    with capture(network, ["block0.temporal"], stop_after="block0.temporal") as after:
        network(other, level)
    moved = (after["block0.temporal"] - before["block0.temporal"]).abs().amax(-1)  # (F, L)
    assert moved[1, 0] > 1e-4 and moved[0].min() > 1e-5
    same_frame = build("video", replace(SMALL, depth=1, temporal=False))
    with capture(same_frame, ["block0"]) as alone:
        same_frame(x, level)
        first = alone["block0"]
        same_frame(other, level)
    assert torch.equal(alone["block0"][1:], first[1:])


# -- blocks -----------------------------------------------------------------------------------------


def test_blocks_run_in_the_order_of_their_names_and_stop_early():
    network, ran = build("video"), []
    for name, block in network.blocks.items():
        block.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    x, level = draw(1, 3, 2, 4, 6), torch.zeros(1)
    network(x, level)
    assert ran == list(network.blocks)
    ran.clear()
    with capture(network, ["block0.attention", "block0.temporal.attention"], stop_after="block0.temporal") as taken:
        network(x, level)
    assert ran == ["in", "block0", "block0.temporal"]
    assert taken["block0.attention"].shape == (3, 2, 6, 6)  # frames, heads, patches
    assert taken["block0.temporal.attention"].shape == (6, 2, 3, 3)  # places, heads, frames


# -- derivatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["signal", "volume", "video"])
def test_forward_and_reverse_derivatives_agree_with_finite_differences(kind):
    network = build(kind).double()
    x, tangent = draw(2, *SHAPES[kind]).double(), draw(2, *SHAPES[kind], seed=5).double()
    level = torch.tensor([0.2, -0.7], dtype=torch.float64)
    run = lambda y: network(y, level)["out"]  # noqa: E731
    with math_attention():
        out, jvp = torch.func.jvp(run, (x,), (tangent,))
        _, pull = torch.func.vjp(run, x)
    step = 1e-5
    difference = (run(x + step * tangent) - run(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close((out * jvp).sum(), (pull(out)[0] * tangent).sum())


def test_derivative_in_the_noise_level_exists():
    network = build().double()
    x, level = draw(2, 3, 4, 6).double(), torch.tensor([0.2, -0.7], dtype=torch.float64)
    run = lambda at: network(x, at)["out"]  # noqa: E731
    with math_attention():
        _, jvp = torch.func.jvp(run, (level,), (torch.ones_like(level),))
    torch.testing.assert_close(jvp, (run(level + 1e-5) - run(level - 1e-5)) / 2e-5, rtol=1e-6, atol=1e-7)


# -- misfits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "level", "match"),
    [
        (torch.zeros(2, 1, 4, 6), torch.zeros(2), "expects 3 channels"),
        (torch.zeros(2, 3, 8), torch.zeros(2), "2 spatial axes"),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2), r"sizes \(4, 5\) do not divide into patches of side 2"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(2, 3), r"expects \(2,\)\."),
        (torch.zeros(2, 4, 3, 4, 6), torch.zeros(2, 3), r"expects \(2,\) or \(2, 4\)"),
        (torch.zeros(2, 3, 4, 6), None, "noise level is None"),
    ],
)
def test_misfits_are_refused(x, level, match):
    with pytest.raises(ValueError, match=match):
        build()(x, level)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((1, 5, 6), SMALL, r"sizes \(5, 6\) do not divide into patches of side 2"),
        ((1, 4, 6), replace(SMALL, width=12, heads=6), "make width / heads at least 4"),
        ((1, 4, 6), replace(SMALL, temporal=True), "temporal is for video"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(shape, options, match):
    with pytest.raises(ValueError, match=match):
        build_network(options, DataSpec(kind="image", shape=shape))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 30}, "width=30 does not split"),
        ({"patch": 0}, "patch=0"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"route": 1.0}, "route=1.0"),
        ({"route": 0.5, "depth": 4}, "skips blocks 2 to -3, which are none of depth=4"),
        ({"route": 0.5, "route_last": 8}, "which are none of depth=8"),
    ],
)
def test_options_check_themselves(change, match):
    with pytest.raises(ValueError, match=match):
        DiTOptions(**change)


def test_depths_share_weights_of_no_block():
    network = build(scale=0.0)
    starts = [block.state_dict() for block in network.body]
    assert all(
        not torch.equal(a["attention.inner.qkv.weight"], b["attention.inner.qkv.weight"]) for a, b in pairwise(starts)
    )

"""Networks of diffusers built from our options: their configurations, conditions, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from undiffuse.errors import ConfigError
from undiffuse.networks import diffusers_build
from undiffuse.networks.build import build_network
from undiffuse.networks.diffusers_build import options_of
from undiffuse.networks.diffusers_network import DiffusersNetwork
from undiffuse.networks.hooks import capture
from undiffuse.networks.options import DiffusersDiTOptions, DiffusersUNetOptions
from undiffuse.spec import ConditionSpec, DataSpec

diffusers = pytest.importorskip("diffusers")
UNET = DiffusersUNetOptions(channels=8, groups=4, multipliers=(1, 2), blocks=1, head=4)
DIT = DiffusersDiTOptions(width=16, depth=2, heads=2, patch=4)
PLAIN = DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255))
LABELLED = DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255), classes=("a", "b"))


def network(options: Any = UNET, spec: DataSpec = LABELLED, **more: Any) -> DiffusersNetwork:
    made = build_network(options, spec, **more)
    assert isinstance(made, DiffusersNetwork)
    return made


@pytest.mark.parametrize("options", [UNET, DIT, DiffusersUNetOptions(settings='{"norm_eps": 0.001}')])
def test_options_survive_the_way_through_a_configuration(options: Any):
    config = {**network(options).network.config, "_class_name": diffusers_build.CLASSES[options.kind]}  # type: ignore[arg-type]
    found = options_of(json.loads(json.dumps(config)))
    assert type(found) is type(options) and dict(network(found).network.config) == dict(network(options).network.config)
    if options is not DIT:
        assert found.settings == options.settings and found.channels == options.channels  # type: ignore[union-attr]


def test_a_configuration_with_widths_of_its_own_is_kept_in_settings():
    theirs = diffusers.UNet2DModel(
        block_out_channels=(8, 12), norm_num_groups=4, attention_head_dim=None, layers_per_block=1, sample_size=8,
        down_block_types=("DownBlock2D", "SkipDownBlock2D"), up_block_types=("SkipUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    options = options_of({**theirs.config, "_class_name": "UNet2DModel"})
    assert json.loads(options.settings)["block_out_channels"] == [8, 12]
    made = network(options, PLAIN)
    assert {n: p.shape for n, p in made.network.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }


def test_weights_follow_from_the_seed_and_nothing_reads_the_global_generator():
    state = torch.get_rng_state()
    first, second, other = (network(DIT, seed=seed) for seed in (1, 1, 2))
    embedded = first.conditioners.embed({"label": torch.tensor([0, 1])}, 2, {"label": torch.tensor([True, False])})
    first.train()
    x, step = torch.ones(2, 3, 8, 8), torch.tensor([3.0, 4.0])
    for made in (first, second, other):
        torch.nn.init.ones_(made.network.proj_out_2.weight)  # type: ignore[union-attr, arg-type]
    outs = [made(x, step, embedded)["out"] for made in (first, second, other)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert torch.equal(torch.get_rng_state(), state)  # a DiT of diffusers would drop labels by it while it trains
    assert not first.network.training and first.conditioners.training
    nulls = embedded.vector
    assert nulls is not None and nulls.tolist() == [[2], [1]]
    for label in (2, -1):  # that of the null is no class
        with pytest.raises(ValueError, match=f"label {label} does not exist; this model knows 0 to 1"):
            first.conditioners.embed({"label": torch.tensor([label])}, 1)


def test_copies_keep_their_own_blocks():
    """Averages are copies: hooks on one must not see the other."""
    made = network()
    copied = copy.deepcopy(made)
    assert copied.blocks.keys() == made.blocks.keys()
    assert all(copied.blocks[name] is not block for name, block in made.blocks.items())
    with capture(copied, ["mid"]) as taken:
        copied(torch.ones(1, 3, 8, 8), torch.tensor([3.0]))
    assert taken["mid"].shape == (1, 16, 4, 4)


def test_activations_are_computed_again_to_the_same_gradients():
    x, step, found = torch.ones(2, 3, 8, 8), torch.tensor([3.0, 4.0]), []
    for on in (False, True):
        made = network()
        torch.nn.init.ones_(made.network.conv_out.weight)  # type: ignore[union-attr, arg-type]
        made.recompute(on)
        made(x, step)["out"].square().mean().backward()
        found.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


@pytest.mark.parametrize(
    ("options", "spec", "words"),
    [
        (UNET, DataSpec(kind="image", shape=(3, 9, 9)), "multiples of 2"),
        (DIT, DataSpec(kind="image", shape=(3, 8, 16)), "square images"),
        (
            UNET,
            DataSpec(kind="image", shape=(3, 8, 8), cond={"caption": ConditionSpec(kind="text", length=8)}),
            "class label",
        ),
        (UNET, DataSpec(kind="video", shape=(2, 3, 8, 8)), "made for image data"),
        (DiffusersUNetOptions(settings='{"norm_epps": 1}'), PLAIN, "Did you mean 'norm_eps'"),
        (DiffusersUNetOptions(settings='{"in_channels": 1}'), PLAIN, "follows from the data"),
        (DiffusersUNetOptions(settings='{"time_embedding_type": "fourier"}'), PLAIN, "cannot be trained here"),
        (DiffusersUNetOptions(settings='{"layers_per_block": "x"}'), PLAIN, "cannot be built .'str' object"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, spec: DataSpec, words: str):
    with pytest.raises(ValueError, match=words):
        network(options, spec)


def test_options_that_are_refused(monkeypatch: pytest.MonkeyPatch):
    for wrong, words in (
        ({"channels": 30}, "groups=32"),
        ({"settings": "{"}, "no JSON"),
        ({"settings": "[1]"}, "no JSON object"),
        ({"attention": (5,)}, "level 5"),
    ):
        with pytest.raises(ValueError, match=words):
            DiffusersUNetOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 8"):
        DiffusersDiTOptions(width=12, heads=2)
    with pytest.raises(ValueError, match="are not trained here"):
        options_of({"_class_name": "UNet2DConditionModel"})
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ConfigError, match="undiffuse\\[pretrained\\]"):
        network()

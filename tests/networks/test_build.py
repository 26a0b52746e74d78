from __future__ import annotations

import pytest
import torch

from undiffuse.networks import MLPOptions, TransformerOptions, UNetOptions, build_network
from undiffuse.spec import ConditionSpec, DataSpec

UNET = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
SHAPES = {
    "image": (3, 5, 6),
    "video": (4, 1, 6, 5),
    "volume": (1, 4, 5, 6),
    "signal": (2, 9),
    "vector": (3,),
    "tokens": (7,),
}
MODELS = {
    "image": UNET,
    "video": UNET,
    "volume": UNET,
    "signal": UNET,
    "vector": MLPOptions(width=16, depth=1),
    "tokens": TransformerOptions(width=16, depth=1, heads=2),
}


def spec_of(kind: str, **kwargs) -> DataSpec:
    return DataSpec(kind=kind, shape=SHAPES[kind], vocabulary=("a", "b", "c") if kind == "tokens" else (), **kwargs)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_has_a_network_with_the_spec_s_conditions(kind):
    spec = spec_of(kind, classes=("cat", "dog"), cond={"pose": ConditionSpec(kind="vector", width=3)})
    network = build_network(MODELS[kind], spec)
    assert list(network.conditioners) == ["label", "pose"]
    assert network.options is MODELS[kind]
    shape = (2, *spec.shape)
    x = torch.zeros(shape, dtype=torch.int64) if kind == "tokens" else torch.zeros(shape)
    cond = network.conditioners.embed({"label": torch.tensor([0, 1]), "pose": torch.ones(2, 3)}, 2)
    out = network(x, torch.zeros(2), cond)["out"]
    assert out.shape == ((*shape, 3) if kind == "tokens" else shape)


@pytest.mark.parametrize("kind", ["vector", "image", "tokens"])
def test_initialisation_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(kind):
    before = torch.random.get_rng_state()
    same, again, other = (build_network(MODELS[kind], spec_of(kind), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert any(not torch.equal(same[name], other[name]) for name in same)


def test_one_seed_gives_the_video_network_the_image_network_s_weights():
    image = build_network(UNET, spec_of("video"), seed=1).state_dict()
    temporal = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, temporal=True)
    video = build_network(temporal, spec_of("video"), seed=1).state_dict()
    assert all(torch.equal(video[name], value) for name, value in image.items())


def test_states_may_include_the_mask():
    network = build_network(MODELS["tokens"], spec_of("tokens"), states=4)
    assert network(torch.tensor([[3, 0]]))["out"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        (MLPOptions(), "image", "model=mlp is made for vector data, but this is image data; choose model=unet"),
        (UNET, "vector", "choose model=mlp"),
        (MLPOptions(), "tokens", "choose model=unet or transformer"),
        (TransformerOptions(), "video", "choose model=unet"),
        (UNetOptions(temporal=True), "image", "temporal is for video"),
    ],
)
def test_networks_that_do_not_fit_the_data_are_refused(options, kind, match):
    with pytest.raises(ValueError, match=match):
        build_network(options, spec_of(kind))


def test_states_that_do_not_fit_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="states=6 but the vocabulary has 3"):
        build_network(MODELS["tokens"], spec_of("tokens"), states=6)
    with pytest.raises(ValueError, match="has 0 tokens"):
        build_network(MODELS["tokens"], DataSpec(kind="tokens", shape=(4,)))

"""The U-Net on tokens: shapes, the place of each token, and that it is saved, hooked and refused like others."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.networks.helpers import described, parameters_without_gradient, randomise
from undiffuse.config import resolve
from undiffuse.data import TensorDataset
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.errors import CheckpointError
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.hooks import capture
from undiffuse.networks.options import UNetOptions
from undiffuse.networks.token_unet import TokenUNet
from undiffuse.networks.unet import UNet
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.keep import RootCosineKeep
from undiffuse.spec import DataSpec
from undiffuse.training.fine_tuning import take_weights
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.run import train

SMALL = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
CODES = DataSpec(kind="tokens", shape=(12,), grid=(3, 4), vocabulary=tuple("abcde"), classes=("x", "y"))


def ids(*shape: int, states: int = 5) -> torch.Tensor:
    return torch.randint(states, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (1, 5), (2, 3, 2)])
def test_tokens_of_any_grid_become_logits_and_every_weight_is_used(grid):
    length = torch.tensor(grid).prod().item()
    network = randomise(TokenUNet(grid, 5, 6, SMALL, conditions=described(3)))
    x = ids(2, length, states=6)
    cond = network.conditioners.embed({"label": torch.tensor([0, 2])}, 2)
    out = network(x, torch.tensor([0.2, 0.9]), cond)["out"]
    assert out.shape == (2, length, 5)
    out.square().sum().backward()
    unused = parameters_without_gradient(network)
    assert all("conditioners" in name for name in unused), unused  # the null of a label that is given


def test_rows_follow_each_other_on_the_grid():
    """As the U-Net of images on a picture whose pixel (row, column) is the embedding of token 4 row + column."""
    network = randomise(TokenUNet((3, 4), 5, 5, SMALL))
    x, level = ids(2, 12), torch.zeros(2)
    picture = torch.zeros(2, 8, 3, 4)
    for row, column in itertools.product(range(3), range(4)):
        picture[:, :, row, column] = network.embedding.weight[x[:, 4 * row + column]]
    expected = UNet.forward(network, picture, level)["out"]  # (B, K, H, W)
    found = network(x, level)["out"]
    for row, column in itertools.product(range(3), range(4)):
        torch.testing.assert_close(found[:, 4 * row + column], expected[:, :, row, column])


def test_a_row_without_a_grid_may_have_any_length_and_a_grid_may_not():
    row = randomise(TokenUNet((7,), 5, 5, SMALL))
    assert row(ids(1, 11), torch.zeros(1))["out"].shape == (1, 11, 5)
    with pytest.raises(ValueError, match=r"\(B, 12\), row by row of a grid of 3 x 4"):
        TokenUNet((3, 4), 5, 5, SMALL)(ids(1, 11), torch.zeros(1))
    with pytest.raises(ValueError, match=r"noise level is of shape \(1, 12\)"):
        TokenUNet((3, 4), 5, 5, SMALL)(ids(1, 12), torch.zeros(1, 12))
    with pytest.raises(ValueError, match="self_condition"):
        build_network(UNetOptions(self_condition=True), CODES)


SCALED = replace(SMALL, token_input="scaled")


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)])
def test_a_network_of_numbers_begins_by_believing_what_it_sees(grid):
    length = torch.tensor(grid).prod().item()
    network, x = TokenUNet(grid, 5, 6, SCALED), ids(2, length, states=6)
    out = network(x, torch.zeros(2))["out"]
    expected = torch.nn.functional.one_hot(x, 6)[..., :5].float()  # nothing is said of a mask
    assert torch.equal(out, expected) and bool((x == 5).any())
    randomise(network)(x, torch.tensor([0.2, 0.9]))["out"].square().sum().backward()
    assert not parameters_without_gradient(network)


def test_numbers_are_a_picture_of_one_channel():
    network = randomise(TokenUNet((3, 4), 5, 6, SCALED)).double()
    x, level = ids(2, 12, states=6), torch.zeros(2, dtype=torch.float64)
    picture = (x.double() / 2.5 - 1).view(2, 1, 3, 4)
    said = UNet.forward(network, picture, level)["out"].flatten(2).mT
    seen = torch.nn.functional.one_hot(x, 6)[..., :5].double()
    torch.testing.assert_close(network(x, level)["out"], said + seen, rtol=1e-12, atol=1e-12)
    with capture(network, ["embedding", "mid"]) as kept:
        network(x, level)
    assert kept["embedding"].shape == (2, 12, 1) and kept["mid"].shape == (2, 16, 2, 2)


def test_numbers_of_tokens_are_for_tokens():
    with pytest.raises(ValueError, match=r"model.token_input=scaled is about tokens"):
        build_network(SCALED, DataSpec(kind="image", shape=(1, 8, 8)))


def test_a_network_of_numbers_is_trained_resumed_and_sampled_like_others(tmp_path):
    data = TensorDataset(data=ids(60, 1).expand(60, 12).contiguous(), spec=replace(CODES, classes=()))
    recipe = resolve(Recipe, recipe_layer("vq-ddm"), ["codec=none", "model.token_input=scaled"])
    size = ["model.channels=8", "model.blocks=1", "model.heads=2"]
    options = {"batch_size": 16, "warmup": 0, "lr": 5e-3, "log_every": 4, "preview_every": 0, "decay": "constant"}
    whole = train(data, recipe, out=tmp_path / "whole", overrides=size, steps=16, **options)
    train(data, recipe, out=tmp_path / "parts", overrides=size, steps=8, **options)
    again = train(data, recipe, out=tmp_path / "parts", overrides=size, steps=16, **options)
    for a, b in zip(again.model.denoiser.parameters(), whole.model.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.losses[-1] < whole.losses[0]
    drawn = whole.model.sample(3, steps=4)
    assert drawn.shape == (3, 12) and bool(((drawn >= 0) & (drawn < 5)).all())


def test_hooks_reach_the_embedding_and_the_middle():
    network = randomise(build_network(SMALL, CODES, states=6))
    x = ids(2, 12, states=6)
    with capture(network, ["embedding", "mid"]) as kept:
        network(x, torch.zeros(2))
    assert kept["embedding"].shape == (2, 12, 8) and kept["mid"].shape == (2, 16, 2, 2)


def denoiser(evidence_free: bool) -> CategoricalDenoiser:
    process = CategoricalProcess("uniform", 5, RootCosineKeep())
    network = build_network(SMALL, CODES, states=process.states)
    randomise(network)
    return CategoricalDenoiser(network, process, spec=CODES, time_dependent=True, evidence_free=evidence_free)


@pytest.mark.parametrize("evidence_free", [False, True])
def test_a_model_remembers_its_grid_its_schedule_and_what_its_answers_mean(tmp_path, evidence_free):
    model = Model(denoiser(evidence_free), CODES)
    again = load(model.save(tmp_path))
    assert again.denoiser.evidence_free is evidence_free
    assert again.process == model.process and again.spec == CODES
    x, t = ids(2, 12), torch.tensor([0.3, 0.8])
    assert torch.equal(again.denoiser(x, t).logits, model.denoiser.eval()(x, t).logits)
    assert torch.equal(again.sample(2, solver="ancestral", steps=3), model.sample(2, solver="ancestral", steps=3))


def test_weights_that_answer_another_question_are_refused():
    take_weights(denoiser(True), denoiser(True), "runs/a")
    with pytest.raises(CheckpointError, match=r"runs/a was trained with process\.evidence_free=true"):
        take_weights(denoiser(False), denoiser(True), "runs/a")

"""Training with the network's own estimate: keyed coins, a first pass without gradient, and models that remember it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of
from undiffuse.config import resolve
from undiffuse.data import TensorDataset
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import ConfigError
from undiffuse.models import load
from undiffuse.models.bundle import save_model
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.options import DiTOptions, MLPOptions, NetworkOptions, UNetOptions
from undiffuse.noise import KeyedNoise
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.memory import footprint
from undiffuse.training.options import DenoisingOptions, TrainOptions
from undiffuse.training.recipe import Recipe
from undiffuse.training.self_conditioning import COINS
from undiffuse.training.trainer import Trainer

VECTORS = DataSpec(kind="vector", shape=(3,), classes=("a", "b"))
IMAGES = DataSpec(kind="image", shape=(2, 4, 4), cond={"hint": ConditionSpec(kind="map", width=1)})
CLIPS = DataSpec(kind="video", shape=(3, 2, 4, 4))
MLP = MLPOptions(width=8, depth=1)
UNET = UNetOptions(channels=8, multipliers=(1,), blocks=1, attention=())
DIT = DiTOptions(width=16, depth=1, heads=2)
NETWORKS = [(MLP, VECTORS), (UNET, IMAGES), (UNET, CLIPS), (DIT, IMAGES), (DIT, CLIPS)]
IDS = ["mlp", "unet map", "unet video", "dit map", "dit video"]


def conditioned(options: NetworkOptions) -> NetworkOptions:
    return replace(options, self_condition=True)


def denoiser_of(options: NetworkOptions, spec: DataSpec, data_std: float = 1.0) -> NetworkDenoiser:
    network = build_network(options, spec).double()
    with torch.no_grad():
        for p in network.parameters():  # a fresh network answers 0 everywhere
            p.add_(0.1 * normals(*p.shape, seed=p.numel()))
    return NetworkDenoiser(network, process_of("cosine"), spec=spec, data_std=data_std)


# -- the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "spec"), NETWORKS, ids=IDS)
def test_without_an_estimate_it_is_the_plain_network_without_the_further_inputs(
    options: NetworkOptions, spec: DataSpec
) -> None:
    ours, plain = denoiser_of(conditioned(options), spec).backbone, build_network(options, spec).double()
    weights = ours.state_dict()
    whole, kept = weights["enter.weight"], plain.enter.weight.shape[1]
    per_channel = whole.shape[1] // (2 * spec.channels + (1 if spec is IMAGES else 0))
    data = spec.channels * per_channel
    assert whole.shape[1] == kept + data
    weights["enter.weight"] = torch.cat([whole[:, :data], whole[:, 2 * data :]], dim=1)  # x, estimate, maps
    plain.load_state_dict(weights)
    x, level = normals(2, *spec.shape), torch.zeros(2).double()
    cond = ours.conditioners.embed({"hint": normals(2, 1, 4, 4)} if spec is IMAGES else None, 2)
    zeros = replace(cond, estimate=torch.zeros_like(x))
    wanted = plain(x, level, cond)["out"]
    for given in (cond, zeros):
        torch.testing.assert_close(ours(x, level, given)["out"], wanted, rtol=1e-10, atol=1e-12)
    seen = ours(x, level, replace(cond, estimate=normals(*x.shape, seed=9)))["out"]
    assert not torch.allclose(seen, wanted)
    weights = ours.state_dict()
    weights["enter.weight"][:, data : 2 * data] = 0
    ours.load_state_dict(weights)
    torch.testing.assert_close(ours(x, level, replace(cond, estimate=x))["out"], wanted, rtol=1e-10, atol=1e-12)


def test_the_estimate_reaches_the_network_in_unit_variance() -> None:
    denoiser = denoiser_of(conditioned(MLP), VECTORS, data_std=0.25)
    seen: list[Embedded] = []
    denoiser.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    estimate = normals(2, 3)
    denoiser(normals(2, 3), 0.5, denoiser.with_estimate(denoiser.embed(None, 2), estimate))
    assert torch.equal(seen[0].estimate, estimate / 0.25)


def test_wrong_estimates_are_refused() -> None:
    plain, ours = denoiser_of(MLP, VECTORS), denoiser_of(conditioned(MLP), VECTORS)
    assert ours.self_conditioned and not plain.self_conditioned
    x = normals(2, 3)
    with pytest.raises(ValueError, match="self_condition=True"):
        plain(x, 0.5, plain.with_estimate(plain.embed(None, 2), x))
    with pytest.raises(ValueError, match=r"expected that of x, \(2, 3\)"):
        ours(x, 0.5, ours.with_estimate(ours.embed(None, 2), x[:, :2]))


# -- training -------------------------------------------------------------------------------------------


def test_half_of_the_rows_are_shown_an_estimate_and_which_is_keyed() -> None:
    objective = make_objective(DenoisingOptions(), denoiser := denoiser_of(conditioned(MLP), VECTORS))

    def coins(items: range) -> Tensor:
        batch = {"x": torch.zeros(len(items), 3).double(), "cond": {}}
        return objective.prepare(denoiser, batch, KeyedNoise(3, items), len(items)).extras[COINS]

    drawn = coins(range(10_000))
    assert abs(float(drawn.double().mean()) - 0.5) < 0.02  # 4 standard deviations: false alarm 6e-5
    assert torch.equal(coins(range(5000, 5100)), drawn[5000:5100])
    plain = denoiser_of(MLP, VECTORS)
    batch = {"x": torch.zeros(4, 3).double(), "cond": {}}
    assert not make_objective(DenoisingOptions(), plain).prepare(plain, batch, KeyedNoise(0, range(4)), 4).extras


def test_rows_see_their_first_answer_or_zeros_and_the_first_pass_has_no_gradient() -> None:
    denoiser = denoiser_of(conditioned(MLP), VECTORS)
    objective = make_objective(DenoisingOptions(), denoiser)
    batch = {"x": normals(16, 3), "cond": {"label": torch.arange(16) % 2}}
    corrupted = objective.prepare(denoiser, batch, KeyedNoise(0, range(16)), 16)
    coins = corrupted.extras[COINS]
    assert 0 < int(coins.sum()) < 16
    found = objective.score(denoiser, corrupted).per_sample
    found.sum().backward()
    got = [p.grad.clone() for p in denoiser.parameters() if p.grad is not None]
    denoiser.zero_grad()
    cond = denoiser.embed(corrupted.cond, 16, corrupted.drop)
    first = denoiser(corrupted.x, corrupted.t, cond).mean.detach()
    post = denoiser(corrupted.x, corrupted.t, replace(cond, estimate=first * coins[:, None]))
    wanted = (post.raw - corrupted.target).square().mean(1) * corrupted.weight
    wanted.sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for ours, theirs in zip(got, [p.grad for p in denoiser.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_autocast_keeps_the_gradient_of_the_second_pass() -> None:
    denoiser = denoiser_of(conditioned(MLP), VECTORS).float()
    objective = make_objective(DenoisingOptions(), denoiser)
    batch = {"x": normals(16, 3).float(), "cond": {}}
    with torch.autocast("cpu", torch.bfloat16):
        objective.losses(denoiser, batch, KeyedNoise(0, range(16))).per_sample.sum().backward()
    without = [name for name, p in denoiser.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not [name for name in without if "conditioners" not in name and "deviation" not in name]


def tiny(folder, steps: int, variance: bool = False) -> Trainer:
    data = TensorDataset(data=normals(50, 3).float(), spec=replace(VECTORS, classes=()))
    options = DenoisingOptions(learn_variance=variance)
    network = build_network(conditioned(MLP), data.spec, variance=variance)
    denoiser = NetworkDenoiser(network, process_of("cosine"), spec=data.spec)
    train = TrainOptions(steps=steps, batch_size=8, log_every=5, checkpoint_every=10, preview_every=0)
    folder.mkdir(exist_ok=True)
    return Trainer(denoiser, make_objective(options, denoiser), data, train, folder)


@pytest.mark.parametrize("variance", [False, True])
def test_a_resumed_run_is_the_run_bit_for_bit(tmp_path, variance: bool) -> None:
    tiny(tmp_path / "whole", 20, variance).run()
    tiny(tmp_path / "parts", 10, variance).run()
    tiny(tmp_path / "parts", 20, variance).run()
    whole, parts = (
        read_checkpoint(checkpoints_in(tmp_path / name / "checkpoints")[-1]).tensors for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_recipe_builds_it_and_a_model_remembers_it(tmp_path) -> None:
    recipe = resolve(Recipe, {"model": {"kind": "mlp", "width": 8, "depth": 1, "self_condition": True}})
    denoiser = build_denoiser(recipe, VECTORS)
    assert denoiser.self_conditioned
    need = footprint(recipe, VECTORS)
    assert need.parameters == sum(p.numel() for p in denoiser.parameters()) and need.bytes > 0
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    model = Model(denoiser, VECTORS)
    save_model(model, tmp_path / "model")
    kept = load(tmp_path / "model")
    assert kept.denoiser.self_conditioned
    for guidance in (1.0, 2.0):
        settings = {"cond": {"label": "a"}, "guidance": guidance, "steps": 3}
        drawn = kept.sample(8, **settings)
        assert torch.equal(drawn, model.sample(8, **settings))
        alone = torch.cat([kept.sample(1, first=i, **settings) for i in range(8)])
        torch.testing.assert_close(drawn, alone, rtol=1e-5, atol=1e-5)  # matrix products of other sizes round anew


def test_tokens_have_no_such_option() -> None:
    layer = {"model": {"kind": "transformer", "self_condition": True}, "process": "categorical"}
    with pytest.raises(ConfigError, match="self_condition"):
        resolve(Recipe, layer)

"""The bound of a learned variance against torch's own divergences, closed forms, and what may have a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from tests.oracles.continuous import normals, process_of
from tests.waiting import META, NoWaiting
from undiffuse.config import resolve
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import ConfigError
from undiffuse.models import load
from undiffuse.models.bundle import save_model
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import DiTOptions, MLPOptions, NetworkOptions, TransformerOptions, UNetOptions
from undiffuse.noise import KeyedNoise
from undiffuse.process.times import align
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.learned_variance import VarianceBound
from undiffuse.training.memory import footprint
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.recipe import Recipe

VECTORS, IMAGES = DataSpec(kind="vector", shape=(3,)), DataSpec(kind="image", shape=(2, 4, 4))
CLIPS = DataSpec(kind="video", shape=(3, 2, 4, 4))
UNET = UNetOptions(channels=8, multipliers=(1,), blocks=1, attention=())
DIT = DiTOptions(width=16, depth=1, heads=2)
NETWORKS = [(MLPOptions(width=8, depth=1), VECTORS), (UNET, IMAGES), (UNET, CLIPS), (DIT, IMAGES), (DIT, CLIPS)]
IDS = ["mlp", "unet", "unet video", "dit", "dit video"]


def denoiser_of(options: NetworkOptions, spec: DataSpec, variance: bool = True) -> NetworkDenoiser:
    network = build_network(options, spec, variance=variance).double()
    with torch.no_grad():
        for p in network.parameters():  # a fresh network answers 0 everywhere
            p.add_(0.1 * normals(*p.shape, seed=p.numel()))
    return NetworkDenoiser(network, process_of("cosine"), spec=spec)


# -- the bound ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "vp", "rf", "ve", "ddpm"])
@pytest.mark.parametrize("levels", [10, 1000])
def test_the_bound_is_the_divergence_of_the_bridge_from_the_step(schedule: str, levels: int) -> None:
    process = process_of(schedule)
    x0, x_t, mean, v = (normals(6, 3, seed=i) for i in range(4))
    t = torch.tensor([0.004, 0.03, 0.15, 0.5, 0.9, 0.999], dtype=torch.float64)
    s = torch.maximum(t - 1 / levels, t / 2)
    std = align(torch.as_tensor(process.bridge(t, s, "brownian", 1.0).std), x0)
    large = align(torch.as_tensor(process.forward_kernel(s, t)[1]), x0)

    def bridge_mean(data: Tensor) -> Tensor:
        alpha, sigma = (align(level, x0) for level in process.schedule.levels(t))
        c_x0, c_eps = (align(torch.as_tensor(c), x0) for c in process.bridge(t, s, "brownian", 1.0)[:2])
        return c_x0 * data + c_eps * (x_t - alpha * data) / sigma

    step = Normal(bridge_mean(mean), torch.exp((1 - v) * std.log() + v * large.log()))
    wanted = kl_divergence(Normal(bridge_mean(x0), std), step)
    found = VarianceBound(levels).divergence(process, t, x0, mean, v)
    # Levels of neighbouring times lose digits in their differences: a thousandth of a step leaves 1e-16 * 1e3 * SNR.
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)


def test_the_last_step_is_the_likelihood_of_the_data() -> None:
    process = process_of("trig")
    t = torch.tensor([0.001, 0.0015, 0.0019], dtype=torch.float64)
    x0, mean = normals(3, 2, seed=1), normals(3, 2, seed=1) + 1e-3 * normals(3, 2, seed=2)
    sigma = process.schedule.sigma(t)[:, None].expand_as(x0)
    for v, std in [(1.0, sigma), (0.0, torch.as_tensor(process.bridge(2 * t, t, "brownian", 1.0).std)[:, None])]:
        found = VarianceBound(500).divergence(process, t, x0, mean, torch.full_like(x0, v))
        torch.testing.assert_close(found, -Normal(mean, std.expand_as(x0)).log_prob(x0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "vp", "rf"])
@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_the_best_variance_on_gaussian_data_is_the_exact_reverse_variance(schedule: str, c: float) -> None:
    """The bound is minimised over v by Newton steps, at the expected squared error of the exact mean."""
    process, bound = process_of(schedule), VarianceBound(50)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    s = t - 1 / 50
    alpha, sigma = process.schedule.levels(t)
    error = (c * sigma / (alpha**2 * c**2 + sigma**2).sqrt())[:, None]  # its square is Var[x_0 | x_t]
    v = torch.full_like(error, 0.5).requires_grad_()
    for _ in range(60):
        loss = bound.divergence(process, t, error, torch.zeros_like(error), v).sum()
        (slope,) = torch.autograd.grad(loss, v, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), v)
        v = (v - (slope / curve).clamp(-1, 1)).detach().requires_grad_()
    small, large = process.bridge(t, s, "brownian", 1.0).std, process.forward_kernel(s, t)[1]
    found = torch.exp(2 * ((1 - v[:, 0]) * torch.as_tensor(small).log() + v[:, 0] * torch.as_tensor(large).log()))
    before = process.schedule.alpha(s) ** 2 * c**2 + process.schedule.sigma(s) ** 2
    scale = alpha / process.schedule.alpha(s)
    exact = before - (scale * before) ** 2 / (alpha**2 * c**2 + sigma**2)
    torch.testing.assert_close(found.detach(), exact, rtol=1e-8, atol=0)
    if schedule != "rf":  # of unit length: data of unit variance need the large one, narrower data less, wider more
        torch.testing.assert_close(torch.sign((v - 1).round(decimals=6)), torch.full_like(v, {0.3: -1, 1: 0, 2: 1}[c]))


# -- the objective --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "spec"), NETWORKS, ids=IDS)
def test_the_bound_sends_no_gradient_to_the_mean(options: NetworkOptions, spec: DataSpec) -> None:
    denoiser = denoiser_of(options, spec)
    batch = {"x": normals(6, *spec.shape), "cond": {}}

    def gradients(weight: float) -> dict[str, Tensor]:
        objective = make_objective(DenoisingOptions(learn_variance=True, vlb_weight=weight, levels=100), denoiser)
        denoiser.zero_grad()
        objective.losses(denoiser, batch, KeyedNoise(0, range(6))).per_sample.sum().backward()
        return {name: p.grad.clone() for name, p in denoiser.backbone.named_parameters() if p.grad is not None}

    with_bound, with_more = gradients(1.0), gradients(3.0)
    plain = make_objective(DenoisingOptions(), denoiser_of(options, spec, variance=False))
    for name in ("leave.weight", "leave.bias"):
        assert torch.equal(with_bound[name], with_more[name])
        assert bool(with_bound[name].any())
    assert bool(with_bound["variance.weight"].any())
    torch.testing.assert_close(with_more["variance.weight"], 3 * with_bound["variance.weight"], rtol=1e-9, atol=1e-12)
    assert plain.bound is None


def test_the_loss_is_the_plain_loss_plus_the_weighted_bound() -> None:
    denoiser = denoiser_of(MLPOptions(width=8, depth=1), VECTORS)
    batch = {"x": normals(6, 3), "cond": {}}
    options = DenoisingOptions(learn_variance=True, vlb_weight=0.01, levels=200)
    objective = make_objective(options, denoiser)
    corrupted = objective.prepare(denoiser, batch, KeyedNoise(0, range(6)), 6)
    found = objective.score(denoiser, corrupted).per_sample
    objective.bound = None
    simple = objective.score(denoiser, corrupted).per_sample
    post = denoiser(corrupted.x, corrupted.t, denoiser.embed({}, 6))
    bound = (
        VarianceBound(200)
        .divergence(denoiser.process, corrupted.t, batch["x"], post.mean, post.extras["variance"])
        .mean(1)
    )
    torch.testing.assert_close(found, simple + 0.01 * 200 * bound, rtol=1e-12, atol=0)


def test_adaptive_times_and_times_per_frame_go_with_it() -> None:
    for options, spec in ((DenoisingOptions(learn_variance=True, times="importance"), VECTORS),
                          (DenoisingOptions(learn_variance=True, p_async=0.5), CLIPS)):  # fmt: skip
        denoiser = denoiser_of(UNET if spec is CLIPS else MLPOptions(width=8, depth=1), spec)
        batch = {"x": normals(6, *spec.shape), "cond": {}}
        losses = make_objective(options, denoiser).losses(denoiser, batch, KeyedNoise(0, range(6)))
        assert losses.per_sample.shape == (6,) and bool(losses.per_sample.isfinite().all())


@pytest.mark.slow
def test_training_finds_the_variance_of_gaussian_data() -> None:
    """300 steps of a tiny network bring the log-variance within 0.1 of the closed form."""
    spec = DataSpec(kind="vector", shape=(1,))
    process, c = process_of("cosine"), 0.1
    network = build_network(MLPOptions(width=32, depth=1), spec, variance=True)
    denoiser = NetworkDenoiser(network, process, spec=spec, data_std=c)
    objective = make_objective(DenoisingOptions(learn_variance=True, vlb_weight=0.1, levels=10), denoiser)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    data = KeyedNoise(7, range(256))
    for step in range(300):
        batch = {"x": c * data.normal("data", step + 1, (1,)), "cond": {}}
        noise = KeyedNoise(step, range(256))
        optimizer.zero_grad()
        objective.losses(denoiser, batch, noise).per_sample.mean().backward()
        optimizer.step()
    t = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    s = t - 0.1
    alpha, sigma = process.schedule.levels(t)
    before = process.schedule.alpha(s) ** 2 * c**2 + process.schedule.sigma(s) ** 2
    after = alpha**2 * c**2 + sigma**2
    exact = before - (alpha / process.schedule.alpha(s) * before) ** 2 / after
    small, large = process.bridge(t, s, "brownian", 1.0).std, process.forward_kernel(s, t)[1]
    low, high = 2 * torch.as_tensor(small).log(), 2 * torch.as_tensor(large).log()
    with torch.no_grad():
        post = denoiser(torch.zeros(4, 1), t, denoiser.embed(None, 4))
    found = low + post.extras["variance"][:, 0].double() * (high - low)
    assert bool((0.5 * (low + high) - exact.log() > 0.3).any())  # where a fresh head stands
    torch.testing.assert_close(found, exact.log(), rtol=0, atol=0.1)


def test_a_step_with_both_heads_and_estimates_does_not_wait_for_the_device() -> None:
    network = build_network(MLPOptions(width=8, depth=1, self_condition=True), VECTORS, variance=True)
    denoiser = NetworkDenoiser(network, process_of("cosine"), spec=VECTORS).to(META)
    objective = make_objective(DenoisingOptions(learn_variance=True), denoiser)
    batch, noise = {"x": torch.zeros(4, 3, device=META), "cond": {}}, KeyedNoise(0, range(4), META)
    with NoWaiting():  # raises where the device is waited for
        objective.losses(denoiser, batch, noise).per_sample.mean().backward()
    assert all(p.grad is not None for p in network.parameters())


# -- around it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "spec"), NETWORKS, ids=IDS)
def test_the_head_is_added_beside_a_network_that_stays_the_same(options: NetworkOptions, spec: DataSpec) -> None:
    plain, headed = build_network(options, spec), build_network(options, spec, variance=True)
    added = headed.state_dict().keys() - plain.state_dict().keys()
    assert added == {"variance.weight", "variance.bias"}
    assert all(torch.equal(value, headed.state_dict()[name]) for name, value in plain.state_dict().items())
    x, level = normals(2, *spec.shape).float(), torch.zeros(2)
    heads = headed(x, level, None)
    assert torch.equal(heads["out"], plain(x, level, None)["out"])
    assert heads["variance"].shape == x.shape and bool((heads["variance"] == 0.5).all())


def test_a_recipe_builds_trains_and_keeps_the_head(tmp_path) -> None:
    layer = {"model": {"kind": "mlp", "width": 8, "depth": 1}, "objective": {"learn_variance": True}}
    recipe, plain = resolve(Recipe, layer), resolve(Recipe, {"model": layer["model"]})
    denoiser = build_denoiser(recipe, VECTORS)
    assert denoiser.learns_variance and not build_denoiser(plain, VECTORS).learns_variance
    assert footprint(recipe, VECTORS).parameters == sum(p.numel() for p in denoiser.parameters())
    with pytest.raises(ConfigError, match="variance=True"):
        make_objective(recipe.objective, build_denoiser(plain, VECTORS))
    with pytest.raises(ConfigError, match="not be trained"):
        make_objective(plain.objective, denoiser)
    save_model(Model(denoiser, VECTORS), tmp_path / "model")
    kept = load(tmp_path / "model")
    assert kept.denoiser.learns_variance
    drawn = kept.sample(3, solver="ddpm-learned", steps=4)
    assert drawn.shape == (3, 3)
    assert not torch.equal(drawn, kept.sample(3, solver="ddpm", steps=4))


def test_tokens_have_no_variance() -> None:
    words = DataSpec(kind="tokens", shape=(8,), vocabulary=("a", "b"))
    with pytest.raises(ValueError, match="continuous data only"):
        build_network(TransformerOptions(width=16, depth=1, heads=2), words, variance=True)


def test_wrong_options_are_refused() -> None:
    for wrong in ({"vlb_weight": 0.0}, {"levels": 1}):
        with pytest.raises(ValueError, match="must be"):
            DenoisingOptions(learn_variance=True, **wrong)

"""MMD tuning: gradients through samplers, exact accumulation, classes, the queue, and where the loss is zero."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distillation.tiny import mlp_denoiser, unet_denoiser
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.distillation.mmd import MMDObjective, Sampler, check_tunable
from undiffuse.errors import ConfigError, PlanError, TrainingError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.metrics.kernels import kernel_for, mmd_rows
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.schedules import TrigSchedule
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver

KERNELS = ("rbf-mix", "gaussian", "rational-quadratic", "cubic", "linear", "energy")


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def objective(denoiser: Denoiser, solver: str = "ddim", steps: int = 2, **options: Any) -> MMDObjective:
    given = {"width": 2, "features": flat, **options}
    solver_options = given.pop("solver_options", {})
    grid = make_grid(denoiser.process.schedule, steps, "t")
    return MMDObjective(samplers=[Sampler(make_solver(solver, **solver_options), grid)], **given)


def batch(n: int = 16, labels: bool = False, width: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return {"x": x, "cond": {"label": torch.arange(n) % 3} if labels else {}}


def gradient(loss: Tensor, denoiser: nn.Module) -> Tensor:
    parameters = list(denoiser.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


def shift(denoiser: nn.Module, direction: Tensor, by: float) -> None:
    with torch.no_grad():
        start = 0
        for p in denoiser.parameters():
            p += by * direction[start : start + p.numel()].view_as(p)
            start += p.numel()


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "heun"])
@pytest.mark.parametrize("prediction", ["v", "data", "noise"])
def test_the_gradient_through_the_sampler_is_that_of_finite_differences(prediction, solver, steps):
    denoiser = mlp_denoiser(prediction).double()
    loss = objective(denoiser, solver, steps)
    corrupted = loss.prepare(denoiser, batch(), KeyedNoise(0, range(16)), 16)

    def value() -> float:
        return loss.score(denoiser, corrupted).per_sample.mean().item()

    found = gradient(loss.score(denoiser, corrupted).per_sample.mean(), denoiser)
    direction = torch.randn(len(found), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5  # central differences: error of order step^2, rounding 1e-16 / step
    shift(denoiser, direction, step)
    above = value()
    shift(denoiser, direction, -2 * step)
    slope = (above - value()) / (2 * step)
    assert float(found @ direction) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("dropout", [False, True])
def test_recomputing_the_calls_changes_no_gradient(dropout):
    found = []
    for again in (False, True):
        denoiser = unet_denoiser(dropout=0.3).double().train()
        denoiser.backbone.dropout_generator = torch.Generator().manual_seed(5)
        given = {"solver_options": {"eta": 0.7}, "dropout": dropout, "checkpoint": again, "width": 16}
        loss = objective(denoiser, "ddim", 3, **given)
        x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        corrupted = loss.prepare(denoiser, {"x": x}, KeyedNoise(0, range(6)), 6)
        assert {"step/0", "step/1"} <= corrupted.extras.keys()
        found.append(gradient(loss.score(denoiser, corrupted).per_sample.mean(), denoiser))
        assert denoiser.training == dropout
    assert float(found[0].norm()) > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(labels, parts):
    denoiser = mlp_denoiser("v", labels=labels).double()
    loss = objective(denoiser, classes={"label": 3} if labels else None, drop=0.3 if labels else 0.0)
    corrupted = loss.prepare(denoiser, batch(16, labels), KeyedNoise(1, range(16)), 16)
    whole = loss.score(denoiser, corrupted)
    coupled = loss.couple(denoiser, corrupted, parts)
    rows = 16 // parts
    pieces = [loss.score(denoiser, coupled.rows(i * rows, (i + 1) * rows)) for i in range(parts)]
    torch.testing.assert_close(torch.cat([p.per_sample for p in pieces]), whole.per_sample, rtol=0, atol=1e-12)
    together = sum(gradient(p.per_sample.mean() / parts, denoiser) for p in pieces)
    expected = gradient(whole.per_sample.mean(), denoiser)
    assert float(expected.norm()) > 1e-4
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-12)


def test_parts_without_coupling_would_have_another_gradient():
    denoiser = mlp_denoiser("v").double()
    loss = objective(denoiser)
    corrupted = loss.prepare(denoiser, batch(), KeyedNoise(1, range(16)), 16)
    whole = gradient(loss.score(denoiser, corrupted).per_sample.mean(), denoiser)
    halves = sum(
        gradient(loss.score(denoiser, corrupted.rows(i, i + 8)).per_sample.mean() / 2, denoiser) for i in (0, 8)
    )
    assert float((whole - halves).norm()) > 1e-3 * float(whole.norm())


@pytest.mark.parametrize("name", KERNELS)
def test_at_a_point_mass_loss_and_gradient_vanish(name):
    x = torch.full((8, 2), 0.5, dtype=torch.float64, requires_grad=True)
    rows = mmd_rows(x, x.detach().clone(), kernel_for(name, x))
    (slope,) = torch.autograd.grad(rows.mean(), x)
    assert rows.mean().abs().item() < 1e-12 and slope.abs().max().item() < 1e-12


def test_on_a_fixed_batch_the_point_is_a_saddle():
    """Spread samples around the point: the unbiased estimate falls below 0, so noise must be fresh in every step."""
    point = torch.full((8, 2), 0.5, dtype=torch.float64)
    apart = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = point + 0.5 * (apart - apart.mean(0))
    for name in ("linear", "cubic"):
        assert float(mmd_rows(x, point, kernel_for(name, point)).mean()) < 0


def test_noise_is_fresh_in_every_batch():
    denoiser = mlp_denoiser("v").double()
    loss = objective(denoiser)
    first, second = (loss.prepare(denoiser, batch(), KeyedNoise(0, range(i, i + 16)), 16) for i in (0, 16))
    assert not bool((first.x == second.x).any())


def test_for_the_models_own_samples_the_expected_gradient_vanishes():
    """Batches of 64 against 64 other samples of the model; the mean of 60 gradients is within 3 standard errors of 0 in
    each of 6 fixed directions: false alarm 1.6 %, for one seed that is fixed."""
    denoiser = mlp_denoiser("v").double()
    loss = objective(denoiser)
    directions = torch.randn(
        6, sum(p.numel() for p in denoiser.parameters()), generator=torch.Generator().manual_seed(0)
    )
    found = []
    for k in range(60):
        real = loss.prepare(denoiser, batch(64), KeyedNoise(99, range(64 * k, 64 * k + 64)), 64)
        with torch.no_grad():
            own = loss.samples(denoiser, real)
        corrupted = loss.prepare(denoiser, {"x": own}, KeyedNoise(5, range(64 * k, 64 * k + 64)), 64)
        found.append(directions.double() @ gradient(loss.score(denoiser, corrupted).per_sample.mean(), denoiser))
    slopes = torch.stack(found)
    error = slopes.std(0) / len(slopes) ** 0.5
    assert bool((slopes.mean(0).abs() < 3 * error).all())


def test_with_labels_the_estimate_is_unbiased_though_rows_share_them():
    """Samples of a law in which the label decides everything, against that law: the mean over 300 batches of 6 is 0
    within 4 standard errors; pairs of one row, which share the label, must be left out for that."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for paired in (True, False):
        found = []
        for _ in range(300):
            label = torch.randint(3, (6,), generator=generator)
            x, y = (label[:, None] * 2.0 + 0.1 * torch.randn(6, 1, generator=generator).double() for _ in range(2))
            same = (label[:, None] == label).double()
            weights = (0.5 + 1.5 * same, 0.5 + 1.5 * same)
            kernel = kernel_for("gaussian", torch.tensor([[0.0], [2.0], [4.0]]).double())
            found.append(float(mmd_rows(x, y, kernel, weights=weights, paired=paired).mean()))
        mean, std = torch.tensor(found).mean(), torch.tensor(found).std()
        values.append(float(mean / (std / 300**0.5)))
    assert abs(values[0]) < 4
    assert values[1] < -4


def test_comparing_within_classes_notices_exchanged_classes():
    """Two classes that the samples exchange: the marginal law is right, the joint one is not."""
    label = torch.arange(64) % 2
    spread = 0.1 * torch.randn(2, 64, 2, generator=torch.Generator().manual_seed(0)).double()
    real = (2.0 * label[:, None] - 1.0) + spread[0]
    wrong = (1.0 - 2.0 * label[:, None]) + spread[1]
    kernel = kernel_for("rbf-mix", real)
    same = (label[:, None] == label).double()
    joint = (0.5 + 0.5 * 2 * same, 0.5 + 0.5 * 2 * same)
    assert abs(float(mmd_rows(wrong, real, kernel, paired=True).mean())) < 0.2  # balanced classes: about -8 / 64
    assert float(mmd_rows(wrong, real, kernel, weights=joint, paired=True).mean()) > 1.0


def test_the_queue_keeps_the_newest_and_only_training_reads_it():
    denoiser = mlp_denoiser("v").double()
    loss = objective(denoiser, queue=24)
    first, second = (
        loss.prepare(denoiser, {"x": batch()["x"] + shift_}, KeyedNoise(0, range(16)), 16) for shift_ in (0.0, 5.0)
    )
    for step, corrupted in enumerate((first, second)):
        loss.before_step(denoiser, corrupted)
        loss.after_step(denoiser, step)
    assert int(loss.filled) == 24
    assert torch.equal(loss.queue, torch.cat([second.target, first.target])[:24])
    with torch.no_grad():
        plain = objective(denoiser).score(denoiser, first).per_sample
        assert torch.equal(loss.score(denoiser, first).per_sample, plain)
    assert not torch.allclose(loss.score(denoiser, first).per_sample.detach(), plain)
    assert {"queue", "queue_class", "filled"} == loss.state_dict().keys()  # and no feature network


def test_the_queue_of_several_processes_holds_the_rows_of_all():
    """Two processes with half a batch each have the queue, and its labels, of one with the whole."""
    denoiser = mlp_denoiser("v", labels=True).double()
    options: dict[str, Any] = {"queue": 24, "classes": {"label": 3}}
    alone = objective(denoiser, **options)
    whole = [alone.prepare(denoiser, batch(16, True), KeyedNoise(0, range(16 * k, 16 * k + 16)), 16) for k in (0, 1)]
    rows: dict[str, Tensor] = {}
    both = [objective(denoiser, gather=lambda own: rows[str(own.dtype)], **options) for _ in (0, 1)]
    for step, corrupted in enumerate(whole):
        rows = {str(part.dtype): part for part in (corrupted.target, corrupted.extras["class"])}
        for rank, loss in enumerate([*both, alone]):
            loss.before_step(denoiser, corrupted.rows(8 * rank, 8 * rank + 8) if rank < 2 else corrupted)
        for loss in (*both, alone):
            loss.after_step(denoiser, step)
    for name, kept in alone.state_dict().items():
        assert all(torch.equal(loss.state_dict()[name], kept) for loss in both), name


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("pc-langevin", {}),
        ("annealed-langevin", {"updates": 2}),
        ("sde-dpm++2m", {"path": True}),
        ("ddim", {"eta": 1.0, "path": True}),
        ("ddpm", {}),
        ("euler-maruyama", {}),
    ],
)
def test_stochastic_samplers_walk_on_the_noise_that_was_drawn_ahead(solver, options):
    """The samples of a batch are those of the sampling loop with the same keyed noise, up to the order of sums."""
    denoiser = mlp_denoiser("v").double()
    loss = objective(denoiser, solver, 3, solver_options=options)
    noise = KeyedNoise(4, range(6))
    corrupted = loss.prepare(denoiser, batch(6), noise, 6)
    own = loss.samples(denoiser, corrupted.rows(2, 6))
    sampler = loss.samplers[0]
    given: dict[str, Any] = {"shape": (2,), "solver": sampler.solver, "grid": sampler.grid, "dtype": torch.float64}
    torch.testing.assert_close(own, sample(denoiser, noise=noise, **given).x[2:], rtol=1e-9, atol=1e-9)
    assert float(gradient(loss.score(denoiser, corrupted).per_sample.mean(), denoiser).norm()) > 0


def test_only_samples_that_are_not_finite_are_laid_to_the_learning_rate(monkeypatch):
    denoiser = mlp_denoiser("v").double()
    loss = objective(denoiser)
    corrupted = loss.prepare(denoiser, batch(), KeyedNoise(0, range(16)), 16)

    def refuse(*given: Any, **more: Any) -> None:
        raise PlanError("the plan is wrong")

    with torch.no_grad():
        next(denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"samples are not finite.*lower train.lr"):
        loss.score(denoiser, corrupted)
    monkeypatch.setattr("undiffuse.distillation.mmd.sample", refuse)
    with pytest.raises(PlanError, match=r"^the plan is wrong$"):
        loss.score(denoiser, corrupted)


def test_features_are_frozen_and_get_no_gradient():
    from undiffuse.distillation.mmd_features import given_features

    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).eval()
    before = [p.clone() for p in network.parameters()]
    denoiser = mlp_denoiser("v")
    features = given_features(network, denoiser.spec)
    loss = objective(denoiser, features=features, width=features.width)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.01)
    for k in range(3):
        data = batch(dtype=torch.float32)
        loss.score(denoiser, loss.prepare(denoiser, data, KeyedNoise(k, range(16)), 16)).per_sample.mean().backward()
        optimizer.step()
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert loss.state_dict().keys() == {"queue", "queue_class", "filled"}


def test_several_numbers_of_steps_take_turns_by_batch():
    denoiser = mlp_denoiser("v").double()
    grids = [make_grid(denoiser.process.schedule, n, "t") for n in (1, 4)]
    loss = MMDObjective(flat, [Sampler(make_solver("ddim"), grid) for grid in grids], width=2)
    corrupted = loss.prepare(denoiser, batch(160), KeyedNoise(0, range(160)), 16)
    chosen = corrupted.extras["sampler"].view(10, 16)
    assert bool((chosen == chosen[:, :1]).all()) and set(chosen[:, 0].tolist()) == {0, 1}


def test_dropped_labels_reach_the_network_and_guidance_is_part_of_the_sampler():
    denoiser = mlp_denoiser("v", labels=True).double()
    with torch.no_grad():
        for p in denoiser.parameters():
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64)
    noise = KeyedNoise(0, range(16))
    plain = objective(denoiser)
    corrupted = plain.prepare(denoiser, batch(16, True), noise, 16)
    conditional = plain.samples(denoiser, corrupted)
    dropping = objective(denoiser, drop=0.5)
    mixed = dropping.prepare(denoiser, batch(16, True), noise, 16)
    dropped = mixed.drop["label"]
    same = (dropping.samples(denoiser, mixed) == conditional).all(1)
    assert 0 < int(dropped.sum()) < 16 and torch.equal(same, ~dropped)
    guided = objective(denoiser, guide=lambda asked: ClassifierFreeGuidance(asked, 3.0))
    assert not torch.allclose(guided.samples(denoiser, corrupted), conditional)


class Affine(Denoiser):
    """x_0 = w x + b at every time, per dimension; at first the posterior mean of N(m, c^2) at alpha = 0.05."""

    def __init__(self, m: Tensor, c: Tensor, alpha: float = 0.05) -> None:
        super().__init__()
        self.process = GaussianProcess(TrigSchedule())
        w = alpha * c**2 / (alpha**2 * c**2 + 1 - alpha**2)
        self.w, self.b = nn.Parameter(w), nn.Parameter(m - w * alpha * m)

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
        return Posterior(self.w * x + self.b)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["rbf-mix", "linear"])
def test_one_step_of_an_affine_denoiser_learns_mean_and_spread(kernel):
    """Data N((1, -2), diag(.5, 2)^2). The linear kernel fixes the mean alone."""
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    denoiser = Affine(mean, std)
    assert bool((denoiser.w < 0.2 * std).all())  # one step from pure noise has the spread w: far too small
    loss = objective(denoiser, "ddim", 1, kernel=kernel, checkpoint=False)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.02)
    kept, steps = [], 1500
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - k / steps)
        noise = KeyedNoise(0, range(128 * k, 128 * k + 128))
        corrupted = loss.prepare(denoiser, {"x": mean + std * noise.normal("data", 0, (2,))}, noise, 128)
        optimizer.zero_grad()
        loss.score(denoiser, corrupted).per_sample.mean().backward()
        optimizer.step()
        if k >= steps - 300:
            kept.append(torch.stack([denoiser.b.detach(), denoiser.w.detach().abs()]))
    found = torch.stack(kept).mean(0)
    assert bool(((found[0] - mean).abs() < 0.02 * std).all())
    if kernel == "rbf-mix":
        torch.testing.assert_close(found[1], std, rtol=0.02, atol=0)
    else:
        assert bool((found[1] < 0.6 * std).any())


@pytest.mark.parametrize(
    ("mean", "std"), [((1.0, -2.0), (0.5, 2.0)), ((1.0, -2.0), (0.1, 0.1)), ((1.0, -2.42), (0.5, 1.57))]
)
def test_the_cubic_loss_of_an_affine_denoiser_is_that_of_moments(mean, std):
    """One step from pure noise draws N(b, diag(w^2)); 100 batches, 4 standard errors. The last is in the valley of
    equal third moments along which a fit by this kernel runs."""
    centre, spread = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    denoiser = Affine(centre, spread)
    with torch.no_grad():
        denoiser.b.copy_(torch.tensor(mean))
        denoiser.w.copy_(torch.tensor(std))
    loss, values = objective(denoiser, "ddim", 1, kernel="cubic", checkpoint=False), []
    for k in range(100):
        noise = KeyedNoise(0, range(64 * k, 64 * k + 64))
        corrupted = loss.prepare(denoiser, {"x": centre + spread * noise.normal("data", 0, (2,))}, noise, 64)
        with torch.no_grad():
            values.append(loss.score(denoiser, corrupted).per_sample.mean().double())
    found, own, real = torch.stack(values), _moments(denoiser.b, denoiser.w), _moments(centre, spread)
    exact = sum(math.comb(3, j + 1) / 2 ** (j + 1) * float((own[j] - real[j]).square().sum()) for j in range(3))
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / 100**0.5


def _moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[x], E[x x] and E[x x x] of N(mean, diag(std^2))."""
    m, cov = mean.detach().double(), torch.diag(std.detach().double() ** 2)
    mixed = torch.einsum("a,bc->abc", m, cov)
    third = torch.einsum("a,b,c->abc", m, m, m) + mixed + mixed.permute(1, 0, 2) + mixed.permute(2, 1, 0)
    return m, torch.outer(m, m) + cov, third


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(ValueError, match="ends at t="):
        Sampler(make_solver("ddim"), make_grid(TrigSchedule(), 4, "t", end="t_min"))
    with pytest.raises(ValueError, match="no gradient"):
        Sampler(make_solver("first-hitting"), make_grid(TrigSchedule(), 4, "t"))
    with pytest.raises(ConfigError, match="no weights"):
        check_tunable(mlp_denoiser("v").requires_grad_(False))
    with pytest.raises(ValueError, match="at least 2"):
        mmd_rows(torch.zeros(1, 2), torch.zeros(4, 2), kernel_for("cubic", torch.zeros(4, 2)))

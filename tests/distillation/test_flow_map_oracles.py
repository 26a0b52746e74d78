"""The exact Gaussian flow map makes every loss stationary (principles, section 6, check 13).

Where a teacher answers, the identities hold for every sample. Where single samples (x_0, eps) take its place, the
expected gradient is 0: the mean of the residual times any function of (x_t, t) must lie within 4 standard errors, false
alarm 6e-5 each.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distillation.exact import Tilted, exact_map, expected_gradient
from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import FlowMap, GaussianFlowMap
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.distillation.consistency import Consistency, consistency_range, consistency_times, rho_grid
from undiffuse.distillation.objective import advance
from undiffuse.distillation.options import ConsistencyOptions, ProgressiveOptions, SCMOptions
from undiffuse.distillation.progressive import Progressive, wanted_mean
from undiffuse.distillation.scm import SCM, scm_tangent
from undiffuse.noise import KeyedNoise

SCHEDULES = ("rf", "cosine", "trig", "vp", "ve")
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def law() -> tuple[Tensor, Tensor]:
    root = normals(3, 3, seed=2)
    return normals(3, seed=3), root @ root.T / 3 + 0.1 * torch.eye(3, dtype=torch.float64)


def exact(name: str) -> GaussianFlowMap:
    return GaussianFlowMap(*law(), process_of(name))


def shifted(flow_map: FlowMap) -> FlowMap:
    """A map that is not the exact one: losses at it must not be 0."""
    other = copy.deepcopy(flow_map)
    other.mu += 0.3  # type: ignore[union-attr,operator]
    return other


def data(n: int) -> dict[str, Any]:
    mean, cov = law()
    return {"x": mean + KeyedNoise(7, range(n)).normal("data", 0, (3,), mean.dtype) @ torch.linalg.cholesky(cov).T}


@pytest.mark.parametrize("name", SCHEDULES)
def test_progressive_the_target_is_what_one_step_must_predict(name: str) -> None:
    flow_map, x = exact(name), normals(5, 3, seed=1)
    t, m, s = (torch.full((5,), value, dtype=torch.float64) for value in (0.75, 0.5, 0.25))
    landed = flow_map(flow_map(x, t, m), m, s)
    torch.testing.assert_close(wanted_mean(flow_map, x, landed, t, s), flow_map.mean(x, t, s), **EXACT)
    loss = Progressive(flow_map, first_steps=16, rounds=3, steps=30)
    noise = KeyedNoise(0, range(32))
    for done in (0, 10, 29):
        loss.done.fill_(done)
        assert loss.losses(flow_map, data(32), noise).per_sample.max() < 1e-16
        assert loss.losses(shifted(flow_map), data(32), noise).per_sample.mean() > 1e-3


def test_progressive_two_ddim_steps_of_a_denoiser_are_the_target() -> None:
    """The target's DDIM step lands where two DDIM steps land, from any teacher and any schedule."""
    process = process_of("vp")
    teacher, x = GaussianDenoiser(*law(), process), normals(5, 3, seed=1)
    t, m, s = (torch.full((5,), value, dtype=torch.float64) for value in (0.75, 0.5, 0.25))
    landed = advance(teacher, advance(teacher, x, t, m, None), m, s, None)
    target = wanted_mean(exact("vp"), x, landed, t, s)
    bridge = process.bridge(0.75, 0.25)
    noise = (x - process.coefficients(0.75, x)[0] * target) / process.coefficients(0.75, x)[1]
    torch.testing.assert_close(bridge.x0 * target + bridge.eps * noise, landed, **EXACT)


def test_progressive_rounds_halve_the_steps() -> None:
    loss = Progressive(exact("rf"), first_steps=8, rounds=3, steps=30)
    assert [loss.round_of(step) for step in (0, 9, 10, 19, 20, 30)] == [0, 0, 1, 1, 2, 2]
    u = torch.tensor([0.0, 0.3, 0.99], dtype=torch.float64)
    t, m, s = loss.times(u, 0)
    assert (t.tolist(), m.tolist(), s.tolist()) == ([1.0, 0.75, 0.25], [0.875, 0.625, 0.125], [0.75, 0.5, 0.0])
    assert [part.tolist() for part in loss.times(u[:1], 2)] == [[1.0], [0.5], [0.0]]
    assert ProgressiveOptions(first_steps=64, last_steps=4).rounds == 4


def test_the_steps_done_are_those_of_the_buffer_whoever_writes_it() -> None:
    flow_map = exact("rf")
    loss = Consistency(flow_map, ConsistencyOptions(), steps=30)
    assert loss.steps_done == 0
    loss.after_step(flow_map, 7)
    assert loss.steps_done == 7
    loss.done.copy_(torch.tensor(12))  # as a checkpoint does
    assert loss.steps_done == 12
    assert loss.to(torch.float32).steps_done == 12
    loss.load_state_dict({**loss.state_dict(), "done": torch.tensor(20)})
    assert loss.steps_done == 20


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("plan", ["ict", "original"])
def test_consistency_the_end_is_constant_along_a_path(name: str, plan: Any) -> None:
    flow_map = exact(name)
    options = ConsistencyOptions(plan=plan, teacher="given")
    flow_map.end, flow_map.start = consistency_times(flow_map.process.schedule, options)
    loss = Consistency(flow_map, options, steps=100, teacher=exact(name))
    noise = KeyedNoise(0, range(32))
    for done in (0, 50, 100):
        loss.done.fill_(done)
        assert loss.losses(flow_map, data(32), noise).per_sample.max() < 1e-12
    x = normals(5, 3, seed=1)
    torch.testing.assert_close(
        flow_map(flow_map(x, 0.8, 0.4), 0.4, flow_map.end), flow_map(x, 0.8, flow_map.end), **EXACT
    )


def test_consistency_training_errs_by_the_square_of_the_step() -> None:
    """f is affine here, so E[f(x_n) | x_{n+1}] is f of the exact denoiser's DDIM step: an error of second order."""
    flow_map, x = exact("rf"), normals(64, 3, seed=1)
    teacher, schedule = GaussianDenoiser(*law(), flow_map.process), flow_map.process.schedule
    errors = []
    for levels in (81, 161, 321):
        rho = rho_grid(levels, 0.002, 80.0)
        t, s = (schedule.time(-torch.log(rho[k])).expand(64) for k in (levels // 2 + 1, levels // 2))
        apart = flow_map(advance(teacher, x, t, s, None), s, 0.002) - flow_map(x, t, 0.002)
        errors.append(float(apart.square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.4) and errors[1] / errors[2] == pytest.approx(4, abs=0.2)


def test_consistency_training_has_no_expected_gradient_at_the_exact_map() -> None:
    """Within 3.5 standard errors in 5 directions (false alarm 0.2 %): so many levels err by far less than that."""
    options = ConsistencyOptions(first_levels=1000, last_levels=1000)
    held = Tilted(exact_map("rf"))
    held.end, held.start = consistency_times(held.process.schedule, options)
    loss = Consistency(held, options, steps=10)
    mean, error = expected_gradient(loss, held)
    assert bool((mean.abs() < 3.5 * error).all()), mean / error
    with torch.no_grad():
        held.tilt += 0.1
    mean, error = expected_gradient(loss, held, batches=10)
    assert float((mean / error).abs().max()) > 10, mean / error


def test_consistency_distillation_makes_heun_steps() -> None:
    """Third order locally: halving the step divides the error by 8."""
    flow_map, x = exact("vp"), normals(64, 3, seed=1)
    teacher = GaussianDenoiser(*law(), flow_map.process)
    schedule, errors = flow_map.process.schedule, []
    for width in (0.08, 0.04, 0.02):
        rho = torch.tensor([1.0, 1.0 - width], dtype=torch.float64)
        t, s = (time.expand(64) for time in schedule.time(-torch.log(rho)))
        errors.append(float((advance(teacher, x, t, s, None, heun=True) - flow_map(x, t, s)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(8, abs=0.8) and errors[1] / errors[2] == pytest.approx(8, abs=0.4)


def test_consistency_levels_grow_as_published() -> None:
    def levels(steps: int, **options: Any) -> list[int]:
        loss = Consistency(exact("rf"), ConsistencyOptions(**options), steps=steps)
        return [loss.levels(step) for step in (0, steps // 2, steps)]

    assert levels(800) == [11, 161, 1281]  # 10 2^floor(k / 100) + 1
    assert levels(800, plan="original") == [2, 107, 151]  # ceil(sqrt(k / K (151^2 - 4) + 4) - 1) + 1
    assert levels(800, plan="original", teacher="given") == [18, 18, 18]


def test_consistency_draws_levels_log_normally() -> None:
    """Shares of levels against the published probabilities, within 4 standard errors of 40 000 draws."""
    loss = Consistency(exact("rf"), ConsistencyOptions(), steps=100)
    rho = rho_grid(11, 0.002, 80.0)
    drawn = loss._draw(rho, KeyedNoise(0, range(40_000)).uniform("time", 0, ()))
    edges = torch.erf((torch.log(rho) + 1.1) / (2 * 2**0.5))
    share = edges.diff() / (edges[-1] - edges[0])
    found = torch.bincount(drawn, minlength=10) / 40_000
    assert bool(((found - share).abs() < 4 * (share * (1 - share) / 40_000).sqrt() + 1e-12).all())
    even = Consistency(exact("rf"), ConsistencyOptions(plan="original"), steps=100)
    assert even._draw(rho, torch.tensor([0.0, 0.35, 0.9999])).tolist() == [0, 3, 9]


def test_consistency_of_few_values_takes_squares_where_targets_are_random() -> None:
    """The pseudo-Huber distance of items far apart is their distance, whose minimum over random targets is a median."""
    plain = Consistency(exact("rf"), ConsistencyOptions(), steps=9)
    taught = Consistency(exact("rf"), ConsistencyOptions(teacher="given"), steps=9, teacher=exact("rf"))
    assert [plain.huber(2), plain.huber(64), taught.huber(2)] == [None, 0.00054, 0.00054]
    assert Consistency(exact("rf"), ConsistencyOptions(huber=0.1), steps=9).huber(2) == 0.1
    square = torch.tensor([[9.0, 16.0], [0.0, 0.0]], dtype=torch.float64)
    assert plain._distance(square).tolist() == [12.5, 0.0]
    c = 0.00054 * 2**0.5
    torch.testing.assert_close(taught._distance(square), square.new_tensor([(25 + c * c) ** 0.5 - c, 0]), **EXACT)


def test_consistency_ends_stay_inside_the_schedule() -> None:
    options = ConsistencyOptions()
    low, high = consistency_range(process_of("ddpm").schedule, options)
    assert low == pytest.approx(1e-2, rel=0.01) and high == pytest.approx(80.0)
    end, start = consistency_times(process_of("rf").schedule, options)
    assert end == pytest.approx(0.002 / 1.002) and start == pytest.approx(80 / 81)


def scm(teacher: Any = None) -> SCM:
    plain = SCMOptions(normalise=False, adapt=False, warmup=0.0, teacher="given" if teacher is not None else "")
    loss = SCM(plain, steps=1, teacher=teacher)
    loss.done.fill_(1)
    return loss


def test_scm_the_tangent_is_0_at_the_exact_map() -> None:
    flow_map, noise = exact("trig"), KeyedNoise(0, range(64))
    for teacher in (exact("trig"), GaussianDenoiser(*law(), flow_map.process)):
        assert scm(teacher).losses(flow_map, data(64), noise).per_sample.max() < 1e-16
        assert scm(teacher).losses(shifted(flow_map), data(64), noise).per_sample.mean() > 1e-3


def test_scm_without_a_teacher_is_stationary_in_expectation() -> None:
    """E[g h(x, t)] = 0 for any h; h = 1, x and t here."""
    n = 20_000
    flow_map, noise = exact("trig"), KeyedNoise(3, range(n))
    loss = scm()
    rows = loss.prepare(flow_map, data(n), noise, n)
    t = 0.05 + 0.9 * rows.extras["u"][:, 0]
    x = flow_map.process.corrupt(rows.x, t, rows.extras["eps"])
    tangent = scm_tangent(flow_map, x, t, loss._velocity(rows, x, t), None)
    wrong = scm_tangent(shifted(flow_map), x, t, loss._velocity(rows, x, t), None)
    assert tangent.square().mean() > 1e-3  # of single samples it is not 0
    for h in (torch.ones_like(x), x, t[:, None].expand_as(x)):
        mean, error = (tangent * h).mean(0), (tangent * h).std(0) / n**0.5
        assert bool((mean.abs() < 4 * error).all())
    assert bool((wrong.mean(0).abs() > 4 * wrong.std(0) / n**0.5).all())


def test_scm_fades_the_networks_derivative_in() -> None:
    flow_map, x = exact("trig"), normals(8, 3, seed=1)
    t, velocity = torch.linspace(0.2, 0.8, 8, dtype=torch.float64), normals(8, 3, seed=4)
    none, half, whole = (scm_tangent(flow_map, x, t, velocity, None, share) for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + whole) / 2, **EXACT)
    loss = SCM(SCMOptions(warmup=0.5), steps=100)
    assert loss.fading == 50


def test_progressive_weighs_errors_by_the_truncated_snr() -> None:
    """max(SNR, 1) times the squared error of the mean: Salimans and Ho 2022, section 4."""
    flow_map, wrong, n = exact("vp"), shifted(exact("vp")), 32
    loss = Progressive(flow_map, first_steps=8, rounds=1, steps=9, teacher=flow_map)
    corrupted = loss.prepare(wrong, data(n), KeyedNoise(0, range(n)), n)
    t, _, s = loss.times(corrupted.extras["u"][:, 0], 0)
    x = flow_map.process.corrupt(corrupted.x, t, corrupted.extras["eps"])
    square = (wrong.mean(x, t, s) - flow_map.mean(x, t, s)).square().mean(1)
    alpha, sigma = flow_map.process.schedule.levels(t)
    expected = torch.maximum((alpha / sigma) ** 2, torch.ones_like(t)) * square
    assert bool((alpha > sigma).any()) and bool((alpha < sigma).any())
    torch.testing.assert_close(loss.score(wrong, corrupted).per_sample, expected, rtol=1e-6, atol=1e-12)


def test_consistency_weighs_a_pair_by_its_distance() -> None:
    """1 / (rho_{n+1} - rho_n): Song and Dhariwal 2023, section 3.5; "original" weighs all pairs alike."""
    n = 32
    for plan in ("ict", "original"):
        options = ConsistencyOptions(plan=plan, teacher="given")  # type: ignore[arg-type]
        flow_map = exact("vp")
        flow_map.end, flow_map.start = consistency_times(flow_map.process.schedule, options)
        wrong = shifted(flow_map)
        loss = Consistency(wrong, options, steps=9, teacher=flow_map)
        corrupted = loss.prepare(wrong, data(n), KeyedNoise(0, range(n)), n)
        found, schedule = loss.score(wrong, corrupted), flow_map.process.schedule
        rho = rho_grid(loss.levels(0), *consistency_range(schedule, options))
        place = torch.searchsorted(rho, torch.exp(-found.half_logsnr) * (1 - 1e-9))  # type: ignore[operator]
        t, s = (schedule.time(-torch.log(rho[k])) for k in (place, place - 1))
        x = flow_map.process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        before = advance(flow_map, x, t, s, None, heun=True)
        apart = wrong(x, t, torch.full_like(t, wrong.end)) - wrong(before, s, torch.full_like(t, wrong.end))
        weight = 1 / (rho[place] - rho[place - 1]) if plan == "ict" else torch.ones_like(t)
        torch.testing.assert_close(found.per_sample, weight * loss._distance(apart.square()), rtol=1e-5, atol=1e-12)


def test_scm_a_tangent_of_0_stays_0_where_tangents_are_normalised() -> None:
    loss = SCM(SCMOptions(normalise=True, adapt=False, warmup=0.0, teacher="given"), steps=1, teacher=exact("trig"))
    loss.done.fill_(1)
    assert loss.losses(exact("trig"), data(64), KeyedNoise(0, range(64))).per_sample.max() < 1e-12

"""`GaussianProcess`: bridges, kernels and what it refuses; its conversions are in tests/oracles/test_principles.py."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import SCHEDULE_NAMES, normals, process_of
from undiffuse.denoisers.posterior import Posterior
from undiffuse.process.gaussian import GaussianProcess

TIMES = (1.0, 0.9, 0.5, 0.1, 0.01, 0.0)


def level(process: GaussianProcess, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return float(process.schedule.alpha(time)), float(process.schedule.sigma(time))


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize(
    ("rule", "eta"),
    [
        ("ddim", 0.0),
        ("ddim", 0.5),
        ("ddim", 1.0),
        ("fresh", 0.0),
        ("brownian", 0.0),
        ("brownian", 0.7),
        ("brownian", 2.0),
    ],
)
def test_every_bridge_keeps_the_marginal(name: str, rule: str, eta: float) -> None:
    process = process_of(name)
    for t, s in itertools.combinations(TIMES, 2):
        bridge = process.bridge(t, s, rule, eta)  # type: ignore[arg-type]
        alpha, sigma = level(process, s)
        assert all(isinstance(c, float) and math.isfinite(c) for c in bridge)
        assert bridge.x0 == pytest.approx(alpha, rel=1e-12)
        assert math.hypot(bridge.eps, bridge.std) == pytest.approx(sigma, rel=1e-12, abs=1e-15)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("rule", ["ddim", "brownian"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_two_bridges_in_a_row_keep_the_marginal_of_one(name: str, rule: str, eta: float) -> None:
    process, mean, noise = process_of(name), normals(4, 3, seed=1), normals(4, 3, seed=2)
    x = process.corrupt(mean, 0.9, noise)
    half = process.transition(x, Posterior(mean), 0.9, 0.4, torch.zeros_like(x), rule, eta)  # type: ignore[arg-type]
    bridge = process.bridge(0.9, 0.4, rule, eta)  # type: ignore[arg-type]
    torch.testing.assert_close(half, bridge.x0 * mean + bridge.eps * noise, rtol=1e-10, atol=1e-10)


def test_a_transition_where_nothing_moves_is_the_identity_bit_for_bit() -> None:
    process, x, z = process_of("vp"), normals(3, 4, seed=1), normals(3, 4, seed=2)
    post = Posterior(normals(3, 4, seed=3))
    for rule, eta in (("ddim", 0.0), ("ddim", 1.0), ("fresh", 0.0), ("brownian", 1.0)):
        for t in (0.0, 0.3, 1.0):
            assert torch.equal(process.transition(x, post, t, t, z, rule, eta), x)  # type: ignore[arg-type]
        times = torch.tensor([[0.5, 0.3, 0.0, 1.0]], dtype=torch.float64).expand(3, 4)
        s = torch.tensor([[0.5, 0.2, 0.0, 1.0]], dtype=torch.float64).expand(3, 4)
        moved = process.transition(x, post, times, s, z, rule, eta)  # type: ignore[arg-type]
        assert torch.equal(moved[:, [0, 2, 3]], x[:, [0, 2, 3]])
        assert moved.isfinite().all()
        alone = process.transition(x[:, 1:2], Posterior(post.mean[:, 1:2]), 0.3, 0.2, z[:, 1:2], rule, eta)  # type: ignore[arg-type]
        torch.testing.assert_close(moved[:, 1:2], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_the_forward_kernel_composes(name: str) -> None:
    process = process_of(name)
    for s, t, u in ((0.0, 0.2, 0.9), (0.1, 0.5, 0.99), (0.3, 0.3, 1.0), (1.0, 1.0, 1.0)):
        (a, p), (b, q), (c, r) = (process.forward_kernel(*pair) for pair in ((s, t), (t, u), (s, u)))
        assert a * b == pytest.approx(c, rel=1e-10, abs=1e-14)
        assert (b * p) ** 2 + q**2 == pytest.approx(r**2, rel=1e-9, abs=1e-12)  # type: ignore[operator]
        alpha, sigma = level(process, s)
        alpha_t, sigma_t = level(process, t)
        assert a * alpha == pytest.approx(alpha_t, rel=1e-10)
        assert (a * sigma) ** 2 + p**2 == pytest.approx(sigma_t**2, rel=1e-9)  # type: ignore[operator]


def test_staying_in_pure_noise_is_the_identity() -> None:
    process, x, z = process_of("rf"), normals(2, 3, seed=1), normals(2, 3, seed=2)
    assert torch.equal(process.renoise(x, 1.0, 1.0, z), x)
    t = torch.tensor([[1.0, 0.5, 0.2]], dtype=torch.float64).expand(2, 3)
    s = torch.tensor([[1.0, 0.5, 0.6]], dtype=torch.float64).expand(2, 3)
    risen = process.renoise(x, t, s, z)
    assert torch.equal(risen[:, :2], x[:, :2])
    assert risen.isfinite().all()


def test_float_times_and_tensor_times_give_the_same_numbers() -> None:
    process, x = process_of("cosine"), normals(3, 2, seed=1)
    for t in (0.0, 1e-3, 0.4, 1.0):
        for shape in ((), (3,), (3, 2), (1, 2)):
            time = torch.full(shape, t, dtype=torch.float64)
            post = Posterior(normals(3, 2, seed=2))
            for convert in (process.eps, process.score, process.velocity, process.v):
                torch.testing.assert_close(convert(x, post, time), convert(x, post, t), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_s_dtype_is_kept_whatever_the_time_s(dtype: torch.dtype) -> None:
    process, x = process_of("vp"), normals(3, 2).to(dtype)
    for t in (0.4, torch.full((3,), 0.4), torch.full((3,), 0.4, dtype=torch.float64)):
        assert process.corrupt(x, t, x).dtype == dtype
        assert process.transition(x, Posterior(x), t, 0.5 * t, x, eta=1.0).dtype == dtype
        assert process.mean_from("v", x, x, t).dtype == dtype


def test_with_mean_says_which_noise_goes_with_it() -> None:
    process, x, mean, new = process_of("vp"), normals(3, 2), normals(3, 2, seed=1), normals(3, 2, seed=2)
    post, t = Posterior(mean), 0.6
    own, fresh = (process.with_mean(post, x, t, new, eps=e) for e in ("own", "new"))  # type: ignore[arg-type]
    alpha, sigma = level(process, t)
    torch.testing.assert_close(process.eps(x, own, t), (x - alpha * mean) / sigma, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.eps(x, fresh, t), (x - alpha * new) / sigma, rtol=1e-12, atol=1e-12)
    assert torch.equal(own.mean, new)
    assert torch.equal(fresh.mean, new)
    # correcting twice keeps the first noise with "own" and drops it with "new"
    twice = process.with_mean(own, x, t, mean, eps="own")
    assert torch.equal(process.eps(x, twice, t), process.eps(x, own, t))
    assert process.with_mean(own, x, t, mean, eps="new").eps is None


def test_wrong_arguments_are_refused() -> None:
    process, x = process_of("vp"), normals(2, 2)
    cases = (
        (lambda: process.bridge(0.3, 0.5), "up to s=0.5"),
        (lambda: process.bridge(0.5, 0.3, "other"), "bridge rule 'other'"),  # type: ignore[arg-type]
        (lambda: process.bridge(0.5, 0.3, "ddim", 1.5), "eta=1.5"),
        (lambda: process.bridge(0.5, 0.3, "brownian", -0.5), "eta=-0.5"),
        (lambda: process.forward_kernel(0.5, 0.3), "down to s=0.3"),
        (lambda: process.mean_from("score", x, x, 0.5), "prediction='score'"),  # type: ignore[arg-type]
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_targets_are_finite_at_both_ends() -> None:
    x, z = normals(3, 2, seed=1), normals(3, 2, seed=2)
    for name in SCHEDULE_NAMES:
        process = process_of(name)
        for t in (0.0, 1.0, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)):
            for kind in ("data", "noise", "velocity", "v", "edm"):
                target: Tensor = process.target(kind, x, z, t)  # type: ignore[arg-type]
                assert target.isfinite().all(), (name, kind, t)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("kind", ["data", "noise", "velocity", "v", "edm"])
def test_predictions_stay_invertible_below_the_smallest_formula_time(name: str, kind: str) -> None:
    process, mean, noise = process_of(name), normals(3, 2, seed=1), normals(3, 2, seed=2)
    for t in (0.9 * process.schedule.t_min, 0.1 * process.schedule.t_min):
        x = process.corrupt(mean, t, noise)
        target = process.target(kind, mean, noise, t)  # type: ignore[arg-type]
        found = process.mean_from(kind, target, x, t)  # type: ignore[arg-type]
        torch.testing.assert_close(found, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_targets_of_data_of_any_spread_are_inverted(name: str) -> None:
    process, mean, noise = process_of(name), normals(3, 2, seed=1), normals(3, 2, seed=2)
    x = process.corrupt(mean, 0.4, noise)
    for data_std in (0.5, 2.0):
        target = process.target("edm", mean, noise, 0.4, data_std)
        found = process.mean_from("edm", target, x, 0.4, data_std)
        torch.testing.assert_close(found, mean, rtol=1e-9, atol=1e-9)

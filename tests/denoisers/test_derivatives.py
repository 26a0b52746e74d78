"""jvp, vjp, trace and the covariance of a denoiser, against full Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, spec_mixture
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.empirical import EmpiricalDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.noise import KeyedNoise
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec

PROCESS = process_of("vp")


def jacobian(denoiser: Denoiser, x: Tensor, t: Time) -> Tensor:
    """(B, D, D) by reverse mode, one item at a time."""
    rows = []
    for i in range(len(x)):
        time = t[i : i + 1] if isinstance(t, Tensor) else t
        full = torch.autograd.functional.jacobian(lambda y, time=time: denoiser.mean(y, time).flatten(), x[i : i + 1])
        rows.append(full.reshape(x[0].numel(), x[0].numel()))
    return torch.stack(rows)


def unet() -> NetworkDenoiser:
    spec = DataSpec(kind="image", shape=(1, 4, 4))
    network = build_network(UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, attention=(-1,)), spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return NetworkDenoiser(network.double(), PROCESS).eval()


def cases() -> list[tuple[str, Denoiser, tuple[int, ...]]]:
    return [
        ("mixture", spec_mixture(PROCESS), (2,)),
        ("empirical", EmpiricalDenoiser(normals(9, 2, 2, seed=5), PROCESS, chunk=4), (2, 2)),
        ("unet", unet(), (1, 4, 4)),
    ]


@pytest.mark.parametrize(("name", "denoiser", "shape"), cases(), ids=lambda c: c if isinstance(c, str) else "")
@pytest.mark.parametrize("per_item", [False, True])
def test_jvp_vjp_and_trace_are_those_of_the_jacobian(
    name: str, denoiser: Denoiser, shape: tuple[int, ...], per_item: bool
) -> None:
    x, v = normals(3, *shape, seed=1), normals(3, *shape, seed=2)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64) if per_item else 0.4
    full = jacobian(denoiser, x, t)
    mean, forward = denoiser.jvp(x, t, v)
    torch.testing.assert_close(mean, denoiser.mean(x, t), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward.flatten(1), torch.einsum("bij,bj->bi", full, v.flatten(1)), rtol=1e-8, atol=1e-9)
    mean, backward = denoiser.vjp(x, t, v)
    torch.testing.assert_close(mean, denoiser.mean(x, t), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        backward.flatten(1), torch.einsum("bij,bi->bj", full, v.flatten(1)), rtol=1e-8, atol=1e-9
    )
    expected = full.diagonal(dim1=1, dim2=2).sum(1)
    for chunk in (None, 1, 3):
        torch.testing.assert_close(denoiser.trace(x, t, chunk=chunk), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_the_mean_over_many_probes_is_the_exact_trace(kind: str) -> None:
    """Within 3 standard errors for each of 4 items (false alarm 1 %; the seed is fixed)."""
    denoiser, x, count = GaussianDenoiser(normals(3), _cov(), PROCESS), normals(4, 3, seed=1), 4000
    noise = KeyedNoise(0, range(count))
    if kind == "normal":
        probes = noise.normal("probe", 0, (4, 3), torch.float64)
    else:
        probes = 2.0 * (noise.uniform("probe", 0, (4, 3)) < 0.5).double() - 1.0
    exact = denoiser.trace(x, 0.5)
    single = torch.stack([denoiser.trace(x, 0.5, probes=p[None]) for p in probes[:400]])
    error = single.std(0) / math.sqrt(count)
    found = denoiser.trace(x, 0.5, probes=probes, chunk=500)
    assert bool(((found - exact).abs() < 3 * error).all())
    assert bool((error > 0).all())


def _cov() -> Tensor:
    root = normals(3, 3, seed=9)
    return root @ root.T


def test_the_divergence_of_the_velocity_follows_from_the_trace() -> None:
    """div v = d sigma' / sigma - (w / sigma) tr dD/dx with w = alpha sigma' - sigma alpha' (principles, 2.6)."""
    denoiser, x, t = spec_mixture(PROCESS), normals(4, 2, seed=1), 0.4
    time = torch.tensor(t, dtype=torch.float64)
    schedule = PROCESS.schedule
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    d_alpha, d_sigma = schedule.alpha_slope(time), schedule.sigma_slope(time)
    divergence = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda y: PROCESS.velocity(y, denoiser(y, t), t).flatten(), x[i : i + 1])
            .reshape(2, 2)
            .trace()
            for i in range(4)
        ]
    )
    expected = 2 * d_sigma / sigma - (alpha * d_sigma - sigma * d_alpha) / sigma * denoiser.trace(x, t)
    torch.testing.assert_close(divergence, expected, rtol=1e-9, atol=1e-9)


def test_the_covariance_of_a_gaussian_is_its_closed_form() -> None:
    cov, t, v = _cov(), 0.3, normals(4, 3, seed=2)
    denoiser = GaussianDenoiser(normals(3), cov, PROCESS)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = PROCESS.schedule.alpha(time), PROCESS.schedule.sigma(time)
    noisy = alpha**2 * cov + sigma**2 * torch.eye(3, dtype=torch.float64)
    expected = cov - alpha**2 * cov @ torch.linalg.solve(noisy, cov)
    torch.testing.assert_close(denoiser.cov(normals(4, 3), t, v), v @ expected, rtol=1e-9, atol=1e-10)


def test_tokens_have_no_covariance() -> None:
    from tests.oracles.masked import joint_denoiser, triple_joint

    with pytest.raises(TypeError, match="Gaussian"):
        joint_denoiser(triple_joint()).cov(torch.zeros(1, 3), 0.5, torch.zeros(1, 3))


def test_derivatives_work_inside_no_grad_and_leave_no_graph() -> None:
    denoiser, x = unet(), normals(2, 1, 4, 4)
    with torch.no_grad():
        for value in (*denoiser.jvp(x, 0.5, x), *denoiser.vjp(x, 0.5, x), denoiser.trace(x, 0.5)):
            assert value.isfinite().all()
            assert not value.requires_grad

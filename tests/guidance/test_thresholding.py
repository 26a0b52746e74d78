"""Thresholding against its definition, diffusers' own, and the process's account of the noise."""

from __future__ import annotations

import pytest
import torch

from tests.guidance.helpers import COND, LABELS, Counting
from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.thresholding import Thresholding, quantile_of
from undiffuse.process.grids import make_grid
from undiffuse.sampling.registry import make_solver

PROCESS = process_of("vp")


class Constant(Denoiser):
    """Answers with the mean it was given."""

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.process, self.answer = PROCESS, mean

    def posterior(self, x, t, cond):  # type: ignore[no-untyped-def]
        return Posterior(self.answer)


@pytest.mark.parametrize("size", [1, 7, 64, 201])
@pytest.mark.parametrize("q", [0.5, 0.9, 0.995, 1.0])
def test_the_quantile_is_that_of_torch(size: int, q: float) -> None:
    values = normals(3, size, seed=size)
    torch.testing.assert_close(quantile_of(values, q), torch.quantile(values, q, dim=1), rtol=1e-12, atol=1e-12)


def test_dynamic_thresholding_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9, clip_sample=False
    )
    mean = (2 * normals(4, 3, 8, 8, seed=1) * torch.tensor([0.1, 0.5, 1.0, 2.0]).view(-1, 1, 1, 1)).float()
    found = Thresholding(Constant(mean), "dynamic", quantile=0.9)(mean, 0.5).mean
    torch.testing.assert_close(found, scheduler._threshold_sample(mean), rtol=1e-6, atol=1e-6)
    assert float(found.abs().max()) <= 1


def test_what_lies_within_is_left_alone_bit_for_bit() -> None:
    mean = normals(3, 50, seed=2).clamp(-1, 1)
    for mode in ("static", "dynamic"):
        assert torch.equal(Thresholding(Constant(mean), mode)(mean, 0.5).mean, mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_statistics_are_of_each_sample(mode: str) -> None:
    mean = 3 * normals(4, 30, seed=3)
    whole = Thresholding(Constant(mean), mode, quantile=0.8)(mean, 0.5).mean  # type: ignore[arg-type]
    for i in range(4):
        row = mean[i : i + 1]
        assert torch.equal(Thresholding(Constant(row), mode, quantile=0.8)(row, 0.5).mean, whole[i : i + 1])  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_the_noise_follows_the_mean_or_is_kept(mode: str) -> None:
    exact, x = spec_mixture(PROCESS, LABELS), normals(5, 2, seed=1)
    plain = exact(x, 0.5)
    alpha, sigma = PROCESS.coefficients(0.5, x)
    for t in (0.5, torch.full((5, 2), 0.5, dtype=torch.float64)):
        new = Thresholding(exact, mode, bound=0.3, quantile=0.9)(x, t)  # type: ignore[arg-type]
        own = Thresholding(exact, mode, bound=0.3, quantile=0.9, noise="own")(x, t)  # type: ignore[arg-type]
        assert torch.equal(new.mean, own.mean) and not torch.allclose(new.mean, plain.mean)
        torch.testing.assert_close(PROCESS.eps(x, new, t), (x - alpha * new.mean) / sigma, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(PROCESS.eps(x, own, t), PROCESS.eps(x, plain, 0.5), rtol=1e-10, atol=1e-10)


def test_a_ddim_step_with_its_own_noise_is_that_of_diffusers() -> None:
    """x_s = alpha_s clip(mean) + sigma_s eps with the network's eps; with new noise eps follows the clipped mean."""
    exact, x = spec_mixture(PROCESS, LABELS), normals(5, 2, seed=1)
    grid = torch.tensor([0.6, 0.3], dtype=torch.float64)
    alpha, sigma = PROCESS.coefficients(0.3, x)
    for noise in ("own", "new"):
        bounded = Thresholding(exact, "static", bound=0.2, noise=noise)  # type: ignore[arg-type]
        post = bounded(x, 0.6)
        expected = alpha * post.mean + sigma * PROCESS.eps(x, post, 0.6)
        torch.testing.assert_close(run(bounded, make_solver("ddim"), grid, x).x, expected, rtol=1e-10, atol=1e-10)


def test_the_last_step_to_zero_ends_in_the_range() -> None:
    guided = ClassifierFreeGuidance(spec_mixture(PROCESS, LABELS), 4.0)
    grid = make_grid(PROCESS.schedule, 8)
    for solver in ("ddim", "dpm++2m", "edm-heun"):
        ends = [
            run(wrapped, make_solver(solver), grid, normals(5, 2), cond=COND).x.abs().max()
            for wrapped in (guided, Thresholding(guided, "static", bound=0.9))
        ]
        assert float(ends[0]) > 1.0 and float(ends[1]) <= 0.9 + 1e-12


def test_it_costs_nothing_and_lets_gradients_through() -> None:
    counting = Counting(spec_mixture(PROCESS, LABELS))
    bounded = Thresholding(counting, "dynamic", bound=0.5, quantile=0.9)
    grid, start = make_grid(PROCESS.schedule, 5), normals(5, 2, seed=4).requires_grad_()
    result = run(bounded, make_solver("ddim"), grid, start, grad=True)
    assert result.nfe == 5 == counting.count
    (slope,) = torch.autograd.grad(result.x.sum(), start)
    assert bool(slope.isfinite().all()) and bool((slope != 0).any())


def test_what_does_not_fit_is_refused() -> None:
    exact = spec_mixture(PROCESS)
    for options, message in (
        ({"mode": "hard"}, "'hard' is unknown"),
        ({"bound": 0.0}, "bound=0"),
        ({"quantile": 1.5}, "quantile=1.5"),
        ({"noise": "old"}, "noise='old'"),
    ):
        with pytest.raises(ValueError, match=message):
            Thresholding(exact, **options)  # type: ignore[arg-type]

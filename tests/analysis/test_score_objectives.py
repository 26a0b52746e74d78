"""The identities of score matching and flow matching (principles, 2.9 and check 18), on exact oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, spec_mixture
from undiffuse.analysis import score_matching
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.process.gaussian import GaussianProcess

PROCESS, T = process_of("vp"), 0.4
ALPHA, SIGMA = (float(c) for c in PROCESS.coefficients(T, torch.zeros(1)))
SPREAD, COUNT = 0.6, 200_000


class Affine(Denoiser):
    """D = a x + b, with a score that is affine, too."""

    def __init__(self, a: float, b: float, process: GaussianProcess = PROCESS) -> None:
        super().__init__()
        self.a, self.b, self.process = a, b, process

    def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
        return Posterior(self.a * x + self.b)


def agrees(samples: Tensor, expected: float) -> bool:
    """Whether a mean is within 3.5 standard errors (false alarm 0.05 %; the seed is fixed) and the error is small."""
    error = float(samples.std()) / len(samples) ** 0.5
    return abs(float(samples.mean()) - expected) < 3.5 * error


def values(form: str, **options: object) -> Tensor:
    x0, noise = SPREAD * normals(COUNT, 2, seed=1), normals(COUNT, 2, seed=2)
    return score_matching(Affine(0.4, 0.1), x0, noise, T, form, **options)  # type: ignore[arg-type]


def test_the_objectives_differ_by_their_closed_constants() -> None:
    """For N(0, c^2 I) in two dimensions E|S|^2 = 2 / (alpha^2 c^2 + sigma^2) and E|eps / sigma|^2 = 2 / sigma^2."""
    truth = GaussianDenoiser(torch.zeros(2), SPREAD**2 * torch.eye(2), PROCESS)
    explicit = values("explicit", truth=truth)
    size = 2 / (ALPHA**2 * SPREAD**2 + SIGMA**2)
    assert agrees(values("denoising") - explicit, 0.5 * 2 / SIGMA**2 - 0.5 * size)
    assert agrees(values("implicit") - explicit, -0.5 * size)
    signs = torch.where(normals(1, COUNT, 2, seed=3) > 0, 1.0, -1.0).double()
    assert agrees(values("sliced", probes=signs) - explicit, -0.5 * size)
    gaussian = normals(1, COUNT, 2, seed=4)
    assert agrees(values("sliced", probes=gaussian) - explicit, -0.5 * size)


def test_the_explicit_objective_of_an_affine_score_is_its_closed_form() -> None:
    """s = ((alpha a - 1) x + alpha b) / sigma^2 against S = -x / v: E|s - S|^2 / 2 per element, twice."""
    v = ALPHA**2 * SPREAD**2 + SIGMA**2
    slope, shift = (ALPHA * 0.4 - 1) / SIGMA**2 + 1 / v, ALPHA * 0.1 / SIGMA**2
    truth = GaussianDenoiser(torch.zeros(2), SPREAD**2 * torch.eye(2), PROCESS)
    assert agrees(values("explicit", truth=truth), slope**2 * v + shift**2)


def test_the_conditional_objective_has_the_gradient_of_the_marginal_one() -> None:
    """d/dtheta E|u - (alpha' x0 + sigma' eps)|^2 = d/dtheta E|u - v|^2 for u = theta_1 x + theta_2 (flow matching)."""
    mixture = spec_mixture(PROCESS)
    uniform = torch.rand(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0, noise = mixture.sample_data(normals(COUNT, 2, seed=1), uniform), normals(COUNT, 2, seed=2)
    x = PROCESS.corrupt(x0, T, noise)
    velocity = PROCESS.velocity(x, mixture(x, T), T)
    conditional = PROCESS.target("velocity", x0, noise, T)
    for feature in (x, torch.ones_like(x)):  # du/dtheta
        assert agrees((2 * (velocity - conditional) * feature).sum(1), 0.0)


def test_the_error_of_a_denoiser_is_its_distance_to_the_posterior_plus_the_posterior_s_variance() -> None:
    """E|D - x0|^2 = E|D - D*|^2 + E tr Cov, with tr Cov = (sigma^2 / alpha) tr dD*/dx."""
    mixture = spec_mixture(PROCESS)
    uniform = torch.rand(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0 = mixture.sample_data(normals(COUNT, 2, seed=1), uniform)
    x = PROCESS.corrupt(x0, T, normals(COUNT, 2, seed=2))
    with torch.no_grad():
        best, variance = mixture.mean(x, T), SIGMA**2 / ALPHA * mixture.trace(x, T)
    answer = Affine(0.4, 0.1).mean(x, T)
    gap = (answer - x0).square().sum(1) - (answer - best).square().sum(1) - variance
    assert agrees(gap, 0.0)
    assert float(gap.std()) > 0.1  # the identity holds on average, not for each draw


def test_forms_that_lack_what_they_need_are_refused() -> None:
    x = normals(4, 2)
    with pytest.raises(ValueError, match="form='exact' is unknown"):
        score_matching(Affine(1.0, 0.0), x, x, T, "exact")  # type: ignore[arg-type]
    for form in ("explicit", "sliced"):
        with pytest.raises(ValueError, match="does not fit"):
            score_matching(Affine(1.0, 0.0), x, x, T, form)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        score_matching(Affine(1.0, 0.0), x, x, T, "implicit", probes=x[None])

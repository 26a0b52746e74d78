"""The evidence bound of masked diffusion by enumeration: its forms agree, and exact denoisers reach the entropy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles.masked import all_states, binary_joint, joint_denoiser
from undiffuse.process.keep import CosineKeep, KeepSchedule, LinearKeep, PolynomialKeep

Probs = Callable[[Tensor], Tensor]  # tokens with masks (B, L) -> probabilities (B, L, K)
DENOISER = joint_denoiser(binary_joint())
CLEAN = all_states(2, 6)


def exact(x: Tensor) -> Tensor:
    return DENOISER(x, 0.5).probs


def inconsistent(x: Tensor) -> Tensor:
    """The exact answer disturbed by a fixed error that differs from context to context."""
    code = (x * 3 ** torch.arange(6)).sum(-1, keepdim=True) + 729 * torch.arange(6)
    error = torch.sin(code.double() * 12.9898)
    logits = exact(x).log() + torch.stack((error, -error), dim=-1)
    return torch.where((x == 2)[..., None], logits, exact(x).log()).softmax(-1)


def subset_losses(probs: Probs) -> dict[tuple[int, ...], Tensor]:
    """For every set of masked places: the summed cross-entropy there, for every clean sequence (64,)."""
    losses = {}
    for count in range(1, 7):
        for places in itertools.combinations(range(6), count):
            x = CLEAN.clone()
            x[:, places] = 2
            nll = -probs(x).gather(-1, CLEAN[..., None])[..., 0].log()
            losses[places] = nll[:, places].sum(1)
    return losses


def count_form(losses: dict[tuple[int, ...], Tensor]) -> Tensor:
    """E over n uniform on 1..L and a random set of n places of (L / n) times the loss."""
    weights = {places: 1 / (len(places) * math.comb(6, len(places))) for places in losses}
    return torch.stack([weights[places] * loss for places, loss in losses.items()]).sum(0)


def time_form(losses: dict[tuple[int, ...], Tensor], keep: KeepSchedule) -> Tensor:
    """The integral of -a' / (1 - a) times the expected loss, by Gauss-Legendre quadrature with 64 points."""
    points, weights = np.polynomial.legendre.leggauss(64)
    t = torch.from_numpy((points + 1) / 2)
    drop, rate = keep.drop(t), -keep.slope(t) / keep.drop(t) * torch.from_numpy(weights / 2)
    total = torch.zeros(len(CLEAN), dtype=torch.float64)
    for places, loss in losses.items():
        total += (rate * drop ** len(places) * (1 - drop) ** (6 - len(places))).sum() * loss
    return total


def permutation_form(probs: Probs) -> Tensor:
    """The mean over all orders of the autoregressive loss."""
    steps: dict[tuple[frozenset[int], int], Tensor] = {}
    for seen in (frozenset(c) for n in range(6) for c in itertools.combinations(range(6), n)):
        x = CLEAN.clone()
        x[:, [place for place in range(6) if place not in seen]] = 2
        nll = -probs(x).gather(-1, CLEAN[..., None])[..., 0].log()
        steps.update({(seen, place): nll[:, place] for place in range(6) if place not in seen})
    orders = list(itertools.permutations(range(6)))
    return torch.stack(
        [torch.stack([steps[frozenset(order[:i]), order[i]] for i in range(6)]).sum(0) for order in orders]
    ).mean(0)


@pytest.mark.parametrize("probs", [exact, inconsistent])
def test_the_three_forms_of_the_bound_agree(probs):
    losses = subset_losses(probs)
    counted = count_form(losses)
    torch.testing.assert_close(time_form(losses, LinearKeep()), counted, rtol=0, atol=1e-8)
    torch.testing.assert_close(permutation_form(probs), counted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("keep", [CosineKeep(), PolynomialKeep(2.0), PolynomialKeep(3.0)])
def test_the_bound_does_not_depend_on_the_keep_schedule(keep):
    losses = subset_losses(inconsistent)
    torch.testing.assert_close(time_form(losses, keep), count_form(losses), rtol=0, atol=1e-6)


def test_the_bound_of_the_exact_denoiser_is_the_log_probability_and_its_mean_the_entropy():
    bound = count_form(subset_losses(exact))
    log_prob = DENOISER.log_prob(CLEAN)
    torch.testing.assert_close(bound, -log_prob, rtol=0, atol=1e-12)
    assert float((log_prob.exp() * bound).sum()) == pytest.approx(DENOISER.entropy(), abs=1e-12)


def test_an_inconsistent_denoiser_stays_above_the_entropy_on_average_only():
    bound = count_form(subset_losses(inconsistent))
    log_prob = DENOISER.log_prob(CLEAN)
    assert float((log_prob.exp() * bound).sum()) > DENOISER.entropy() + 0.01
    assert bool((bound < -log_prob).any())

r"""Do the samples of a restorer say how sure one can be? Figures of K samples of each item against its true value.

Samples are (K, B, *), truths (B, *). PSNR rewards samples that are too narrow, so one of these belongs beside it. All
are corrected for the number of samples: from a calibrated sampler they are right in the mean for every K, not for many
samples only. They pool all elements of all items, which are not independent: a standard error has to come from items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.metrics.energy import energy_distance


def spread_ratio(samples: Tensor, truth: Tensor | None = None, exact_variance: Tensor | None = None) -> float:
    """Return how much wider than right samples are, in variance; 1 is calibrated, below 1 too sure.

    Against truths it is (1 + 1/K) * mean unbiased variance / mean squared error of the sample mean. Where the posterior
    is known, `exact_variance` (B, *) gives mean unbiased variance / mean exact variance, which a wrong mean does not
    disturb.

    Raises:
        ValueError: Neither or both are given, fewer than 2 samples, or shapes that do not fit.
    """
    if (truth is None) == (exact_variance is None):
        raise ValueError("give truth or exact_variance, one of them.")
    reference = truth if truth is not None else exact_variance
    assert reference is not None
    drawn, target = _checked(samples, reference, least=2)
    variance = drawn.var(0).mean()
    if truth is None:
        return float(variance / target.mean())
    return float((1.0 + 1.0 / len(drawn)) * variance / (drawn.mean(0) - target).square().mean())


@dataclass(frozen=True)
class Coverage:
    """Share of true values inside an interval of the samples, and the share that a calibrated sampler reaches."""

    share: float
    nominal: float


def coverage(samples: Tensor, truth: Tensor, rank: int = 1) -> Coverage:
    """Return how often the truth lies in [x_(a), x_(K+1-a)] of the sorted samples, a = `rank`; nominal 1 - 2a/(K+1).

    The nominal share is exact for continuous laws: K = 8 samples offer 78 %, no more.

    Raises:
        ValueError: The interval is empty, or shapes do not fit.
    """
    drawn, target = _checked(samples, truth, least=2)
    count = len(drawn)
    if not 1 <= rank <= count / 2:
        raise ValueError(f"rank={rank} of {count} samples leaves no interval; choose 1 to {count // 2}.")
    ordered = drawn.sort(0).values
    inside = (target >= ordered[rank - 1]) & (target <= ordered[count - rank])
    return Coverage(float(inside.double().mean()), 1.0 - 2.0 * rank / (count + 1))


def rank_histogram(samples: Tensor, truth: Tensor) -> Tensor:
    """Return how often the truth has each rank among the samples, float64 (K + 1,); flat for a calibrated sampler.

    A valley in the middle means samples that are too narrow, a hill too wide, a slope a bias. A truth that equals some
    samples (clipped pictures) counts in equal shares for all the ranks it may have.

    Raises:
        ValueError: Shapes do not fit.
    """
    drawn, target = _checked(samples, truth, least=1)
    below, equal = (drawn < target).sum(0).flatten(), (drawn == target).sum(0).flatten()
    share = 1.0 / (equal + 1).double()
    steps = torch.zeros(len(drawn) + 2, dtype=torch.float64, device=drawn.device)
    steps.index_add_(0, below, share)
    steps.index_add_(0, below + equal + 1, -share)
    return steps.cumsum(0)[:-1]


def fair_crps(samples: Tensor, truth: Tensor) -> float:
    r"""Return the fair continuous ranked probability score, mean |x_i - x| - sum_{i != j} |x_i - x_j| / (2 K (K - 1)).

    Lower is better. In the mean it does not depend on K, and it is lowest for the true law: 1/sqrt(pi) = 0.564 where
    that is a standard normal.

    Raises:
        ValueError: Fewer than 2 samples, or shapes do not fit.

    Source: Ferro 2014, "Fair scores for ensemble forecasts".
    """
    drawn, target = _checked(samples, truth, least=2)
    count = len(drawn)
    # Of sorted samples, sum_{i<j} (x_j - x_i) = sum_i (2 i - K - 1) x_i, i from 1: no K x K table is needed.
    weights = torch.arange(1, count + 1, dtype=torch.float64, device=drawn.device) * 2 - count - 1
    spread = torch.tensordot(weights, drawn.sort(0).values, dims=1) / (count * (count - 1))
    return float((drawn - target).abs().mean() - spread.mean())


def z_squared(samples: Tensor, truth: Tensor) -> float:
    """Return the mean of (truth - sample mean)^2 / sample variance over what K Gaussian samples give; 1 is calibrated.

    Above 1 the samples are too narrow. The correction is (K + 1)(K - 1) / (K (K - 3)), the figure's mean under a
    Gaussian posterior, which exists for K > 3 (for K of 4 and 5 without a variance: take more). Elements that do not
    vary at all, such as pixels that were measured without noise, are left out.

    Raises:
        ValueError: Fewer than 4 samples, nothing varies, or shapes do not fit.
    """
    drawn, target = _checked(samples, truth, least=4)
    count, variance = len(drawn), drawn.var(0)
    varies = variance > 0
    if not bool(varies.any()):
        raise ValueError("no element of the samples varies, so there is no uncertainty to judge.")
    ratio = (drawn.mean(0) - target).square()[varies] / variance[varies]
    return float(ratio.mean()) * count * (count - 3) / ((count + 1) * (count - 1))


def energy_to_reference(samples: Tensor, reference: Tensor) -> float:
    """Return the mean over items of 2 E|X - Y| - E|X - X'| - E|Y - Y'|, with X' and Y' other samples than X and Y.

    About 0 where both follow one law, negative by chance too; in model units. `reference` (M, B, *) are samples of the
    exact posterior.

    Raises:
        ValueError: Fewer than 2 samples, or items that do not fit.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples are of items {tuple(samples.shape[1:])}, the reference of {tuple(reference.shape[1:])}."
        )
    pairs = zip(samples.unbind(1), reference.unbind(1), strict=True)
    distances = [energy_distance(found, exact) for found, exact in pairs]
    return sum(distances) / len(distances)


@dataclass(frozen=True)
class Sparsification:
    """Error of what is left when the most uncertain elements are left out.

    Args:
        kept: Shares of elements that are kept, falling from 1.
        error: Mean absolute error of those the samples are surest of, as a multiple of that of all.
        oracle: The same where the elements with the largest errors are left out: the best there can be.
        ause: Mean of `error` - `oracle` over the shares; 0 is perfect, and 1 - mean(oracle) says nothing about errors.
    """

    kept: Tensor
    error: Tensor
    oracle: Tensor
    ause: float


def sparsification(samples: Tensor, truth: Tensor, points: int = 20) -> Sparsification:
    """Return the sparsification curves of the samples' standard deviation as a map of where the mean is wrong.

    Raises:
        ValueError: Fewer than 2 samples or points, or shapes do not fit.

    Source: Ilg et al. 2018, "Uncertainty estimates and multi-hypotheses networks for optical flow", section 4.2.
    """
    if points < 2:
        raise ValueError(f"points={points} must be at least 2.")
    drawn, target = _checked(samples, truth, least=2)
    error, std = (drawn.mean(0) - target).abs().flatten(), drawn.std(0).flatten()
    kept = torch.linspace(1.0, 1.0 / points, points, dtype=torch.float64)
    counts = (kept * len(error)).round().long().clamp(min=1)
    by_std, by_error = error[std.argsort(stable=True)], error.sort().values
    sums = torch.stack([by_std.cumsum(0), by_error.cumsum(0)])[:, counts - 1]
    curves = (sums / counts / error.mean()).cpu()
    return Sparsification(kept, curves[0], curves[1], float((curves[0] - curves[1]).mean()))


def _checked(samples: Tensor, truth: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if samples.shape[1:] != truth.shape:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}; expected (K, {', '.join(map(str, truth.shape))}), "
            "one more axis than the reference."
        )
    if len(samples) < least:
        raise ValueError(f"{len(samples)} samples of each item; this figure needs at least {least}.")
    return samples.detach().double(), truth.detach().double()

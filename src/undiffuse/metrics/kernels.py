r"""Maximum mean discrepancy (MMD): how far apart two laws are in the eyes of a kernel; KID is one of them.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

The estimate leaves every k(x_i, x_i) out, so it is unbiased at any number of items, and 0 on average for equal laws.
`mmd` measures with it; `mmd_rows` is the same as a loss, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.distances import Array, Matrix, as_pair
from undiffuse.noise import permutation

Kernel = Callable[[Tensor, Tensor], Tensor]
KernelName = Literal["gaussian", "rational-quadratic", "energy", "rbf-mix", "cubic", "linear"]
_GROUPS = 10
_CHUNK_BYTES = 64 * 2**20
_MEDIAN_ROWS = 1000  # of each set, for the median of the distances
_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of rbf-mix, in mean squared distances of the real points
_ALPHAS = (0.2, 0.5, 1.0, 2.0, 5.0)  # Binkowski et al. 2018, section 4: the mixture that worked on all their data


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure from two sets, of which tenths were left out to learn how it varies.

    Args:
        value: The figure.
        error: Its standard error.
        corrected: The figure without its bias of order 1 / N. For independent items there is none, and both agree on
            average; where classes are drawn in fixed proportions, pairs of one class are too rare and `value` is a
            little too low.
    """

    value: float
    error: float
    corrected: float


def kid(a: Array, b: Array, *, groups: int = _GROUPS) -> Estimate:
    """Return the kernel inception distance: the unbiased MMD^2 with the kernel (x . y / D + 1)^3.

    Args:
        a: Features (N, D).
        b: Features (M, D).
        groups: Blocks for the standard error; see `mmd`.

    Raises:
        ValueError: See `mmd`.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401, equation 4. There the estimate is the
        mean over random blocks; here it is the estimate from all pairs, whose variance is lower.
    """
    first, second = as_pair(a, b, ("a", "b"))
    return _estimate(first, second, cubic, groups)


def mmd(
    x: Array, y: Array, *, kernel: KernelName | Kernel = "gaussian", scale: float | None = None, groups: int = _GROUPS
) -> Estimate:
    """Return the unbiased MMD^2 of two sets.

    The standard error is a jackknife over blocks: the estimate is taken again without each tenth of both sets. For
    equal laws, where the statistic is degenerate, it comes out about 1.4 times too large.

    Args:
        x: Points (N, *).
        y: Points (M, *).
        kernel: "gaussian" exp(-r^2 / (2 s^2)); "rational-quadratic", the sum of (1 + r^2 / (2 a s^2))^-a over
            a = 0.2, 0.5, 1, 2, 5; "energy" -r, which makes MMD^2 the energy distance; "rbf-mix", see `rbf_mix`;
            "cubic" and "linear", which have no length; or a function of points (n, D) and (m, D) that returns (n, m).
        scale: The length s, in units of the points; None takes the median distance of a seeded part of both sets, and
            for "rbf-mix", where s^2 is the `spread`, that of `y`.
        groups: Number of blocks, at least 2; fewer where a set has fewer than twice as many points.

    Raises:
        ValueError: The widths differ, a set has fewer than 4 points, or the kernel is unknown.

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6.
    """
    first, second = as_pair(x, y)
    return _estimate(first, second, kernel if callable(kernel) else _named(kernel, scale, first, second), groups)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Return (x . y / D + 1)^3 for points (n, D) and (m, D), (n, m)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def linear(x: Tensor, y: Tensor) -> Tensor:
    """Return x . y / D + 1 for points (n, D) and (m, D), (n, m): it compares means alone."""
    return x @ y.T / x.shape[1] + 1.0


def gaussian(scale: float | Tensor) -> Kernel:
    """Return the kernel exp(-r^2 / (2 scale^2))."""
    return lambda x, y: torch.exp(_squared(x, y) * (-0.5 / scale**2))


def rbf_mix(spread: float | Tensor) -> Kernel:
    """Return the sum of the kernels exp(-r^2 / (c spread)) over c = 1/4, 1/2, 1, 2, 4: fine and coarse at once.

    Args:
        spread: Mean squared distance of the real points, one for x and y alike: with a bandwidth for each of the three
            terms of an MMD it would be no distance, and blind to scale.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = _squared(x, y) / spread
        return torch.stack([torch.exp(squared * (-1.0 / width)) for width in _WIDTHS]).sum(dim=0)

    return kernel


def rational_quadratic(scale: float | Tensor, alphas: tuple[float, ...] = _ALPHAS) -> Kernel:
    """Return the sum of the kernels (1 + r^2 / (2 a scale^2))^-a over a in `alphas`: heavy tails, several lengths."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = _squared(x, y) * (0.5 / scale**2)
        return torch.stack([(1.0 + squared / alpha) ** -alpha for alpha in alphas]).sum(dim=0)

    return kernel


def energy(x: Tensor, y: Tensor) -> Tensor:
    """Return -r for points (n, D) and (m, D), (n, m)."""
    squared = _squared(x, y)
    apart = squared > 0  # at 0 the root has no gradient, and infinity times nothing is NaN
    return -torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def kernel_for(name: KernelName, real: Tensor) -> Kernel:
    """Return the kernel of a name with the length that real points (M, D) give it, which carries no gradient.

    The length is the root of half their `spread`, about their median distance over the root of 2.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in get_args(KernelName):
        raise ValueError(f"kernel={name!r} is unknown; choose {', '.join(get_args(KernelName))}.")
    plain = {"cubic": cubic, "linear": linear, "energy": energy}
    if name in plain:
        return plain[name]
    width = spread(real.detach())
    if name == "rbf-mix":
        return rbf_mix(width)
    return gaussian((0.5 * width).sqrt()) if name == "gaussian" else rational_quadratic((0.5 * width).sqrt())


def spread(points: Tensor) -> Tensor:
    """Return the mean squared distance of different points (M, D), 0-dim; 1 where all points are equal."""
    found = 2.0 * points.var(dim=0).sum()
    return torch.where(found > 0, found, torch.ones_like(found))


def mmd_rows(
    x: Tensor, y: Tensor, kernel: Kernel, *, weights: tuple[Tensor, Tensor] | None = None, paired: bool = False
) -> Tensor:
    """Return what each row of `x` adds to the unbiased MMD^2, (n,): their mean is the estimate, and has its gradient.

    Args:
        x: Points (n, D), n at least 2.
        y: Points (m, D), m at least 2; no gradient reaches them.
        kernel: Of points (n, D) and (m, D).
        weights: Of the pairs within `x`, (n, n), and between both, (n, m), for a kernel of points and of something
            else that they have, such as a class; the first n points of `y` then have that of `x`, row by row, and the
            pairs within `y` are those of these n. None: all 1.
        paired: Whether row i of `x` and of `y` depend on each other, such as by a shared class; their pair is then
            left out.

    Raises:
        ValueError: There are too few points.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} points; the unbiased MMD^2 needs at least 2 of each.")
    own, across, y = kernel(x, x), kernel(x, y.detach()), y.detach()
    with torch.no_grad():
        real = kernel(y, y) if weights is None else kernel(y[:n], y[:n]) * weights[0]
        constant = _off_diagonal(real).sum() / (len(real) * (len(real) - 1))
    if weights is not None:
        own, across = own * weights[0], across * weights[1]
    between = _off_diagonal(across).sum(dim=1) / (m - 1) if paired else across.mean(dim=1)
    return _off_diagonal(own).sum(dim=1) / (n - 1) - 2.0 * between + constant


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.masked_fill(torch.eye(*matrix.shape, dtype=torch.bool, device=matrix.device), 0.0)


def median_distance(x: Matrix, y: Matrix) -> float:
    """Return the median distance between points of a seeded part of both sets; 1 where all points are equal."""
    parts = [torch.from_numpy(rows)[permutation(0, 0, len(rows))[:_MEDIAN_ROWS]] for rows in (x, y)]
    pooled = torch.cat(parts)
    return float(torch.pdist(pooled).median()) or 1.0


def _named(name: str, scale: float | None, x: Matrix, y: Matrix) -> Kernel:
    if name not in get_args(KernelName):
        raise ValueError(f"kernel={name!r} is unknown; choose {', '.join(get_args(KernelName))}, or give a function.")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale={scale} must be positive; None takes the median distance.")
    if name in ("energy", "cubic", "linear") or (name == "rbf-mix" and scale is None):
        return kernel_for(name, torch.from_numpy(y))  # type: ignore[arg-type]
    if name == "rbf-mix":
        assert scale is not None
        return rbf_mix(scale**2)
    length = median_distance(x, y) if scale is None else scale
    return gaussian(length) if name == "gaussian" else rational_quadratic(length)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (n, m) by a matrix product; their rounding is about 1e-16 of the squared spread."""
    centre = y.detach().mean(0)  # differences do not notice it, and it keeps the products small
    x, y = x - centre, y - centre
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2.0 * (x @ y.T)).clamp(min=0.0)


def _estimate(x: Matrix, y: Matrix, kernel: Kernel, groups: int) -> Estimate:
    count = min(groups, len(x) // 2, len(y) // 2)
    if count < 2:
        raise ValueError(
            f"sets of {len(x)} and {len(y)} points in {groups} groups; an estimate with its error needs at least 4 of "
            "each and 2 groups."
        )
    # Every count-th row: samples often come ordered by class, and each group should hold all classes.
    xs, ys = ([torch.from_numpy(rows[g::count]) for g in range(count)] for rows in (x, y))
    sums = _Sums(_within(xs, kernel), _within(ys, kernel), _between(xs, ys, kernel), _sizes(xs), _sizes(ys))
    without = np.array([sums.mmd([g for g in range(count) if g != left]) for left in range(count)])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    value = sums.mmd(list(range(count)))
    return Estimate(value=value, error=float(error), corrected=float(count * value - (count - 1) * without.mean()))


@dataclass(frozen=True)
class _Sums:
    """Kernel sums between groups: within x and y (own pairs left out), between them; and the sizes of the groups."""

    xx: Matrix
    yy: Matrix
    xy: Matrix
    n: Matrix
    m: Matrix

    def mmd(self, kept: list[int]) -> float:
        """Return the unbiased MMD^2 of the groups kept."""
        n, m = self.n[kept].sum(), self.m[kept].sum()
        block = np.ix_(kept, kept)
        within = self.xx[block].sum() / (n * (n - 1)) + self.yy[block].sum() / (m * (m - 1))
        return float(within - 2.0 * self.xy[block].sum() / (n * m))


def _sizes(groups: list[Tensor]) -> Matrix:
    return np.array([len(group) for group in groups], dtype=np.float64)


def _within(groups: list[Tensor], kernel: Kernel) -> Matrix:
    sums = np.zeros((len(groups), len(groups)))
    for g, first in enumerate(groups):
        for h in range(g, len(groups)):
            sums[g, h] = sums[h, g] = _sum(first, groups[h], kernel, skip_diagonal=g == h)
    return sums


def _between(xs: list[Tensor], ys: list[Tensor], kernel: Kernel) -> Matrix:
    return np.array([[_sum(x, y, kernel) for y in ys] for x in xs])


def _sum(x: Tensor, y: Tensor, kernel: Kernel, skip_diagonal: bool = False) -> float:
    rows = max(1, _CHUNK_BYTES // (8 * len(y)))
    total = 0.0
    for start in range(0, len(x), rows):
        values = kernel(x[start : start + rows], y)
        if skip_diagonal:
            values.diagonal(offset=start).zero_()
        total += float(values.sum())
    return total

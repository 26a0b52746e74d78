"""Which points of k-space an accelerated MR scan measures. The centre of k-space is in the middle of the picture.

Source: the Cartesian masks follow fastMRI (Zbontar et al. 2018, arXiv:1811.08839): acceleration 4 with 8 % of the
centre, 8 with 4 %.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise

CARTESIAN = ("random", "equispaced", "gaussian1d")


def cartesian(
    height: int,
    width: int,
    *,
    acceleration: float = 4.0,
    centre: float = 0.08,
    pattern: str = "random",
    seed: int = 0,
    item: int = 0,
) -> Tensor:
    """Return whole columns of k-space, bool (H, W): the share `centre` in the middle, and others by `pattern`.

    "random" takes each other column with the probability that gives the acceleration on average; "equispaced" takes
    them at even distances from a random first; "gaussian1d" draws exactly W / acceleration, denser near the centre.

    Raises:
        ValueError: The acceleration is below 1, or leaves less than the centre.
    """
    middle = round(width * centre)
    wanted = width / acceleration if acceleration >= 1 else 0
    if pattern not in CARTESIAN:
        raise ValueError(f"pattern={pattern!r} of a Cartesian mask is unknown; choose {', '.join(CARTESIAN)}.")
    if not 0 <= centre <= 1 or wanted < max(1, middle):
        raise ValueError(
            f"acceleration={acceleration} of {width} columns with centre={centre} ({middle} columns) cannot be; the "
            "acceleration is at least 1, and the centre at most 1 / acceleration."
        )
    first = (width - middle + 1) // 2
    columns = torch.zeros(width, dtype=torch.bool)
    columns[first : first + middle] = True
    noise = KeyedNoise(seed, [item])
    if pattern == "random":
        chance = (wanted - middle) / max(width - middle, 1)
        columns |= noise.uniform("operator", 0, (width,))[0] < chance
    elif pattern == "equispaced":
        distance = (width - middle) / max(wanted - middle, 1e-9)
        offset = float(noise.uniform("operator", 0, ())[0]) * distance
        others = (~columns).nonzero()[:, 0]
        columns[others[torch.arange(offset, len(others), distance).long()]] = True
    else:
        at = (torch.arange(width) - width // 2).double()
        scores = -0.5 * (at / (width / 5)) ** 2 + _gumbel(noise, (width,))
        scores[columns] = math.inf
        columns[scores.topk(max(round(wanted), middle)).indices] = True
    return columns.expand(height, width).clone()


def gaussian2d(
    height: int, width: int, *, acceleration: float = 4.0, centre: float = 0.08, seed: int = 0, item: int = 0
) -> Tensor:
    """Return H W / acceleration single points, denser near the centre, and a full disc there, bool (H, W)."""
    radius = _radius(height, width)
    scores = -0.5 * (radius / 0.4) ** 2 + _gumbel(KeyedNoise(seed, [item]), (height, width))
    scores[radius <= centre] = math.inf
    return _best(scores, _points(height, width, acceleration))


def radial(height: int, width: int, *, spokes: int = 16, seed: int = 0, item: int = 0) -> Tensor:
    """Return `spokes` lines through the centre at even angles from 0 to 180 degrees, on the grid, bool (H, W)."""
    if spokes < 1:
        raise ValueError(f"spokes={spokes} of a radial mask must be at least 1.")
    reach = torch.arange(-2 * max(height, width), 2 * max(height, width) + 1).double() / (4 * max(height, width))
    angles = math.pi * torch.arange(spokes).double() / spokes
    return _draw(height, width, reach * angles.sin()[:, None], reach * angles.cos()[:, None])


def spiral(height: int, width: int, *, turns: float = 8.0, arms: int = 1, seed: int = 0, item: int = 0) -> Tensor:
    """Return the grid points that Archimedean spirals from the centre pass, bool (H, W)."""
    if turns <= 0 or arms < 1:
        raise ValueError(f"turns={turns} of a spiral must be above 0 and arms={arms} at least 1.")
    count = int(8 * turns * max(height, width)) + 2
    way = torch.linspace(0, 1, count, dtype=torch.float64)
    angle = 2 * math.pi * (turns * way + torch.arange(arms).double()[:, None] / arms)
    return _draw(height, width, 0.5 * way * angle.sin(), 0.5 * way * angle.cos())


def poisson_disc(
    height: int, width: int, *, acceleration: float = 4.0, centre: float = 0.08, seed: int = 0, item: int = 0
) -> Tensor:
    """Return points that keep a distance which grows from the centre, bool (H, W); an approximation by dart throwing.

    The distance is found by bisection, so that the number of points is within a few per cent of H W / acceleration.
    """
    radius = _radius(height, width).numpy()
    darts = KeyedNoise(seed, [item]).uniform("operator", 0, (height * width,))[0].argsort().numpy()
    wanted, low, high = _points(height, width, acceleration), 0.0, 2.0 * math.sqrt(acceleration) + 2.0
    taken = radius <= centre
    for _ in range(12):
        scale = (low + high) / 2
        taken = _throw(darts, radius, scale, centre)
        low, high = (scale, high) if taken.sum() > wanted else (low, scale)
    return torch.from_numpy(taken)


def _throw(darts: np.ndarray, radius: np.ndarray, scale: float, centre: float) -> np.ndarray:
    height, width = radius.shape
    taken, blocked = radius <= centre, radius <= centre
    for dart in darts:
        row, column = divmod(int(dart), width)
        if blocked[row, column]:
            continue
        taken[row, column] = True
        reach = scale * (0.5 + radius[row, column])
        r = int(reach)
        rows, columns = slice(max(0, row - r), row + r + 1), slice(max(0, column - r), column + r + 1)
        y, x = np.ogrid[rows.start : min(rows.stop, height), columns.start : min(columns.stop, width)]
        blocked[rows, columns] |= (y - row) ** 2 + (x - column) ** 2 < max(reach, 0.5) ** 2
    return taken


def _radius(height: int, width: int) -> Tensor:
    """Return the distance from the centre of k-space, 1 at the middle of an edge, float64 (H, W)."""
    rows = (torch.arange(height) - height // 2).double()[:, None] / (height / 2)
    columns = (torch.arange(width) - width // 2).double() / (width / 2)
    return (rows**2 + columns**2).sqrt()


def _points(height: int, width: int, acceleration: float) -> int:
    if acceleration < 1:
        raise ValueError(f"acceleration={acceleration} must be at least 1.")
    return max(1, round(height * width / acceleration))


def _best(scores: Tensor, count: int) -> Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().topk(count).indices] = True
    return mask.view_as(scores)


def _draw(height: int, width: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Mark the grid points nearest to places in units of the picture's sides, 0 at the centre."""
    at = (rows * height + height // 2).round().long().flatten(), (columns * width + width // 2).round().long().flatten()
    inside = (at[0] >= 0) & (at[0] < height) & (at[1] >= 0) & (at[1] < width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[at[0][inside], at[1][inside]] = True
    return mask


def _gumbel(noise: KeyedNoise, shape: tuple[int, ...]) -> Tensor:
    uniform = noise.uniform("operator", 0, shape)[0].clamp(1e-300, 1 - 2.0**-53)
    return -(-uniform.log()).log()

"""Grids of samples and of real images, one row per class where there are labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.images import image_grid
from undiffuse.metrics.results import Picture

_CLASSES, _COLUMNS, _ROWS = 10, 10, 6


def picture(x: NDArray[Any], labels: NDArray[np.int64] | None, bounds: tuple[float, float] | None) -> Picture:
    """Return a grid of the first images (N, C, H, W); with labels (N,), a row for each of the first ten classes.

    Args:
        x: Images in data units.
        labels: Their labels, or those asked for.
        bounds: Values shown black and white; None takes the extremes.
    """
    chosen, columns = (np.arange(min(len(x), _COLUMNS * _ROWS)), _COLUMNS) if labels is None else _by_class(labels)
    low, high = bounds or (float(x.min()), float(x.max()))
    return image_grid(x[chosen], columns, bounds=(low, high if high > low else low + 1.0))


def _by_class(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)[:_CLASSES]]
    width = min(_COLUMNS, *(len(row) for row in rows))
    return np.concatenate([row[:width] for row in rows]), width

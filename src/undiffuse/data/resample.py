"""Bringing volumes to one size, axis by axis, with a triangle filter that widens where the volume shrinks."""

from __future__ import annotations

import math

import numpy as np

from undiffuse.images.fit import Resize


def fit_volume(values: np.ndarray, size: tuple[int, int, int], policy: Resize) -> np.ndarray:
    """Resample (C, D, H, W) to (C, *size), float32.

    "crop" fills the size and cuts what stands over, centred; "pad" keeps everything, centred in the volume's least
    value; "stretch" changes the proportions. Voxels are taken for cubes.
    """
    given = values.shape[1:]
    if given == size:
        return values.astype(np.float32)
    scales = [want / have for want, have in zip(size, given, strict=True)]
    factor = {"crop": max(scales), "pad": min(scales)}.get(policy)
    result = values.astype(np.float32)
    inner = size
    if policy == "pad":
        assert factor is not None
        inner = tuple(  # type: ignore[assignment]
            min(want, max(1, round(have * factor))) for want, have in zip(size, given, strict=True)
        )
    for axis, (want, have) in enumerate(zip(inner, given, strict=True)):
        span = want / factor if policy == "crop" and factor is not None else have
        weights = axis_weights(have, want, (have - span) / 2, span)
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis + 1)), 0, axis + 1)
    if inner != size:
        canvas = np.full((len(result), *size), values.min(), dtype=np.float32)
        place = tuple(
            slice((want - have) // 2, (want - have) // 2 + have) for want, have in zip(size, inner, strict=True)
        )
        canvas[(slice(None), *place)] = result
        result = canvas
    return np.ascontiguousarray(result)


def axis_weights(have: int, want: int, start: float, span: float) -> np.ndarray:
    """Return weights (want, have), rows summing to 1, that sample `want` cells over [start, start + span).

    Cell i of the result covers span / want cells of the source; the filter is a triangle of that half width, at least
    1, as Pillow's bilinear one. Weights beyond the border are shared among the rest.
    """
    step = span / want
    support = max(1.0, step)
    centres = start + (np.arange(want) + 0.5) * step - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(have) - centres[:, None]) / support)
    total = weights.sum(1, keepdims=True)
    assert math.isfinite(float(total.min())) and total.min() > 0
    return (weights / total).astype(np.float32)

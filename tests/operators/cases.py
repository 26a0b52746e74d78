"""Operators of every kind at odd, even and non-square sizes, for the tests that hold for all of them."""

from __future__ import annotations

from functools import cache

import torch

from undiffuse import operators as ops
from undiffuse.operators.base import Operator

ROWS = 3
"""Items of a batch; operators with a row per item have as many."""


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def items(op: Operator, seed: int = 0) -> torch.Tensor:
    """Return a batch of random items that suits an operator."""
    return normals(ROWS, *op.in_shape, seed=seed)


@cache
def every_operator() -> dict[str, Operator]:
    """Return name -> operator: each name of the catalogue, and what the text form cannot say."""
    kernel = normals(3, 5).abs()
    asymmetric = kernel / kernel.sum()
    numbers = range(ROWS)
    parsed = {
        "denoise": (2, 5, 4),
        "inpaint:box": (2, 5, 7),
        "inpaint:random": (2, 5, 4),
        "inpaint:freeform": (1, 12, 9),
        "inpaint:half,top": (2, 5, 4),
        "inpaint:lines,3": (2, 5, 4),
        "demosaic": (3, 5, 6),
        "downsample:3": (2, 6, 9),
        "downsample:4,bicubic": (1, 8, 16),
        "blur:gaussian,1,5": (2, 7, 6),
        "blur:gaussian,1,5,reflect": (2, 7, 6),
        "blur:gaussian,1,5,zero": (1, 7, 8),
        "blur:gaussian,1,5,replicate": (1, 6, 5),
        "blur:uniform,3": (2, 5, 8),
        "blur:motion,5": (1, 9, 8),
        "blur:motion,5,boundary=reflect": (1, 9, 8),
        "colourise": (3, 4, 5),
        "pansharpen:2": (4, 6, 8),
        "jpeg": (3, 17, 12),
        "quantise:3": (1, 5, 6),
        "quantise:3,dither=true": (1, 5, 6),
        "hdr": (2, 5, 4),
        "lowlight": (2, 5, 4),
        "dehaze": (2, 5, 4),
        "cs:hadamard": (2, 4, 8),
        "cs:dct": (2, 5, 6),
        "cs:gaussian": (2, 3, 5),
        "phase-retrieval": (1, 8, 12),
        "blur:nonlinear,1": (2, 7, 8),
        "mri": (2, 8, 7),
        "mri:radial,coils=3,spokes=4": (2, 7, 8),
        "mri:equispaced,2,coils=2": (1, 8, 8),
        "ct:5": (2, 7, 7),
        "ct:4,limit=90": (1, 8, 8),
        "ct-counts:5": (2, 7, 7),
        "average-frames:2": (4, 1, 3, 2),
        "scale:-2": (2, 3),
        "blur:gaussian,1,5 | downsample:2": (1, 8, 6),
        "downsample:2 & blur:uniform,3": (1, 8, 6),
        "blur:gaussian,1,5 | jpeg:50": (1, 8, 8),
        "downsample:2 & hdr": (1, 8, 6),
    }
    built = {text: ops.parse_operator(text, shape) for text, shape in parsed.items()}
    built["inpaint:random per item"] = ops.parse_operator("inpaint:random", (2, 5, 4), items=numbers)
    built["inpaint:box per item"] = ops.parse_operator("inpaint:box,2,random", (2, 5, 4), items=numbers)
    built["mri per item"] = ops.parse_operator("mri:gaussian2d", (2, 8, 6), items=numbers)
    built["blur:kernel"] = ops.kernel_blur((2, 7, 6), kernel=asymmetric)
    built["blur:kernel zero"] = ops.kernel_blur((2, 7, 6), kernel=asymmetric, boundary="zero")
    built["blur of each item"] = ops.Blur((2, 7, 6), normals(ROWS, 4, 3, seed=1).abs())
    built["mask"] = ops.Mask((2, 5, 4), normals(2, 1, 4) > 0)
    built["diagonal"] = ops.Diagonal((2, 5, 4), normals(5, 4).abs())
    built["separable"] = ops.Separable((2, 5, 4), normals(3, 5), normals(6, 4, seed=1))
    built["rank-deficient"] = ops.Matrix((5,), normals(3, 2) @ normals(2, 5))
    built["frames"] = ops.per_frame(ops.Downsample((1, 4, 6), 2), 3)
    built["linear frames"] = ops.per_frame(ops.kernel_blur((1, 4, 6), kernel=asymmetric, boundary="replicate"), 2)
    built["nonlinear frames"] = ops.per_frame(ops.Clip((1, 4, 6)), 2)
    built["minus"] = -0.5 * ops.Downsample((1, 4, 6), 2)
    built["times a chain"] = 2 * built["blur:gaussian,1,5 | downsample:2"]
    return built

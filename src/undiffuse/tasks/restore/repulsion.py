"""A push between the samples of one image, so that an optimiser which seeks modes finds several of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def push_apart(x: Tensor, samples: int) -> Tensor:
    r"""Return the direction in which each row leaves the other samples of its image, (R, *).

    With k_ij = exp(-|x_i - x_j|^2 / h) and h = median |x_i - x_j|^2 / log(K + 1) over the pairs of an image, it is

        sum_j k_ij (x_i - x_j) / sum_j k_ij,

    which is -h / 2 times the gradient of log sum_j k_ij by x_i: in the units of x, and 0 for a single sample.

    Args:
        x: Rows (R, *); those of one image follow each other.
        samples: K, rows per image.

    Raises:
        ValueError: The rows are no multiple of `samples`.

    Source: Zilberstein, Mardani, Segarra 2024, "Repulsive Latent Score Distillation for Solving Inverse Problems",
        arXiv:2406.16683; bandwidth: Liu and Wang 2016, arXiv:1608.04471, section 5.
    """
    if len(x) % samples:
        raise ValueError(f"{len(x)} rows are no multiple of {samples} samples per image.")
    if samples == 1:
        return torch.zeros_like(x)
    grouped = x.flatten(1).unflatten(0, (-1, samples))  # (B, K, D)
    squares = torch.cdist(grouped, grouped, compute_mode="donot_use_mm_for_euclid_dist").square()
    pairs = torch.triu_indices(samples, samples, 1, device=x.device)
    width = squares[:, pairs[0], pairs[1]].median(1).values / math.log(samples + 1)
    kernel = torch.exp(-squares / width.clamp(min=1e-12)[:, None, None])
    pushed = grouped * kernel.sum(2, keepdim=True) - kernel @ grouped
    return (pushed / kernel.sum(2, keepdim=True)).reshape(x.shape)

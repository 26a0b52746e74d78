"""Heads of a network on its last features: what it predicts and, where it is learned, the variance of a step."""

from __future__ import annotations

from torch import Tensor, nn


def read_heads(features: Tensor, leave: nn.Module, variance: nn.Module | None) -> dict[str, Tensor]:
    """Return {"out": leave(features)} and, where there is a second layer, "variance" of the same shape.

    The variance head says where between its two bounds the log-variance of a step lies, 0 for the small one and 1 for
    the large one. It is (1 + layer) / 2, so a fresh network stands in the middle, and it is not confined to [0, 1].

    Source: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 3.1, arXiv:2102.09672.
    """
    heads = {"out": leave(features)}
    if variance is not None:
        heads["variance"] = 0.5 + 0.5 * variance(features)
    return heads

"""The section of a report that shows a restoration: before, after, how sure, samples, and the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from undiffuse.images import image_grid
from undiffuse.report.elements import Section

if TYPE_CHECKING:
    from undiffuse.tasks.restore.restorer import RestoreResult

_SAMPLES = 8
_HALF_RANGE = 2.0  # model units [-1, 1] per image unit


def restoration_section(result: RestoreResult, before: Tensor | None, operator: str, title: str) -> Section:
    """Return a section with what one restoration found.

    Args:
        result: Of one image.
        before: The measurement as a picture (1 or 3, H, W) in [-1, 1], or None where it is none.
        operator: What it was measured by, in a line.
        title: Heading of the section.
    """
    section = Section(title)
    for warning in result.warnings:
        section.text(warning, tone="warning")
    caption = f"measured, mean of {len(result.samples)} samples, its uncertainty (white: {_unit(result.std.max()):.3f})"
    section.picture(strip(result, before), caption if before is not None else caption.removeprefix("measured, "))
    shown = result.samples[:_SAMPLES, 0]
    fits = "samples" if result.warnings else "samples: each fits the measurement"
    section.picture(image_grid(shown.float(), columns=min(_SAMPLES, len(shown))), fits)
    for name, drawn in learned_pictures(result).items():
        section.picture(drawn, f"{name} found beside the picture, mean of the samples; white is its largest value")
    return section.pairs(figures(result, operator)).text(
        "The uncertainty is the standard deviation of the samples, in units of the picture's range [0, 1]. A residual "
        "near the noise means that the samples fit the measurement as well as the truth does.",
        tone="note",
    )


def strip(result: RestoreResult, before: Tensor | None, scale: int | None = None) -> np.ndarray:
    """Return before, after and uncertainty side by side, uint8 (H, W, C).

    Args:
        result: Of one image.
        before: The measurement as a picture; enlarged to the answer's size where it is smaller.
        scale: Of every pixel; None enlarges tiny pictures.
    """
    mean = result.mean[0].detach().cpu().float()
    channels = 3 if mean.shape[0] == 3 else 1
    parts = [mean[:channels], uncertainty(result).expand(channels, *mean.shape[1:])]
    if before is not None:
        small = before.detach().cpu().float()
        small = small if small.shape[0] in (1, channels) else small.mean(0, keepdim=True)
        factor = [max(1, round(a / b)) for a, b in zip(mean.shape[1:], small.shape[1:], strict=True)]
        small = small.repeat_interleave(factor[0], 1).repeat_interleave(factor[1], 2)
        if small.shape[1:] == mean.shape[1:]:
            parts.insert(0, small.expand(channels, *mean.shape[1:]))
    return image_grid(torch.stack(parts), columns=len(parts), scale=scale)


def uncertainty(result: RestoreResult) -> Tensor:
    """Return the standard deviation (1, H, W), mean over channels, from black 0 to white at its largest; in [-1, 1]."""
    std = result.std[0].detach().cpu().float().mean(0, keepdim=True)
    return 2 * std / std.max().clamp(min=1e-6) - 1


def learned_pictures(result: RestoreResult) -> dict[str, np.ndarray]:
    """Return what was learned of the degradation that is a picture, such as a kernel, by name: uint8 (H, W, 1).

    White is its largest value, black 0, or its least value below.
    """
    found = {}
    for name, value in result.learned.items():
        mean = value[:, 0].detach().cpu().float().mean(0)
        if mean.numel() > 1:  # (h, w), or (1, H, W) of light
            above = mean - mean.min().clamp(max=0)
            scaled = 2 * above / above.max().clamp(min=1e-9) - 1
            found[name] = image_grid(scaled.reshape(1, 1, *mean.shape[-2:]), pad=0)
    return found


def figures(result: RestoreResult, operator: str) -> dict[str, str]:
    """Return names and figures for people, in units of a picture's range [0, 1], but for what was learned."""
    learned = {name: f"{float(v[:, 0].mean()):.4g}" for name, v in result.learned.items() if v[0, 0].numel() == 1}
    return {
        **learned,
        "operator": operator,
        "method": f"{result.method} ({result.why})" if result.why else result.method,
        "residual": f"{_unit(result.residual_rms.mean()):.4f}; noise {_unit(result.noise_std):.4f}",
        "mean uncertainty": f"{_unit(result.std.mean()):.4f}",
        "evaluations per sample": f"{result.nfe}, {result.nfe_grad} of them differentiated",
    }


def _unit(value: Tensor | float) -> float:
    return float(value) / _HALF_RANGE

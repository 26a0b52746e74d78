"""Texts longer than those of the training: written window by window, each begun with the end of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.sampling.loop import SampleResult
from undiffuse.spec import DataSpec

Draw = Callable[..., SampleResult]
_APART = 1 << 40  # items of the noise of two windows; no run has so many samples


def spec_of_length(spec: DataSpec, length: int | None, network: Any) -> DataSpec:
    """Return the spec of items with `length` tokens; as it is where that is None.

    Raises:
        ValueError: The length is below 1, or items of the model have one length only.
    """
    if length is None:
        return spec
    if length < 1:
        raise ValueError(f"length={length} must be at least 1 token.")
    if not spec.is_discrete or spec.columns or spec.grid or getattr(network, "kind", "transformer") != "transformer":
        what = "a table" if spec.columns else "tokens on a grid" if spec.grid else f"{spec.noun} of one size"
        raise ValueError(f"length={length} is for texts; this model makes {what}. Leave it out.")
    return replace(spec, shape=(length,))


def window_of(spec: DataSpec, length: int | None, stride: int | None, constrained: bool) -> int | None:
    """Return the tokens of a window where `length` of them need several; None where one is enough.

    Args:
        spec: Of the model's own items.
        length: Tokens asked for; None: as many as the model's.
        stride: New tokens per window asked for.
        constrained: Whether the call has constraints.

    Raises:
        ValueError: A stride without several windows, or constraints with a length.
    """
    window = spec.shape[0]
    if constrained and length is not None:
        raise ValueError("constraints hold for items of the model's own length; give start instead, or no length.")
    if length is not None and length > window:
        return window
    if stride is not None:
        raise ValueError(f"stride={stride} is for texts of more than {window} tokens; give a greater length.")
    return None


def sliding(draw: Draw, process: object, window: int, stride: int | None) -> Draw:
    """Return what draws longer items than `draw` does, `window` tokens at a time.

    The first window is drawn as ever; each of the others is fixed to what is known of it, at least its first
    `window - stride` tokens. The last is moved back to end where the text ends. So a token is drawn given as many
    tokens before it as a window has room for, and none behind that window.

    Args:
        draw: Draws items of a shape up to (window,), from a start with masks.
        process: Absorbing: given tokens are exact conditions there, and nowhere else.
        window: Tokens that the model was trained on at once.
        stride: New tokens per window; None: half of it.

    Raises:
        ValueError: The process has no masks, or `stride` is out of range.

    Source: Sahoo et al. 2024, section 4.2 (semi-autoregressive decoding), arXiv:2406.07524.
    """
    if not isinstance(process, CategoricalProcess) or process.kind != "absorbing":
        raise ValueError("texts longer than the training need a masked model: given tokens are exact conditions there.")
    step = max(1, window // 2) if stride is None else stride
    if not 1 <= step <= window:
        raise ValueError(f"stride={stride} is outside 1 to {window}, the tokens of one window.")

    def slide(*, noise: KeyedNoise, shape: tuple[int, ...], start: Tensor | None = None, **rest: Any) -> SampleResult:
        (length,) = shape
        if rest.get("trajectory"):
            raise ValueError("a text of several windows has no trajectory of its states; leave trajectory out.")
        x = torch.full((len(noise.items), length), process.classes, device=noise.device) if start is None else start
        lows = [*range(0, length - window, step), length - window]
        parts, nfe = x.clone(), 0
        for number, low in enumerate(lows):
            fresh = KeyedNoise(noise.seed, noise.items + number * _APART, noise.device)
            piece = slice(low, low + window)
            part = draw(noise=fresh, shape=(window,), start=parts[:, piece], **rest)
            parts[:, piece], nfe = part.x, nfe + part.nfe
        return SampleResult(parts, nfe)

    return slide

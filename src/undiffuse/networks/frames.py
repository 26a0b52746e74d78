"""Video in networks of images: frames are folded into the batch, each with its own context."""

from __future__ import annotations

from torch import Tensor


def count_frames(x: Tensor, dims: int, channels: int, network: str) -> int | None:
    """Return the number of frames of `x` (B, F, C, *) with `dims` spatial axes; None for (B, C, *), which has none.

    Raises:
        ValueError: Another number of axes or channels; `network` is what the message calls the network.
    """
    if x.ndim not in (dims + 2, dims + 3) or x.shape[-dims - 1] != channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this {network} expects {channels} channels and {dims} spatial "
            f"axes, (B, C, *), or (B, F, C, *) for frames."
        )
    return x.shape[1] if x.ndim == dims + 3 else None


def context_per_frame(context: Tensor, frames: int) -> Tensor:
    """Return a context (B, E), or (B, F, E), of every frame: (B * F, E)."""
    context = context if context.ndim == 3 else context[:, None].expand(-1, frames, -1)
    return context.flatten(0, 1)

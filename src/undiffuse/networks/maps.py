"""Conditions on the data's own grid (a mask, a depth map, a small version of the image): further input channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from undiffuse.networks.embedded import Embedded


class MapConditioner(nn.Module):
    """Passes maps on; a learned null per channel, or zeros, stands for those that are not given.

    Args:
        channels: Channels C of the map.
        dims: Spatial axes of the data.
        null: "learned" or "zero".
    """

    def __init__(self, channels: int, dims: int, *, null: Literal["learned", "zero"] = "learned") -> None:
        super().__init__()
        self.channels, self.dims = channels, dims
        self.null_map = nn.Parameter(torch.randn(channels)) if null == "learned" else None
        self.register_buffer("_zeros", torch.zeros(channels), persistent=False)  # knows device and dtype

    def forward(self, maps: Tensor, drop: Tensor | None = None) -> Embedded:
        """Give `maps` (B, C, *), for video also (B, F, C, *); rows where `drop` (B,) is True get the null.

        Raises:
            ValueError: Another number of axes or channels.
        """
        axes = maps.ndim - self.dims
        if axes not in (2, 3) or maps.shape[-self.dims - 1] != self.channels or not maps.is_floating_point():
            raise ValueError(
                f"the map is {maps.dtype} {tuple(maps.shape)}; expected floats with {self.channels} channels and "
                f"{self.dims} spatial axes, (B, {self.channels}, *)."
            )
        maps = maps.to(self._null.dtype)
        if drop is None:
            drop = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)  # gives the null a gradient, of zeros
        null = self._null.view(-1, *[1] * self.dims)
        return Embedded(maps=torch.where(drop.view(-1, *[1] * (maps.ndim - 1)), null, maps))

    def null(self, batch: int) -> Embedded:
        """Return the null for every row, (batch, C, 1, ..): the same at each place, whatever the size."""
        return Embedded(maps=self._null.view(1, -1, *[1] * self.dims).expand(batch, *[-1] * (self.dims + 1)))

    @property
    def _null(self) -> Tensor:
        zeros = self._zeros
        assert isinstance(zeros, Tensor)
        return zeros if self.null_map is None else self.null_map


def concatenate_maps(parts: Sequence[Tensor], dims: int) -> Tensor:
    """Concatenate (B, C, *) along the channels, over `dims` spatial axes; those of size 1 are repeated.

    Parts with an axis more, (B, F, C, *), are video; to them the others are the same in every frame.

    Raises:
        ValueError: Sizes differ.
    """
    axes = max(part.ndim for part in parts)
    channel = axes - dims - 1
    aligned = [part if part.ndim == axes else part.unsqueeze(1) for part in parts]
    sizes = [max(column) for column in zip(*(part.shape for part in aligned), strict=True)]
    return torch.cat([_fill(part, sizes, channel) for part in aligned], dim=channel)


def append_maps(x: Tensor, maps: Tensor, dims: int) -> Tensor:
    """Return data (B, C, *) or (B, F, C, *) with `maps` as further channels, in the data's dtype.

    Raises:
        ValueError: The maps are of another size than the data (and not of size 1, the same everywhere).
    """
    if maps.ndim > x.ndim:
        raise ValueError(f"the maps {tuple(maps.shape)} have frames, but the data {tuple(x.shape)} have none.")
    maps = maps.to(x.dtype) if maps.ndim == x.ndim else maps.to(x.dtype).unsqueeze(1)
    channel = x.ndim - dims - 1
    return torch.cat([x, _fill(maps, list(x.shape), channel)], dim=channel)


def _fill(part: Tensor, sizes: list[int], channel: int) -> Tensor:
    wanted = [*sizes[:channel], part.shape[channel], *sizes[channel + 1 :]]
    if any(own not in (1, size) for own, size in zip(part.shape, wanted, strict=True)):
        raise ValueError(
            f"a map has shape {tuple(part.shape)}; expected {tuple(wanted)}, the size of the data. Resize it before."
        )
    return part.expand(wanted)

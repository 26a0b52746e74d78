"""`Codec`: an encoder and a decoder. Between them lie latents, on which a denoiser is trained like on any data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.shift import SOURCE, has_source
from undiffuse.spec import ConditionSpec, DataSpec

SPATIAL_AXES = {"signal": 1, "image": 2, "video": 2, "volume": 3}


class Codec(nn.Module, ABC):
    """Base of codecs, with latents of numbers; those with tokens are `undiffuse.codecs.quantised.TokenCodec`.

    `encode` and `decode` take and return *model units* on both sides: data as `DataSpec.to_model` gives them, latents
    with zero mean and about unit variance, scaled by `latent.mean` and `latent.std` as any other data are. Video is
    coded frame by frame. A picture given beside the data, the map "source", is coded by the same codec.

    Args:
        data: What one item is.
        options: What the codec was built from; kept for saving.
        channels: Channels of the latents.
        factor: By how much every spatial axis shrinks.
        codes: Vectors of a codebook; the latents are then their numbers, on the grid of the smaller axes.

    Attributes:
        data: What one item is.
        latent: What its code is: of the same kind, with `channels` channels; or tokens on a grid.

    Raises:
        ValueError: The data have no spatial axes, their sizes are no multiples of `factor`, or the given pictures have
            other channels than the data.
    """

    def __init__(self, data: DataSpec, options: Any, *, channels: int, factor: int, codes: int = 0) -> None:
        super().__init__()
        self.data, self.options, self.factor = data, options, factor
        self._code_channels = channels
        latent = _latent_spec(data, channels, factor)
        self.latent = _token_spec(latent, codes) if codes else latent

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the code of an item of `shape`, which may be larger or smaller than `data`.

        Raises:
            ValueError: It has other axes, channels or frames than the data, or a size that is no multiple of `factor`.
        """
        first = self.data.channel_axis + 1
        if len(shape) != len(self.data.shape) or shape[:first] != self.data.shape[:first]:
            raise ValueError(f"items of shape {shape} are not what this codec codes, {self.data.shape} of any size.")
        if any(size % self.factor for size in shape[first:]):
            raise ValueError(f"items of shape {shape} have a size that is no multiple of {self.factor}, the codec's.")
        sizes = (size // self.factor for size in shape[first:])
        return (*shape[: first - 1], self._code_channels, *sizes)

    @abstractmethod
    def code(self, x: Tensor) -> Tensor:
        """Return the code (N, c, *) of items or frames (N, C, *), before it is scaled."""

    @abstractmethod
    def render(self, code: Tensor) -> Tensor:
        """Return the items or frames (N, C, *) of a code (N, c, *)."""

    def encode(self, x: Tensor) -> Tensor:
        """Map data (B, *data.shape) to latents (B, *latent.shape)."""
        return self.latent.to_model(self._per_frame(self.code, x))

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (B, *latent.shape) to data (B, *data.shape)."""
        return self._per_frame(self.render, self.latent.from_model(z))

    def encode_maps(self, maps: Tensor) -> Tensor:
        """Map pictures given beside the data, (B, C, *) and for video also (B, F, C, *), to their latents."""
        if maps.ndim > len(self.data.shape):
            return self.encode(maps)
        return self.encode(maps.unsqueeze(1)).squeeze(1)  # one picture for all frames

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Measure mean and standard deviation of the code, per channel, on data (B, *data.shape)."""
        code = self._per_frame(self.code, x)
        per_channel = code.movedim(self.latent.channel_axis + 1, 0).flatten(1).double()
        self.scale(per_channel.mean(1), per_channel.std(1))

    def scale(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation (c,) of the code."""
        safe = torch.where(std > 0, std, 1.0)
        self.latent = replace(self.latent, mean=tuple(mean.tolist()), std=tuple(safe.tolist()))

    def _per_frame(self, change: Any, x: Tensor) -> Tensor:
        if self.data.kind != "video":
            return change(x)
        return change(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _latent_spec(data: DataSpec, channels: int, factor: int) -> DataSpec:
    if data.kind not in SPATIAL_AXES:
        raise ValueError(f"a codec works on {', '.join(SPATIAL_AXES)} data, not on {data.kind}; use codec=none.")
    sizes = data.shape[data.channel_axis + 1 :]
    if any(size % factor for size in sizes):
        raise ValueError(
            f"the codec shrinks each axis by {factor}, which does not divide {' x '.join(map(str, sizes))}; choose "
            f"data.size as a multiple of {factor}, or another codec."
        )
    shape = (*data.shape[: data.channel_axis], channels, *(size // factor for size in sizes))
    return replace(data, shape=shape, range=None, mean=(), std=(), cond=_coded(data, channels))


def _coded(data: DataSpec, channels: int) -> dict[str, ConditionSpec]:
    """Return the conditions with the given picture, where there is one, as it is once it is coded."""
    if not has_source(data):
        return data.cond
    given = data.cond[SOURCE]
    if given.width != data.channels:
        raise ValueError(
            f"the given pictures have {given.width} channels and the data {data.channels}, but one codec codes both; "
            f"give pictures of {data.channels} channels, or use codec=none."
        )
    return {**data.cond, SOURCE: replace(given, width=channels)}


def _token_spec(latent: DataSpec, codes: int) -> DataSpec:
    """Return what the numbers of `codes` vectors are, in place of the vectors of `latent`: frames, rows, columns."""
    grid = (*latent.shape[: latent.channel_axis], *latent.shape[latent.channel_axis + 1 :])
    return DataSpec(
        kind="tokens",
        shape=(prod(grid),),
        grid=grid,
        vocabulary=tuple(map(str, range(codes))),
        classes=latent.classes,
        cond=latent.cond,
    )

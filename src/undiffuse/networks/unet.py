"""U-Net for signals, images, volumes, and video frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.convolution import TemporalAttention, UNetBlock, Upsample, convolution, group_norm
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP
from undiffuse.networks.frames import context_per_frame, count_frames
from undiffuse.networks.heads import read_heads
from undiffuse.networks.options import UNetOptions
from undiffuse.spec import ConditionSpec


class UNet(Backbone):
    """Convolutional U-Net over (B, C, *), any number of channels and any spatial size.

    An input with one axis more, (B, F, C, *), is video: its frames are folded into the batch, each with its
    own noise level if levels are (B, F). Frames meet only in temporal attention (`options.temporal`), which
    starts as the identity: a fresh video network computes what the image network computes, and image weights
    load into it (`load_state_dict(..., strict=False)`).

    The network halves sizes rounding up and doubles back to the size of the skip, so odd sizes work. Each
    level has `blocks` residual blocks down, as many up; the up-blocks read the down-blocks' outputs.

    Conditions modulate every residual block; tokens are attended to behind every self-attention and in the middle;
    maps are further channels of the input.

    Args:
        dims: Spatial dimensions: 1, 2 or 3.
        channels: Channels C of the data.
        options: Width, depth, attention, self-conditioning.
        conditions: Conditions by name.
        variance: Whether it has a head "variance".
        outputs: Channels of the head "out", where they are not those of the data.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B, arXiv:2006.11239.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        options: UNetOptions | None = None,
        *,
        conditions: Mapping[str, ConditionSpec] | None = None,
        variance: bool = False,
        outputs: int | None = None,
    ) -> None:
        if dims not in (1, 2, 3):
            raise ValueError(f"dims={dims}; expected 1 (signals), 2 (images, video) or 3 (volumes).")
        options = options or UNetOptions()
        context_dim = 4 * options.channels
        super().__init__(make_conditioners(conditions, context_dim, dims=dims))
        self.dims, self.channels, self.options = dims, channels, options
        self.self_conditioned, self.learns_variance = options.self_condition, variance
        widths = options.widths
        self.context = ContextMLP(context_dim)
        seen = channels * (1 + options.self_condition) + self.conditioners.map_channels
        self.enter = convolution(dims, seen, widths[0])
        self.down = nn.ModuleList(
            self._level(level, entering=widths[max(level - 1, 0)]) for level in range(len(widths))
        )
        self.reduce = nn.ModuleList(convolution(dims, width, width, stride=2) for width in widths[:-1])
        self.mid = self._block(len(widths) - 1, widths[-1], attends=True)
        self.enlarge = nn.ModuleList(Upsample(dims, coarse, fine) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(self._level(level, skips=widths[level]) for level in range(len(widths)))
        self.norm = group_norm(widths[0])
        self.leave = convolution(dims, widths[0], outputs or channels, zero_init=True)
        # Built last, so that one seed gives the image part of both networks the same weights.
        self.temporal = nn.ModuleDict(self._temporal_blocks() if options.temporal else {})
        self.variance = convolution(dims, widths[0], channels, zero_init=True) if variance else None

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Map `x` (B, C, *) or (B, F, C, *) to {"out": same shape}; `noise_level` is (B,), for video also (B, F).

        Where it is learned, "variance" of the same shape stands beside it.
        """
        batch, frames = x.shape[0], count_frames(x, self.dims, self.channels, "U-Net")
        level = self.noise_level_for(noise_level, batch, frames)
        cond = self.conditions(cond, batch)
        context = self.context(level, cond.vector)
        x = self.conditioners.add_maps(self.add_estimate(x, cond, x.ndim - self.dims - 1), cond.maps)
        if frames is None:
            return self._run(x, context, 1, cond.texts(1))
        heads = self._run(x.flatten(0, 1), context_per_frame(context, frames), frames, cond.texts(frames))
        return {name: head.unflatten(0, (batch, frames)) for name, head in heads.items()}

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named "in", "down0.0" (level.block) .., "mid", .. "up0.0" .., "out"; "reduce0", "enlarge0" between levels.

        Outputs are (B, width, *); for video (B * F, width, *). Temporal attention is "down0.temporal" and so on.
        """
        named: dict[str, nn.Module] = {"in": self.enter}
        for level, blocks in enumerate(_levels(self.down)):
            named |= self._named(f"down{level}", blocks)
            if level < len(self.reduce):
                named[f"reduce{level}"] = self.reduce[level]
        named |= {"mid": self.mid} | self._named("mid", ())
        for level in reversed(range(len(self.up))):
            if level < len(self.enlarge):
                named[f"enlarge{level}"] = self.enlarge[level]
            named |= self._named(f"up{level}", _levels(self.up)[level])
        return named | {"out": self.leave} | ({"variance": self.variance} if self.variance else {})

    def _run(self, x: Tensor, context: Tensor, frames: int, read: Embedded) -> dict[str, Tensor]:
        """Map frames (N, C, *) with a context (N, E), and tokens to read where there are any, each."""
        x, skips = self.enter(x), []
        for level, blocks in enumerate(_levels(self.down)):
            for block in blocks:
                x = self.run(block, x, context, read.tokens, read.mask)
                skips.append(x)
            x = self._mix_frames(f"down{level}", x, frames)
            if level < len(self.reduce):
                x = self.reduce[level](x)
        x = self._mix_frames("mid", self.run(self.mid, x, context, read.tokens, read.mask), frames)
        for level in reversed(range(len(self.up))):
            if level < len(self.enlarge):
                x = self.run(self.enlarge[level], x, skips[-1].shape[2:])
            for block in _levels(self.up)[level]:
                x = self.run(block, torch.cat([x, skips.pop()], dim=1), context, read.tokens, read.mask)
            x = self._mix_frames(f"up{level}", x, frames)
        return read_heads(silu(self.norm(x)), self.leave, self.variance)

    def _mix_frames(self, stage: str, x: Tensor, frames: int) -> Tensor:
        return self.run(self.temporal[stage], x, frames) if stage in self.temporal else x

    def _level(self, level: int, *, entering: int | None = None, skips: int = 0) -> nn.ModuleList:
        width = self.options.widths[level]
        first = width if entering is None else entering
        inputs = [first + skips] + [width + skips] * (self.options.blocks - 1)
        return nn.ModuleList(self._block(level, channels) for channels in inputs)

    def _block(self, level: int, inputs: int, *, attends: bool = False) -> UNetBlock:
        """Return a block; it reads tokens, if there are any, on a level with self-attention or where it `attends`."""
        options, context_dim = self.options, 4 * self.options.channels
        heads = options.heads if level in options.attention_levels else None
        reads = "tokens" in self.conditioners.fields and (attends or heads is not None)
        cross = (options.heads, context_dim) if reads else None
        width, dropout = options.widths[level], options.dropout
        return UNetBlock(self.dims, inputs, width, context_dim, heads=heads, dropout=dropout, cross=cross)

    def _temporal_blocks(self) -> dict[str, nn.Module]:
        widths, heads = self.options.widths, self.options.heads
        stages = {f"down{level}": width for level, width in enumerate(widths)} | {"mid": widths[-1]}
        stages |= {f"up{level}": width for level, width in enumerate(widths)}
        return {stage: TemporalAttention(width, heads) for stage, width in stages.items()}

    def _named(self, stage: str, blocks: Iterable[nn.Module]) -> dict[str, nn.Module]:
        named = {f"{stage}.{index}": block for index, block in enumerate(blocks)}
        return named | ({f"{stage}.temporal": self.temporal[stage]} if stage in self.temporal else {})


def _levels(side: nn.ModuleList) -> list[nn.ModuleList]:
    """Return the blocks of each level, with their type."""
    return cast("list[nn.ModuleList]", side)

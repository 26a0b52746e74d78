"""Diffusion transformer over patches: signals, images, volumes, and video frame by frame or in space and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from undiffuse.networks.attention import Rotary, SelfAttention
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP
from undiffuse.networks.frames import context_per_frame, count_frames
from undiffuse.networks.heads import read_heads
from undiffuse.networks.modulation import ModulatedNorm, ModulatedResidual, zero_linear
from undiffuse.networks.options import DiTOptions
from undiffuse.networks.patch import from_patches, to_patches
from undiffuse.networks.rope import axial_rotary
from undiffuse.networks.routing import TokenRouting
from undiffuse.networks.transformer_block import TransformerBlock
from undiffuse.spec import ConditionSpec


class DiT(Backbone):
    """Transformer over the patches of (B, C, *), modulated by noise level and condition (adaLN-zero).

    An input with one axis more, (B, F, C, *), is video: its frames are folded into the batch, each with its own noise
    level if levels are (B, F). Frames meet only in temporal attention (`temporal`), which follows every block, joins
    the tokens of one place, and starts as the identity: a fresh video network computes what the image network
    computes, and image weights load into it (see `undiffuse.networks.inflation`).

    Args:
        dims: Spatial dimensions: 1, 2 or 3.
        channels: Channels C of the data.
        options: Width, depth, patch, positions, self-conditioning.
        sizes: Spatial sizes of the training data, multiples of the patch; with learned positions the only ones.
        temporal: Whether frames attend to each other; decides for `options.temporal`.
        conditions: Conditions by name: every block reads the tokens of texts and embeddings; maps are further channels.
        variance: Whether it has a head "variance".

    Raises:
        ValueError: Sizes, patch, heads and dimensions do not fit.

    Source: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", section 3, arXiv:2212.09748. Positions
        are rotary by default where the paper adds fixed waves. Temporal attention: Ho et al. 2022, "Video Diffusion
        Models", section 3, arXiv:2204.03458.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        options: DiTOptions | None = None,
        *,
        sizes: Sequence[int],
        temporal: bool = False,
        conditions: Mapping[str, ConditionSpec] | None = None,
        variance: bool = False,
    ) -> None:
        options = options or DiTOptions()
        width = options.width
        super().__init__(make_conditioners(conditions, width, dims=dims))
        self.dims, self.channels, self.options = dims, channels, options
        self.patch, self.head_dim, self.sizes = options.patch, width // options.heads, tuple(sizes)
        self.self_conditioned, self.learns_variance = options.self_condition, variance
        self._check_construction()
        pixels = self.patch**dims
        self.context = ContextMLP(width)
        seen = channels * (1 + options.self_condition) + self.conditioners.map_channels
        self.enter = nn.Linear(seen * pixels, width)
        self.places = nn.Parameter(self._first_places()) if options.positions == "learned" else None
        self.body = nn.ModuleList(self._spatial_block() for _ in range(options.depth))
        self.norm = ModulatedNorm(width, width)
        self.leave = zero_linear(width, channels * pixels)
        self.routing = TokenRouting(options.route)
        # Built last, so that one seed gives the image part of both networks the same weights.
        self.temporal = nn.ModuleList(self._temporal_block() for _ in range(options.depth if temporal else 0))
        self.variance = zero_linear(width, channels * pixels) if variance else None

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Map `x` (B, C, *) or (B, F, C, *) to {"out": same shape}; `noise_level` is (B,), for video also (B, F).

        Every spatial size is a multiple of the patch; with learned positions it is that of the training. Where it is
        learned, "variance" of the same shape stands beside "out".
        """
        batch, frames = x.shape[0], count_frames(x, self.dims, self.channels, "DiT")
        self.check_sizes(x.shape[-self.dims :])
        level = self.noise_level_for(noise_level, batch, frames)
        cond = self.conditions(cond, batch)
        context = self.context(level, cond.vector)
        x = self.conditioners.add_maps(self.add_estimate(x, cond, x.ndim - self.dims - 1), cond.maps)
        if frames is None:
            return self._run(x, context, cond.texts(1), 1)
        heads = self._run(x.flatten(0, 1), context_per_frame(context, frames), cond.texts(frames), frames)
        return {name: head.unflatten(0, (batch, frames)) for name, head in heads.items()}

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named "in", "block0" .., "out"; outputs (B, L, width), for video (B * F, L, width), the last (B, L, C p^n).

        The temporal attention behind a block is "block0.temporal".
        """
        named: dict[str, nn.Module] = {"in": self.enter}
        for index, block in enumerate(self.body):
            named[f"block{index}"] = block
            if self.temporal:
                named[f"block{index}.temporal"] = self.temporal[index]
        return named | {"out": self.leave} | ({"variance": self.variance} if self.variance else {})

    def returns_tokens(self, name: str) -> bool:
        """All blocks do."""
        return True

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Refuse spatial sizes that this network cannot take.

        Raises:
            ValueError: They are no multiples of the patch, or not those of learned positions.
        """
        if any(size % self.patch for size in sizes):
            raise ValueError(
                f"sizes {tuple(sizes)} do not divide into patches of side {self.patch}; use multiples of it, or "
                f"another model.patch."
            )
        if self.options.positions == "learned" and tuple(sizes) != self.sizes:
            raise ValueError(
                f"sizes {tuple(sizes)} are not those of the training, {self.sizes}, which learned positions are made "
                f"for; train with model.positions=rope to be free of them."
            )

    def _run(self, x: Tensor, context: Tensor, texts: Embedded, frames: int) -> dict[str, Tensor]:
        """Map frames (N, C, *), with a context (N, E) and tokens to read for each."""
        sizes = x.shape[2:]
        hidden = self.enter(to_patches(x, self.patch))  # (N, L, D)
        hidden = hidden if self.places is None else hidden + self.places
        around = _Around(context[:, None], self._rotary(sizes, hidden), texts, frames)
        hidden = self._body(hidden, around)
        heads = read_heads(self.norm(hidden, around.context), self.leave, self.variance)
        return {name: from_patches(head, self.patch, sizes) for name, head in heads.items()}

    def _body(self, hidden: Tensor, around: _Around) -> Tensor:
        """Run all blocks; in training some tokens skip those of `options.routed_blocks`."""
        depth, skipped = len(self.body), self.options.routed_blocks
        route = self.routing(len(hidden) // around.frames, hidden.shape[1], around.frames, hidden.device)
        if route is None:
            return self._blocks(range(depth), hidden, around)
        hidden = self._blocks(range(skipped.start), hidden, around)
        turns = None if around.rotary is None else route.narrow_rotary(around.rotary)
        kept = self._blocks(skipped, route.narrow(hidden), around._replace(rotary=turns))
        return self._blocks(range(skipped.stop, depth), route.widen(kept, hidden), around)

    def _blocks(self, chosen: range, hidden: Tensor, around: _Around) -> Tensor:
        context, rotary, texts, frames = around
        for index in chosen:
            hidden = self.run(self.body[index], hidden, context, rotary, texts.tokens, texts.mask)
            if self.temporal:
                hidden = self.run(self.temporal[index], hidden, context, frames)
        return hidden

    def _rotary(self, sizes: Sequence[int], like: Tensor) -> Rotary | None:
        if self.places is not None:
            return None
        return axial_rotary([size // self.patch for size in sizes], self.head_dim, like)

    def _spatial_block(self) -> TransformerBlock:
        options, width = self.options, self.options.width
        token_dim = width if "tokens" in self.conditioners.fields else None
        settings = {"dropout": options.dropout, "ratio": options.ratio, "qk_norm": options.qk_norm}
        return TransformerBlock(width, options.heads, width, token_dim=token_dim, **settings)

    def _temporal_block(self) -> nn.Module:
        options = self.options
        inner = FrameAttention(options.width, options.heads, dropout=options.dropout, qk_norm=options.qk_norm)
        return ModulatedResidual(inner, options.width, options.width)

    def _first_places(self) -> Tensor:
        count = prod(size // self.patch for size in self.sizes)
        return 0.02 * torch.randn(count, self.options.width)

    def _check_construction(self) -> None:
        if self.dims not in (1, 2, 3) or len(self.sizes) != self.dims:
            raise ValueError(
                f"dims={self.dims} with sizes={self.sizes}; expected 1 (signals), 2 (images, video) or 3 (volumes), "
                f"and as many sizes."
            )
        self.check_sizes(self.sizes)
        if self.options.positions == "rope" and self.head_dim < 2 * self.dims:
            raise ValueError(
                f"heads of {self.head_dim} features are too small for rotary positions in {self.dims} dimensions; make "
                f"width / heads at least {2 * self.dims}."
            )


class _Around(NamedTuple):
    """What blocks read beside their tokens (N, L, D), where N is clips times frames."""

    context: Tensor  # (N, 1, E)
    rotary: Rotary | None
    texts: Embedded
    frames: int


class FrameAttention(nn.Module):
    """Self-attention over frames, among the tokens of one place."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, qk_norm: bool = False) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.attention = SelfAttention(width, heads, dropout=dropout, qk_norm=qk_norm)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map tokens (B * F, L, D), the frames of a clip in a row, to the same shape."""
        clips = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (B * L, F, D)
        mixed = self.attention(clips, Rotary.make(frames, self.head_dim, like=clips))
        return mixed.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)

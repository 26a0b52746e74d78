"""Transformer over tokens: the network of masked and uniform diffusion, and with a causal mask of their baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import prod

import torch
from torch import Tensor, nn

from undiffuse.networks.attention import Rotary
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.compilation import eager_blocks
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP
from undiffuse.networks.modulation import ModulatedNorm, zero_linear
from undiffuse.networks.past import Past
from undiffuse.networks.places import LearnedPlaces
from undiffuse.networks.rope import axial_rotary
from undiffuse.networks.transformer_block import TransformerBlock
from undiffuse.spec import ConditionSpec


class Transformer(Backbone):
    """Token ids (B, L) -> logits (B, L, K) over clean tokens.

    Positions are rotary, so any length works; tokens on a grid have a position on each of its axes. With `places` they
    are learned instead, and there is one length. Noise level and condition vector modulate every block (adaLN-zero).
    With neither, the share of masks does where it is counted, or a learned constant where `gated`; else it is a plain
    pre-norm transformer. Every block attends to the tokens of the condition, where there are any.

    Args:
        classes_out: Number of clean tokens K.
        states: Number of input tokens: K, or K + 1 with a mask.
        width, depth, heads: Features per token, blocks, attention heads; width / heads must be even.
        time_dependent: Whether the noise level is read.
        dropout: Share of features dropped in training after attention and feed-forward layers.
        neighbours: Tokens on each side that every block mixes by a convolution before attention; 0 for none.
        causal: Let each token see itself and those before it only; the convolution then mixes those before it, in line.
        conv_mlp: Let the feed-forward part of blocks see the neighbours of each token.
        gated: Let blocks begin closed also where neither time nor condition modulates them. A small network on text
            learns faster so, at first.
        counts_masks: Tell the blocks the share of masks in the row, which a network that is not told the time would
            have to count; it stays a function of the tokens alone. Without effect where the time is told, where there
            is no mask, and where causal.
        conditions: Conditions by name; maps are refused.
        grid: Size of the grid that the tokens lie on, row by row; empty where they are a line of any length.
        places: Sizes of learned positions: those of the grid, or the one length of a line. Empty for rotary ones.

    Raises:
        ValueError: Heads have too few features for the axes of the grid, or `conv_mlp` where causal.
    """

    def __init__(
        self,
        classes_out: int,
        states: int,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        time_dependent: bool = False,
        dropout: float = 0.0,
        neighbours: int = 0,
        causal: bool = False,
        conv_mlp: bool = False,
        gated: bool = False,
        counts_masks: bool = False,
        conditions: Mapping[str, ConditionSpec] | None = None,
        grid: Sequence[int] = (),
        places: Sequence[int] = (),
    ) -> None:
        if not places and width // heads < 2 * len(grid):
            raise ValueError(
                f"width={width} leaves heads={heads} heads {width // heads} features each, too few to turn along the "
                f"{len(grid)} axes of the grid; use at least {2 * len(grid)} per head."
            )
        super().__init__(make_conditioners(conditions, width), time_dependent=time_dependent)
        self.states = states
        self.causal = causal
        self.head_dim, self.grid = width // heads, tuple(grid)
        self.counts = counts_masks and states > classes_out and not (time_dependent or causal)
        told = time_dependent or self.counts or len(self.conditioners) > 0
        context_dim = width if told or gated else None
        self.constant = nn.Parameter(0.4 * torch.randn(1, width)) if gated and not told else None
        token_dim = width if "tokens" in self.conditioners.fields else None
        self.context = None if context_dim is None else ContextMLP(width, time_dependent=time_dependent or self.counts)
        self.embedding = nn.Embedding(states, width)
        nn.init.normal_(
            self.embedding.weight, std=0.02
        )  # small beside the blocks' outputs, which then matter from the start
        self.places = LearnedPlaces(places, width) if places else None
        self.body = nn.ModuleList(
            TransformerBlock(
                width,
                heads,
                context_dim,
                dropout,
                neighbours,
                token_dim=token_dim,
                grid=() if causal else self.grid,
                causal=causal,
                conv_mlp=conv_mlp,
            )
            for _ in range(depth)
        )
        self.norm = ModulatedNorm(width, context_dim)
        self.leave = zero_linear(width, classes_out)

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor | None = None,
        cond: Embedded | None = None,
        past: list[Past] | None = None,
    ) -> dict[str, Tensor]:
        """Map ids `x` (B, L) to {"out": (B, L, K)}; `noise_level` is (B,) or (B, L), ignored where time-free.

        Where causal, `past` holds what each block remembers of the tokens before `x`, and is told of `x`.
        """
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; the transformer expects token ids (B, L).")
        cond = self.conditions(cond, x.shape[0])
        context = self._context(self._level(noise_level, x), cond.vector)
        hidden, rotary = self._placed(self.embedding(x), past[0].length if past else 0)
        with nullcontext() if past is None else eager_blocks():  # a memory that grows is not for compiled code
            for index, block in enumerate(self.body):
                extra = () if past is None else (None, past[index])
                hidden = self.run(block, hidden, context, rotary, cond.tokens, cond.mask, *extra)
        return {"out": self.leave(self.norm(hidden, context))}

    def new_past(self, capacity: int) -> list[Past]:
        """Return the empty memory of the blocks for at most `capacity` tokens.

        Raises:
            ValueError: The network is not causal: what it says of a token depends on those behind it.
        """
        if not self.causal:
            raise ValueError("only a causal network can remember what it has read; build it with causal=True.")
        return [Past(capacity) for _ in self.body]

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named "in", "block0" .., "out"; outputs (B, L, width), the last (B, L, K)."""
        body = {f"block{index}": block for index, block in enumerate(self.body)}
        return {"in": self.embedding, **body, "out": self.leave}

    def returns_tokens(self, name: str) -> bool:
        """All blocks do."""
        return True

    def _level(self, noise_level: Tensor | None, x: Tensor) -> Tensor | None:
        """Return the noise level that the blocks are told: the one given, or the share of masks in each row."""
        if self.counts:
            return (x >= self.leave.out_features).to(self.leave.weight.dtype).mean(1)
        return self.noise_level_for(noise_level, *x.shape)

    def _placed(self, hidden: Tensor, first: int) -> tuple[Tensor, Rotary | None]:
        """Return tokens (B, L, D) that know their places, and rotary positions where it is those that tell them."""
        if self.places is None:
            return hidden, self._positions(hidden, first)
        count, known = hidden.shape[1], prod(self.places.sizes)
        if not (count == known or (self.causal and first + count <= known)):
            raise ValueError(
                f"{count} tokens are not those of the training, {' x '.join(map(str, self.places.sizes))}, which "
                f"learned positions are made for; train with model.positions=rope to be free of them."
            )
        return hidden + self.places()[first : first + count], None

    def _positions(self, hidden: Tensor, first: int) -> Rotary:
        count = hidden.shape[1]
        if not self.grid:
            return Rotary.make(count, self.head_dim, like=hidden, first=first)
        if self.causal and first + count <= prod(self.grid):
            whole = axial_rotary(self.grid, self.head_dim, like=hidden)
            return Rotary(whole.cos[first : first + count], whole.sin[first : first + count])
        if count != prod(self.grid):
            raise ValueError(
                f"{count} tokens do not fill the grid {self.grid}, which takes {prod(self.grid)}; tokens "
                f"on a grid have one length."
            )
        return axial_rotary(self.grid, self.head_dim, like=hidden)

    def _context(self, level: Tensor | None, vector: Tensor | None) -> Tensor | None:
        if self.context is None:
            return None
        context = self.context(level, vector if self.constant is None else self.constant)
        return context[:, None] if context.ndim == 2 else context  # (B, 1 or L, E)

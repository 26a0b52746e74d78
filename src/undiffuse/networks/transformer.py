"""Bidirectional transformer over tokens, the network of masked and uniform diffusion."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from undiffuse.networks.attention import Rotary
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP
from undiffuse.networks.modulation import ModulatedNorm, zero_linear
from undiffuse.networks.transformer_block import TransformerBlock
from undiffuse.spec import ConditionSpec


class Transformer(Backbone):
    """Token ids (B, L) -> logits (B, L, K) over clean tokens.

    Positions are rotary, so any length works. Noise level and condition vector modulate every block
    (adaLN-zero); with neither, it is a plain pre-norm transformer. Every block attends to the tokens of the
    condition, where there are any.

    Args:
        classes_out: Number of clean tokens K.
        states: Number of input tokens: K, or K + 1 with a mask.
        width, depth, heads: Features per token, blocks, attention heads; width / heads must be even.
        time_dependent: Whether the noise level is read.
        dropout: Share of features dropped in training after attention and feed-forward layers.
        neighbours: Tokens on each side that every block mixes by a convolution before attention; 0 for none.
        conditions: Conditions by name; maps are refused.
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
        conditions: Mapping[str, ConditionSpec] | None = None,
    ) -> None:
        super().__init__(make_conditioners(conditions, width), time_dependent=time_dependent)
        self.states = states
        self.head_dim = width // heads
        context_dim = width if time_dependent or len(self.conditioners) else None
        token_dim = width if "tokens" in self.conditioners.fields else None
        self.context = None if context_dim is None else ContextMLP(width, time_dependent=time_dependent)
        self.embedding = nn.Embedding(states, width)
        nn.init.normal_(
            self.embedding.weight, std=0.02
        )  # small beside the blocks' outputs, which then matter from the start
        self.body = nn.ModuleList(
            TransformerBlock(width, heads, context_dim, dropout, neighbours, token_dim=token_dim) for _ in range(depth)
        )
        self.norm = ModulatedNorm(width, context_dim)
        self.leave = zero_linear(width, classes_out)

    def forward(self, x: Tensor, noise_level: Tensor | None = None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Map ids `x` (B, L) to {"out": (B, L, K)}; `noise_level` is (B,) or (B, L), ignored where time-free."""
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; the transformer expects token ids (B, L).")
        cond = self.conditions(cond, x.shape[0])
        context = self._context(self.noise_level_for(noise_level, *x.shape), cond.vector)
        hidden = self.embedding(x)
        rotary = Rotary.make(x.shape[1], self.head_dim, like=hidden)
        for block in self.body:
            hidden = self.run(block, hidden, context, rotary, cond.tokens, cond.mask)
        return {"out": self.leave(self.norm(hidden, context))}

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named "in", "block0" .., "out"; outputs (B, L, width), the last (B, L, K)."""
        body = {f"block{index}": block for index, block in enumerate(self.body)}
        return {"in": self.embedding, **body, "out": self.leave}

    def _context(self, level: Tensor | None, vector: Tensor | None) -> Tensor | None:
        if self.context is None:
            return None
        context = self.context(level, vector)
        return context[:, None] if context.ndim == 2 else context  # (B, 1 or L, E)

"""Self-attention and cross-attention: the fused kernel by default, plain mathematics where derivatives ask for it.

The fused kernels have no forward-mode derivative and no double backward. Code that needs either enters
`math_attention()`, and every attention below it computes the same numbers with plain operations. So does an
attention whose `weights` is hooked, for the fused kernels never hold the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from undiffuse.networks.compilation import eager_blocks
from undiffuse.networks.dropout import Dropout
from undiffuse.networks.past import Past

_USE_MATH: ContextVar[bool] = ContextVar("undiffuse_math_attention", default=False)


@contextmanager
def math_attention() -> Iterator[None]:
    """Let attention in this block support `torch.func.jvp` and double backward, for (B, heads, L, L) memory.

    Compiled blocks, which support neither, run their own code.
    """
    token = _USE_MATH.set(True)
    try:
        with eager_blocks():
            yield
    finally:
        _USE_MATH.reset(token)


def in_derivatives() -> bool:
    """Whether code runs inside `math_attention`, and so must do without kernels that lack derivatives."""
    return not torch.compiler.is_compiling() and _USE_MATH.get()  # compiled code cannot read context variables


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of features turned by an angle that grows with the position.

    Source: Su et al. 2021, "RoFormer", section 3.2, arXiv:2104.09864.
    """

    cos: Tensor  # (L, head_dim / 2)
    sin: Tensor

    @staticmethod
    def make(length: int, head_dim: int, like: Tensor, first: int = 0) -> Rotary:
        """Return the turns of `length` positions from `first`, for an even `head_dim`, on the device of `like`."""
        # In half precision the angle of position 1000 would be off by whole radians.
        dtype = torch.promote_types(like.dtype, torch.float32)
        position = torch.arange(first, first + length, device=like.device, dtype=dtype)
        pair = torch.arange(head_dim // 2, device=like.device, dtype=dtype)
        angles = position[:, None] * torch.exp(pair * (-2.0 * math.log(10_000.0) / head_dim))
        return Rotary(angles.cos().to(like.dtype), angles.sin().to(like.dtype))

    def turn(self, x: Tensor) -> Tensor:
        """Turn queries or keys (..., L, head_dim)."""
        first, second = x.chunk(2, dim=-1)
        turned = (first * self.cos - second * self.sin, first * self.sin + second * self.cos)
        return torch.cat(turned, dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    weigh: Callable[[Tensor], Tensor] | None = None,
    causal: bool = False,
) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value.

    Args:
        query, key, value: (B, heads, L, d); the queries may be of another number than keys and values.
        mask: Bool, broadcast to (B, heads, queries, keys); False where a key is not to be read; each query needs
            one True.
        weigh: Stands for the softmax of the scores (B, heads, L, L), with plain mathematics; None: whichever is faster.
        causal: Whether the queries, which stand at the last positions of the keys, read none behind them.
    """
    fused = weigh is None and not in_derivatives()  # derivatives are taken of the uncompiled network
    if causal and query.shape[-2] > 1:
        if fused and mask is None and query.shape[-2] == key.shape[-2]:
            return scaled_dot_product_attention(query, key, value, is_causal=True)
        earlier = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        earlier = earlier.tril(key.shape[-2] - query.shape[-2])
        mask = earlier if mask is None else mask & earlier
    if fused:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) if weigh is None else weigh(scores)) @ value


class AttentionWeights(nn.Module):
    """Softmax of scores over the keys; a module so that hooks can read and change scores and weights.

    It runs only while something hooks it.
    """

    def forward(self, scores: Tensor) -> Tensor:
        """Map scores (B, heads, L, L) to weights of the same shape; those of a query sum to 1."""
        return scores.softmax(dim=-1)

    @property
    def is_hooked(self) -> bool:
        """Whether anyone listens. Hooks are not for compiled code, which therefore keeps the fused kernel."""
        return not torch.compiler.is_compiling() and bool(self._forward_hooks or self._forward_pre_hooks)


class HeadNorm(nn.RMSNorm):
    """Root-mean-square normalisation of the features of a head, in the dtype of its input also under autocast."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., head_dim) to the same shape."""
        return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens.

    Args:
        dim: Features D per token; a multiple of `heads` (and D / heads even where rotary positions are used).
        heads: Number of heads.
        dropout: Share of the output's features dropped in training.
        zero_init: Start with output 0, so that a residual around it starts as the identity.
        qk_norm: Normalise the queries and keys of each head, so that scores cannot grow without bound (Dehghani et al.
            2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2, arXiv:2302.05442).
        causal: Let each token read itself and those before it only.

    Attributes:
        weights: Where hooks find the attention weights (B, heads, L, L); see `undiffuse.networks.hooks`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dropout: float = 0.0,
        zero_init: bool = False,
        qk_norm: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} features do not split into {heads} heads; make them a multiple of {heads}.")
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.query_norm = HeadNorm(dim // heads) if qk_norm else nn.Identity()
        self.key_norm = HeadNorm(dim // heads) if qk_norm else nn.Identity()
        self.weights = AttentionWeights()
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        if zero_init:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """Map tokens (B, L, D) to (B, L, D).

        `mask` (B, L) bool is True for tokens that may be read; `past` holds those before `x`, and then `x` too.
        """
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, L, d)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotary.turn(query), rotary.turn(key)
        if past is not None:
            key, value = past.add(key, value)
        readable = None if mask is None else mask[:, None, None, :]
        weigh = self.weights if self.weights.is_hooked else None
        mixed = attend(query, key, value, readable, weigh, causal=self.causal)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence over another: the queries are of `x`, keys and values of `tokens`.

    Args:
        dim: Features D per query token; a multiple of `heads`.
        heads: Number of heads.
        token_dim: Features E per token that is read; None: D.
        dropout: Share of the output's features dropped in training.
        zero_init: Start with output 0, so that a residual around it starts as the identity.
        qk_norm: Normalise the queries and keys of each head, as in `SelfAttention`.

    Attributes:
        weights: Where hooks find the attention weights (B, heads, N, L); see `undiffuse.networks.hooks`.

    Raises:
        ValueError: `heads` does not divide `dim`.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2, arXiv:1706.03762; as a condition of
        diffusion: Rombach et al. 2022, section 3.3, arXiv:2112.10752.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        token_dim: int | None = None,
        *,
        dropout: float = 0.0,
        zero_init: bool = True,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} features do not split into {heads} heads; make them a multiple of {heads}.")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(token_dim or dim, 2 * dim)
        self.query_norm = HeadNorm(dim // heads) if qk_norm else nn.Identity()
        self.key_norm = HeadNorm(dim // heads) if qk_norm else nn.Identity()
        self.weights = AttentionWeights()
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        if zero_init:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let `x` (B, N, D) read `tokens` (B, L, E), and return what it read, (B, N, D).

        `mask` (B, L) bool is True for tokens that may be read; every row needs one, which the tokens of our
        conditioners have: their learned null is always readable. Masked tokens must be finite; they change no bit.
        """
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        key, value = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query), self.key_norm(key)
        readable = None if mask is None else mask[:, None, None, :]
        mixed = attend(query, key, value, readable, self.weights if self.weights.is_hooked else None)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))

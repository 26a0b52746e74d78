"""The block that transformers over tokens, patches and texts have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from undiffuse.networks.attention import CrossAttention, Rotary, SelfAttention
from undiffuse.networks.dropout import Dropout
from undiffuse.networks.modulation import ModulatedResidual
from undiffuse.networks.past import Past

_CONVOLUTIONS = (nn.Conv1d, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # by the axes of the grid; 0: a line


class TransformerBlock(nn.Module):
    """Mixing of neighbours where asked for, self-attention, cross-attention where there are tokens to read, and
    feed-forward, each a modulated residual.

    Args:
        width: Features D per token.
        heads: Attention heads.
        context_dim: Size E of the context that modulates; None: a plain pre-norm block.
        dropout: Share of features dropped in training after attention and feed-forward layers.
        neighbours: Tokens on each side that are mixed by a convolution; 0 for none.
        ratio: Features between the two layers of the feed-forward part, over width.
        qk_norm: Normalise queries and keys.
        token_dim: Features T of the tokens that cross-attention reads; None: no cross-attention.
        grid: Size of the grid that tokens lie on, for the mixing of neighbours; empty for a line.
        causal: Let each token see itself and those before it only; on a line.
        conv_mlp: Let the feed-forward part see the neighbours of each token.

    Raises:
        ValueError: The feed-forward part would see what is behind a token.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        context_dim: int | None,
        dropout: float = 0.0,
        neighbours: int = 0,
        *,
        ratio: float = 4.0,
        qk_norm: bool = False,
        token_dim: int | None = None,
        grid: Sequence[int] = (),
        causal: bool = False,
        conv_mlp: bool = False,
    ) -> None:
        super().__init__()
        if causal and conv_mlp:
            raise ValueError("conv_mlp sees the tokens on both sides of each; leave it out where causal.")
        self.mixing = NeighbourMixing(width, neighbours, grid, causal) if neighbours else nn.Identity()
        attention = SelfAttention(width, heads, dropout=dropout, qk_norm=qk_norm, causal=causal)
        inside = round(ratio * width)
        self.attention = ModulatedResidual(attention, width, context_dim)
        feed_forward: nn.Module
        if conv_mlp:
            feed_forward = ConvolvedFeedForward(width, inside, grid, dropout)
        else:
            layers = (nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, width), Dropout(dropout))
            feed_forward = nn.Sequential(*layers)
        self.feed_forward = ModulatedResidual(feed_forward, width, context_dim)
        self.cross: ModulatedResidual | None = None
        if token_dim is not None:
            # Behind a gate that starts at 0 an output that starts at 0 too would never get a gradient.
            ungated = context_dim is None
            cross = CrossAttention(width, heads, token_dim, dropout=dropout, zero_init=ungated, qk_norm=qk_norm)
            self.cross = ModulatedResidual(cross, width, context_dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        rotary: Rotary | None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Map `x` (B, L, D).

        Args:
            x: Tokens (B, L, D).
            context: (B, 1 or L, E), or None where the block takes none.
            rotary: Positions of `x`; None: none.
            tokens: What cross-attention reads, (B, M, T).
            token_mask: (B, M) bool, True for those that may be read.
            mask: (B, L) bool, True for tokens of `x` that may be read.
            past: Of causal blocks: the tokens read before `x`, to which `x` is added.
        """
        mixed = self.mixing(x, past) if isinstance(self.mixing, NeighbourMixing) else x
        x = self.attention(mixed, context, rotary, mask, past)
        if self.cross is not None:
            x = self.cross(x, context, tokens, token_mask)
        return self.feed_forward(x, context)


class NeighbourMixing(nn.Module):
    """Adds to each token a learned combination of its neighbours, feature by feature; starts as the identity.

    Attention has to learn who is next to whom before it learns anything of spelling; here that is given, which saves
    a small model most of its first thousand steps.

    Args:
        width: Features D per token.
        neighbours: Tokens n on each side.
        grid: Size of the grid that tokens lie on, row by row, with neighbours along each axis; empty for a line.
        causal: Whether those behind a token are left out, and it sees 2 n before it; on a line.

    Source: the short convolutions of So et al. 2021, "Primer", arXiv:2109.08668, which are causal.
    """

    def __init__(self, width: int, neighbours: int, grid: Sequence[int] = (), causal: bool = False) -> None:
        super().__init__()
        size, self.grid = 2 * neighbours + 1, tuple(grid)
        self.before = 2 * neighbours if causal else 0
        layer = _CONVOLUTIONS[len(self.grid)]
        self.convolution = layer(width, width, size, padding=0 if causal else neighbours, groups=width)
        nn.init.zeros_(self.convolution.weight)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """Map tokens (B, L, D); `past` holds what came before them, where causal."""
        seen = (past or Past(0)).before(x, self.before) if self.before else x
        return x + _on_grid(self.convolution, seen, self.grid)


class ConvolvedFeedForward(nn.Module):
    """Two convolutions over each token and its neighbours, 3 along every axis, in place of the two linear layers.

    Args:
        width: Features D per token.
        inside: Features between the layers.
        grid: Size of the grid that tokens lie on, row by row; empty for a line.
        dropout: Share of features dropped in training.

    Source: the code of Gu et al. 2022 (VQ-Diffusion), arXiv:2111.14822, "conv_mlp" of its class-conditional models.
    """

    def __init__(self, width: int, inside: int, grid: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        self.grid, layer = tuple(grid), _CONVOLUTIONS[len(grid)]
        first, last = layer(width, inside, 3, padding=1), layer(inside, width, 3, padding=1)
        self.layers = nn.Sequential(first, nn.GELU(), last, Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, L, D)."""
        return _on_grid(self.layers, x, self.grid)


def _on_grid(layer: nn.Module, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Apply a layer on (B, D, *grid) to tokens (B, L, D)."""
    placed: Tensor = layer(x.mT.unflatten(-1, grid) if grid else x.mT)
    return placed.flatten(2).mT

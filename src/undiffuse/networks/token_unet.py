"""U-Net over tokens that lie on a grid: an embedding in front, logits behind, between them the network of images."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor, nn

from undiffuse.networks.embedded import Embedded
from undiffuse.networks.options import UNetOptions
from undiffuse.networks.unet import UNet
from undiffuse.spec import ConditionSpec


class TokenUNet(UNet):
    """Token ids (B, L) -> logits (B, L, K) over clean tokens, by a U-Net over the grid that they lie on, row by row.

    A row of tokens without a grid, (L,), has one axis; there any length works. Like every U-Net it is told the time.

    Args:
        grid: Sizes of the grid, 1 to 3 of them.
        classes_out: Number of clean tokens K.
        states: Number of input tokens: K, or K + 1 with a mask.
        options: Width, depth, attention.
        conditions: Conditions by name.

    Raises:
        ValueError: A grid of more axes, or options that belong to continuous data.

    Source: Hu et al. 2021 (VQ-DDM), arXiv:2112.01799: a small U-Net on the grid of codes. Theirs differs in its blocks.
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        classes_out: int,
        states: int,
        options: UNetOptions | None = None,
        *,
        conditions: Mapping[str, ConditionSpec] | None = None,
    ) -> None:
        options = options or UNetOptions()
        if options.self_condition:
            raise ValueError("model.self_condition works on continuous data, and these are tokens; leave it off.")
        super().__init__(len(grid), options.channels, options, conditions=conditions, outputs=classes_out)
        self.grid, self.states = grid, states
        self.embedding = nn.Embedding(states, options.channels)

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Map ids `x` (B, L) to {"out": (B, L, K)}; `noise_level` is (B,).

        Raises:
            ValueError: `x` is no row of ids as long as the grid is large, or tokens have times of their own.
        """
        grid = tuple(x.shape[1:]) if len(self.grid) == 1 else self.grid
        if x.ndim != 2 or x.is_floating_point() or x.shape[1] != prod(grid):
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)}; this U-Net expects token ids (B, {prod(self.grid)}), "
                f"row by row of a grid of {' x '.join(map(str, self.grid))}."
            )
        placed = self.embedding(x).movedim(-1, 1).unflatten(2, grid)  # (B, E, *grid)
        heads = super().forward(placed, noise_level, cond)
        return {name: head.flatten(2).movedim(1, -1) for name, head in heads.items()}

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks of the U-Net behind "embedding" (B, L, E)."""
        return {"embedding": self.embedding, **super().blocks}

    def returns_tokens(self, name: str) -> bool:
        """The embedding does."""
        return name == "embedding"

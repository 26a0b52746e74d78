"""U-Net over tokens that lie on a grid: an embedding in front, logits behind, between them the network of images."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from undiffuse.networks.embedded import Embedded
from undiffuse.networks.options import UNetOptions
from undiffuse.networks.unet import UNet
from undiffuse.spec import ConditionSpec


class ScaledNumber(nn.Module):
    """The number of a token, from -1 for the first of `states` to 1 for the last: ids (B, L) -> float64 (B, L, 1)."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.last = max(states - 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ids (B, L) to (B, L, 1)."""
        return (2.0 * x.double() / self.last - 1.0)[..., None]


class TokenUNet(UNet):
    """Token ids (B, L) -> logits (B, L, K) over clean tokens, by a U-Net over the grid that they lie on, row by row.

    A row of tokens without a grid, (L,), has one axis; there any length works. Like every U-Net it is told the time.
    With `token_input="scaled"` it reads the number of each token instead of a vector, and its logits are what it says
    beside the token that is there: a fresh network believes what it sees.

    Args:
        grid: Sizes of the grid, 1 to 3 of them.
        classes_out: Number of clean tokens K.
        states: Number of input tokens: K, or K + 1 with a mask.
        options: Width, depth, attention.
        conditions: Conditions by name.

    Raises:
        ValueError: A grid of more axes, or options that belong to continuous data.

    Source: Hu et al. 2021 (VQ-DDM), arXiv:2112.01799: a small U-Net on the grid of codes, in its code with either
        input. Theirs differs in its blocks.
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
        scaled = options.token_input == "scaled"
        super().__init__(
            len(grid), 1 if scaled else options.channels, options, conditions=conditions, outputs=classes_out
        )
        self.grid, self.states, self.classes_out = grid, states, classes_out
        self.embedding = ScaledNumber(states) if scaled else nn.Embedding(states, options.channels)

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
        tokens = self.embedding(x).to(self.leave.weight.dtype)  # type: ignore[arg-type]
        placed = tokens.movedim(-1, 1).unflatten(2, grid)  # (B, E, *grid)
        heads = super().forward(placed, noise_level, cond)
        rows = {name: head.flatten(2).movedim(1, -1) for name, head in heads.items()}
        if isinstance(self.embedding, ScaledNumber):
            classes = torch.arange(self.classes_out, device=x.device)  # a mask is none of them
            rows["out"] = rows["out"] + (x[..., None] == classes).to(rows["out"].dtype)
        return rows

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks of the U-Net behind "embedding" (B, L, E), where numbers are read (B, L, 1)."""
        return {"embedding": self.embedding, **super().blocks}

    def returns_tokens(self, name: str) -> bool:
        """The embedding does."""
        return name == "embedding"

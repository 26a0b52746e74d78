"""What matching returns: `Matches` of points, a `DenseMatch` of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.words import plain_json


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Where n points of one picture lie in another. Points are (x, y) in pixels, whole numbers are pixel centres.

    Args:
        points: In the source, float64 (n, 2).
        positions: In the target, (n, 2).
        confidence: Share of the softmax of similarities on the match and the cells next to it, 0 to 1, (n,).
        similarity: Cosine of the fused features, (n,).
        ratio: Distance of features to the match over that to the best one elsewhere, (n,); near 1 is ambiguous.
        cycle: Pixels of the source between a point and where its match leads back to, (n,).
        mutual: Whether the match leads back to the point's own cell, bool (n,).
        kept: Whether the point passes the tests that were asked for (`mutual`, `ratio`), bool (n,).
        grid: Rows and columns of the target's cells.
        settings: How it was computed.
    """

    points: Tensor
    positions: Tensor
    confidence: Tensor
    similarity: Tensor
    ratio: Tensor
    cycle: Tensor
    mutual: Tensor
    kept: Tensor
    grid: tuple[int, int]
    settings: dict[str, Any] = field(default_factory=dict)

    columns: ClassVar[tuple[str, ...]] = (
        "point", "x", "y", "matched_x", "matched_y", "confidence", "similarity", "ratio", "cycle", "mutual", "kept",
    )  # fmt: skip

    def __len__(self) -> int:
        return len(self.points)

    def rows(self, names: Sequence[str] | None = None) -> list[tuple[str, ...]]:
        """Return the cells of a table with `columns`."""
        numbers = torch.stack([self.confidence, self.similarity, self.ratio, self.cycle.float()], dim=1).tolist()
        return [
            (
                names[i] if names is not None else str(i + 1),
                *(f"{value:.10g}" for value in (*self.points[i].tolist(), *self.positions[i].tolist())),
                *(f"{value:.4f}" for value in numbers[i]),
                *(("no", "yes")[bool(flag[i])] for flag in (self.mutual, self.kept)),
            )
            for i in range(len(self))
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        parts = ("points", "positions", "confidence", "similarity", "ratio", "cycle", "mutual", "kept")
        found = {name: getattr(self, name).tolist() for name in parts}
        return plain_json(found | {"grid": list(self.grid), "settings": self.settings})


@dataclass(frozen=True, kw_only=True)
class DenseMatch:
    """Where every pixel of a picture of H x W pixels lies in another.

    Args:
        flow: Target position minus own position, x and y in pixels, float64 (H, W, 2).
        confidence: As for `Matches`, (H, W).
        mutual: Whether the match of the pixel's cell leads back to it, bool (H, W).
        grid: Rows and columns of the source's cells; between their centres the flow is interpolated.
        settings: How it was computed.
    """

    flow: Tensor
    confidence: Tensor
    mutual: Tensor
    grid: tuple[int, int]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor:
        """Target positions (x, y) in pixels, (H, W, 2)."""
        height, width = self.flow.shape[:2]
        y, x = torch.meshgrid(*(torch.arange(n, dtype=self.flow.dtype) for n in (height, width)), indexing="ij")
        return self.flow + torch.stack([x, y], dim=-1)

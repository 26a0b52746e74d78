"""From vectors of cells to matches: nearest neighbours, soft-argmax, and how far each can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.tasks.match.frame import Frame

_CHUNK = 1 << 22  # similarities held at once
_NEAR = 1  # cells around a match that belong to it, where cells are small:
_SMALL = 8  # rows and columns from which on that is so; on coarser grids the next cell is another place


@dataclass(frozen=True)
class Cells:
    """A picture as matching sees it.

    Args:
        vectors: Unit vectors (N, D), one per cell, row by row.
        frame: Where the picture lies.
        grid: Rows and columns, h w = N.
        allowed: Cells that may be matched, bool (N,).
    """

    vectors: Tensor
    frame: Frame
    grid: tuple[int, int]
    allowed: Tensor

    @property
    def centres(self) -> Tensor:
        """Centres of the cells in pixels of the picture, (N, 2)."""
        return self.frame.centres(self.grid)


@dataclass(frozen=True)
class Found:
    """What the cells of one picture have in another; m queries.

    Args:
        positions: In pixels of the target picture, float64 (m, 2).
        cells: The best cell of the target, int64 (m,).
        similarity: Cosine of the fused vectors, (m,).
        confidence: Share of the softmax over all cells that lies on the best one and, on grids of 8 x 8 cells or finer,
            on those next to it, (m,).
        ratio: Distance to the best cell over that to the best elsewhere, 0 to 1, (m,); near 1 is ambiguous.
        back: The cell of the source that the best cell matches, (m,); the query's own, where the match is mutual.
    """

    positions: Tensor
    cells: Tensor
    similarity: Tensor
    confidence: Tensor
    ratio: Tensor
    back: Tensor


def find_matches(
    src: Cells,
    dst: Cells,
    queries: Tensor,
    *,
    method: str = "nearest",
    temperature: float = 0.04,
    window: int = 7,
    listener: Listener = silent,
) -> Found:
    """Match cells of a source with those of a target, in chunks that bound the memory.

    "nearest" is the centre of the most similar cell; "soft-argmax" the mean of all centres under softmax(similarity /
    temperature); "window" that of the centres at most `window` rows and columns from the most similar one. Cells that
    are not allowed have similarity -inf: they are never returned and weigh nothing.

    Args:
        src: The source.
        dst: The target.
        queries: Cells of the source, int64 (m,).
        method: "nearest", "soft-argmax" or "window".
        temperature: Of the softmax, above 0.
        window: Cells on each side.
        listener: Hears how many queries are answered.

    Raises:
        ValueError: No cell of the target is allowed.

    Source: Zhang et al. 2023, arXiv:2305.15347; the window as in Zhang et al. 2024, arXiv:2311.17034, section 4.
    """
    if not bool(dst.allowed.any()):
        raise ValueError("the mask leaves no cell of the target to match with; give a larger mask.")
    found, done = _room(len(queries), src.vectors), 0
    listener(Started("cells", len(queries), "cell"))
    for rows in queries.split(max(1, _CHUNK // max(len(src.vectors), len(dst.vectors)))):
        similarity = src.vectors[rows] @ dst.vectors.T
        similarity[:, ~dst.allowed] = -torch.inf
        values = _of_chunk(similarity, src, dst, method, temperature, window)
        for whole, part in zip(vars(found).values(), values, strict=True):
            whole[done : done + len(rows)] = part
        done += len(rows)
        listener(Advanced("cells", done))
    listener(Finished("cells"))
    return found


def _room(count: int, like: Tensor) -> Found:
    """Return room for the answers to all queries. Made piece by piece they would lie between the chunks in memory, and
    keep the freed ones from being used again.
    """
    return Found(
        positions=like.new_empty(count, 2, dtype=torch.float64),
        cells=like.new_empty(count, dtype=torch.int64),
        similarity=like.new_empty(count),
        confidence=like.new_empty(count),
        ratio=like.new_empty(count),
        back=like.new_empty(count, dtype=torch.int64),
    )


def _of_chunk(
    similarity: Tensor, src: Cells, dst: Cells, method: str, temperature: float, window: int
) -> Iterator[Tensor]:
    """Yield the fields of `Found` for similarities (m, N)."""
    top, best = similarity.max(dim=1)
    exact = similarity if method == "nearest" else similarity.double()  # of positions; a confidence needs less
    share = torch.softmax(exact / temperature, dim=1)
    near = _around(best, dst.grid, _NEAR if min(dst.grid) >= _SMALL else 0)
    if method == "nearest":
        yield dst.centres[best]
    else:
        weight = share if method == "soft-argmax" else share * _around(best, dst.grid, window)
        yield weight @ dst.centres / weight.sum(dim=1, keepdim=True)
    yield best
    yield top
    yield (share * near).sum(dim=1).float()
    second = similarity.masked_fill(near, -torch.inf).max(dim=1).values
    yield torch.where(second.isfinite(), (_distance(top) / _distance(second).clamp_min(1e-12)).clamp(max=1), 0.0)
    backwards = dst.vectors[best] @ src.vectors.T
    yield backwards.masked_fill(~src.allowed, -torch.inf).argmax(dim=1)


def _around(cells: Tensor, grid: tuple[int, int], reach: int) -> Tensor:
    """Return which cells of a grid lie at most `reach` rows and columns from each of `cells`, bool (m, N)."""
    row, column = (torch.arange(n, device=cells.device) for n in grid)
    rows = (row - cells[:, None] // grid[1]).abs() <= reach
    columns = (column - cells[:, None] % grid[1]).abs() <= reach
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def _distance(similarity: Tensor) -> Tensor:
    """Return the distance of unit vectors."""
    return (2 - 2 * similarity).clamp_min(0).sqrt()

"""Pairs of digits with key points that need no labels: parts of the stroke that lie farthest in six directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.data import open_data, split
from undiffuse.metrics.key_points import PairErrors, pair_errors
from undiffuse.noise import KeyedNoise
from undiffuse.tasks.match.frame import Frame
from undiffuse.tasks.match.fusion import fuse, join, resize
from undiffuse.tasks.match.matching import Cells, find_matches
from undiffuse.tasks.match.sources import position_code, raw_patches

SIDE = 8
_ANGLES = (90, -90, 45, 135, -45, -135)  # degrees; y points down
Features = Tensor
"""Maps of all pictures, (n, C, h, w)."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of digits, in pixels.

    Args:
        pictures: Digits (n, 1, 8, 8), model units.
        src: Numbers of the sources, (p,).
        dst: Numbers of the targets, (p,).
        points: Key points in the sources (p, k, 2).
        truth: The same points in the targets, (p, k, 2).
    """

    pictures: Tensor
    src: Tensor
    dst: Tensor
    points: Tensor
    truth: Tensor

    def __len__(self) -> int:
        return len(self.src)

    def errors(self, positions: Tensor) -> tuple[PairErrors, ...]:
        """Return the errors of positions (p, k, 2), of which alpha is in pixels."""
        return tuple(
            pair_errors(found.numpy(), truth.numpy(), 1.0) for found, truth in zip(positions, self.truth, strict=True)
        )

    def match(self, sources: Sequence[Features], weights: Sequence[float]) -> tuple[PairErrors, ...]:
        """Return the errors of nearest neighbours of fused features of the pictures."""
        frame, grid = Frame.around((SIDE, SIDE)), (SIDE, SIDE)
        everything = torch.ones(SIDE * SIDE, dtype=torch.bool)
        cells = [
            Cells(fuse([resize(maps[i], grid) for maps in sources], weights), frame, grid, everything)
            for i in range(len(self.pictures))
        ]
        found = [
            find_matches(cells[a], cells[b], frame.cells(points, grid)).positions
            for a, b, points in zip(self.src.tolist(), self.dst.tolist(), self.points, strict=True)
        ]
        return self.errors(torch.stack(found))


def digit_pairs(per_class: int, seed: int) -> Pairs:
    """Return pairs of different held-out digits of the same class: so many draws of each class, of which those that
    drew the same digit twice are left out.
    """
    held_out = split(open_data("digits"))[1]
    batch = held_out.batch(torch.arange(len(held_out)))
    labels, src, dst = batch["cond"]["label"], [], []
    for label in range(10):
        own = (labels == label).nonzero().flatten()
        drawn = KeyedNoise(seed, [label]).uniform("order", 0, (per_class, 2))[0]
        a, b = own[(drawn * len(own)).long()].unbind(1)
        src.append(a[a != b])
        dst.append(b[a != b])
    return _paired(batch["x"], torch.cat(src), torch.cat(dst), key_points(batch["x"]))


def shifted_pairs(per_class: int, seed: int, noise_std: float = 0.0, inverted: bool = False) -> Pairs:
    """Return digits with themselves, one pixel to the right; noised, or with the contrast inverted. They reach from the
    first row to the last, so that nothing moves down without losing its end.
    """
    pairs = digit_pairs(per_class, seed)
    clean = pairs.pictures[pairs.src.unique()]
    moved = torch.full_like(clean, -1.0)
    moved[..., 1:] = clean[..., :-1]
    moved = -moved if inverted else moved
    noise = KeyedNoise(seed, range(len(clean))).normal("data", 0, tuple(clean.shape[1:]))
    both = torch.cat([clean, moved + noise_std * noise])
    points = key_points(clean)
    number = torch.arange(len(clean))
    stays = (clean[..., -1] < 0).flatten(1).all(dim=1)  # those whose stroke is not pushed out
    number, way = number[stays], torch.tensor([1.0, 0.0], dtype=torch.float64)
    return Pairs(both, number, number + len(clean), points[stays], points[stays] + way)


def _paired(pictures: Tensor, src: Tensor, dst: Tensor, points: Tensor) -> Pairs:
    return Pairs(pictures, src, dst, points[src], points[dst])


def key_points(pictures: Tensor) -> Tensor:
    """Return for each of six directions the centroid of the stroke's pixels that lie farthest, float64 (n, 6, 2).

    The stroke is what is above 0 in [-1, 1].
    """
    y, x = torch.meshgrid(*(torch.arange(SIDE, dtype=torch.float64),) * 2, indexing="ij")
    places, found = torch.stack([x, y], dim=-1).flatten(0, 1), []
    for angle in _ANGLES:
        way = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
        reach = (places @ way).round(decimals=6).expand(len(pictures), -1)
        stroke = (pictures > 0).flatten(1)
        farthest = stroke & (reach == reach.masked_fill(~stroke, -torch.inf).max(dim=1, keepdim=True).values)
        weight = farthest.double()
        found.append(weight @ places / weight.sum(dim=1, keepdim=True))
    return torch.stack(found, dim=1)


def enlarged(maps: Tensor) -> Features:
    """Return features on the grid of pixels, as `join` and `resize` make them of one layer."""
    return torch.stack([resize(join({"": part}), (SIDE, SIDE)) for part in maps])


def plain_features(pictures: Tensor) -> Mapping[str, Features]:
    """Return the features that need no network."""
    return {
        "5 x 5 raw patch": raw_patches(pictures, 5),
        "position": position_code((SIDE, SIDE)).expand(len(pictures), -1, -1, -1),
    }

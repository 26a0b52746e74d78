"""Pictures and where they lie: reading them, padding to a canvas, and coordinates.

One convention holds everywhere: a point is (x, y) in pixels of the original picture, x to the right, y down, and whole
numbers are centres of pixels. So a picture of W x H pixels reaches from -0.5 to W - 0.5 and from -0.5 to H - 0.5.

Features lie on a grid of h x w cells that covers the *canvas*: the picture, centred on black, with the proportions that
the networks see (square ones, mostly).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.errors import DataError

_LISTED = 5  # points that an error shows
BLACK = -1.0


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        pixels: float32 (C, H, W) in [-1, 1], C 1 or 3.
        name: How to call it.
    """

    pixels: Tensor
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    def channels(self, count: int) -> Tensor:
        """Return the pixels with 1 or 3 channels: grey as three equal ones, colours by their luma (ITU-R BT.601)."""
        if self.pixels.shape[0] == count:
            return self.pixels
        if count == 1:
            return torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]), self.pixels)[None]
        if count == 3:
            return self.pixels.expand(3, -1, -1)
        raise ValueError(f"pictures have 1 or 3 channels and the model wants {count}.")


def read_picture(given: Any, name: str = "the picture") -> Picture:
    """Return a picture from a file, a uint8 array (H, W) or (H, W, C), or a float tensor (C, H, W) in [-1, 1].

    Transparent parts of a file are laid over white, whatever its mode, depth and orientation.

    Raises:
        DataError: The file cannot be read.
        ValueError: An array of another shape or type, or values outside [-1, 1] or not finite.
    """
    if isinstance(given, Picture):
        return given
    if isinstance(given, str | PathLike):
        return _from_file(Path(given))
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (2, 3):
        array = given[..., None] if given.ndim == 2 else given
        pixels = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
        return Picture(_checked(pixels, name), name)
    if isinstance(given, Tensor) and given.is_floating_point() and given.ndim == 3:
        return Picture(_checked(given.detach().cpu().float(), name), name)
    what = f"{type(given).__name__} {getattr(given, 'dtype', '')} {tuple(getattr(given, 'shape', ()))}"
    raise ValueError(
        f"{name} is a {what}; expected a file, a uint8 array (H, W) or (H, W, C), or a float "
        "tensor (C, H, W) in [-1, 1]."
    )


def _from_file(path: Path) -> Picture:
    from undiffuse.images.read import read_image

    array = read_image(path)
    if array.shape[2] in (2, 4):
        array = read_image(path, "rgb")
    return Picture(torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1, path.name)


def _checked(pixels: Tensor, name: str) -> Tensor:
    if pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"{name} has shape {tuple(pixels.shape)}; expected (1, H, W) or (3, H, W).")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.01 and high <= 1.01):  # a model's own samples overshoot a little; NaN fails, too
        raise ValueError(f"{name} has values from {low:g} to {high:g}; expected [-1, 1] (or a uint8 array).")
    return pixels


def read_mask(given: Any, size: tuple[int, int], name: str = "the mask") -> Tensor:
    """Return a mask as bool (H, W): a file (white is the object), or an array or tensor of that shape, above 0.5.

    Raises:
        DataError: The file cannot be read.
        ValueError: Another size than the picture, or an empty mask.
    """
    if isinstance(given, str | PathLike):
        from undiffuse.images.read import read_image

        name = f"the mask {given}"
        mask = torch.from_numpy(read_image(given, "grey"))[..., 0] > 127.5
    else:
        values = torch.as_tensor(given)
        mask = values if values.dtype == torch.bool else values > 0.5
    if tuple(mask.shape) != size:
        raise ValueError(f"{name} has shape {tuple(mask.shape)} and the picture {size}; make them the same size.")
    if not bool(mask.any()):
        raise ValueError(f"{name} is empty, so nothing could be matched; white (above 0.5) is the object.")
    return mask


def check_points(points: Any, size: tuple[int, int], name: str = "the picture") -> Tensor:
    """Return points as float64 (n, 2).

    Raises:
        ValueError: Another shape, no point, values that are not finite, or points outside the picture, which it lists.
    """
    found = torch.as_tensor(np.asarray(points, dtype=np.float64))
    if found.ndim != 2 or found.shape[1] != 2 or len(found) == 0:
        raise ValueError(f"points have shape {tuple(found.shape)}; expected (n, 2): x and y of at least one point.")
    if not bool(found.isfinite().all()):
        raise ValueError("points hold NaN or infinite coordinates; leave such points out.")
    height, width = size
    outside = ((found < -0.5) | (found > torch.tensor([width, height]) - 0.5)).any(dim=1)
    if bool(outside.any()):
        raise ValueError(
            f"{int(outside.sum())} of {len(found)} points lie outside {name} of {width} x {height} pixels: "
            f"{_listed(found, outside)}; points are (x, y), from (0, 0) to ({width - 1}, {height - 1})."
        )
    return found


def _listed(points: Tensor, chosen: Tensor) -> str:
    numbers = chosen.nonzero().flatten().tolist()
    words = [f"number {i + 1} ({points[i, 0]:g}, {points[i, 1]:g})" for i in numbers[:_LISTED]]
    return ", ".join(words) + (", ..." if len(numbers) > _LISTED else "")


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in its canvas.

    Args:
        height: Of the picture, in pixels.
        width: Likewise.
        rows: Of the canvas, in pixels of the picture.
        columns: Likewise.
    """

    height: int
    width: int
    rows: int
    columns: int

    @classmethod
    def around(cls, size: tuple[int, int], ratio: float = 1.0) -> Frame:
        """Return the smallest canvas of proportions `ratio` = height / width that holds a picture."""
        height, width = size
        return cls(height, width, max(height, round(width * ratio)), max(width, round(height / ratio)))

    @property
    def top(self) -> int:
        """Rows of padding above the picture."""
        return (self.rows - self.height) // 2

    @property
    def left(self) -> int:
        """Columns of padding on its left."""
        return (self.columns - self.width) // 2

    def canvas(self, pixels: Tensor, size: Sequence[int]) -> Tensor:
        """Return pixels (C, H, W), padded with black and scaled to `size`, (C, *size), clipped to [-1, 1]."""
        right, bottom = self.columns - self.width - self.left, self.rows - self.height - self.top
        padded = F.pad(pixels, (self.left, right, self.top, bottom), value=BLACK)
        return scale(padded, size)

    def crop(self, pixels: Tensor) -> Tensor:
        """Return what `canvas` of any size shows of the picture, (C, H, W), scaled back."""
        whole = scale(pixels, (self.rows, self.columns))
        return whole[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def cells(self, points: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the row-major numbers of the cells in which points (n, 2) lie, int64 (n,)."""
        place = self._shares(points) * torch.tensor([grid[1], grid[0]])
        column, row = place.floor().long().unbind(-1)
        return row.clamp(0, grid[0] - 1) * grid[1] + column.clamp(0, grid[1] - 1)

    def centres(self, grid: tuple[int, int]) -> Tensor:
        """Return the centres of all cells, moved into the picture where they lie in the padding, float64 (h w, 2)."""
        row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in grid), indexing="ij")
        x = column * self.columns / grid[1] - self.left - 0.5
        y = row * self.rows / grid[0] - self.top - 0.5
        return torch.stack([x.clamp(-0.5, self.width - 0.5), y.clamp(-0.5, self.height - 0.5)], dim=-1).flatten(0, 1)

    def inside(self, grid: tuple[int, int]) -> Tensor:
        """Return which cells overlap the picture, bool (h w,)."""
        row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
        down, across = self.rows / grid[0], self.columns / grid[1]
        rows = ((row + 1) * down > self.top) & (row * down < self.top + self.height)
        columns = ((column + 1) * across > self.left) & (column * across < self.left + self.width)
        return (rows & columns).flatten()

    def masked(self, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the cells of the picture whose centre a mask (H, W) holds, bool (h w,).

        Raises:
            ValueError: There are none.
        """
        x, y = self.centres(grid).round().long().unbind(-1)
        held = mask[y.clamp(0, self.height - 1), x.clamp(0, self.width - 1)] & self.inside(grid)
        if not bool(held.any()):
            raise ValueError(
                f"the mask holds the centre of none of the {grid[0]} x {grid[1]} cells, so nothing could be matched; "
                "give a larger mask or a finer grid."
            )
        return held

    def touched(self, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the cells in which a mask (H, W) holds a pixel, bool (h w,)."""
        y, x = mask.nonzero().unbind(1)
        held = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
        held[self.cells(torch.stack([x, y], dim=1).double(), grid)] = True
        return held

    def _shares(self, points: Tensor) -> Tensor:
        """Return points in shares of the canvas, 0 to 1, (n, 2)."""
        offset = torch.tensor([self.left + 0.5, self.top + 0.5], dtype=torch.float64)
        return (points + offset) / torch.tensor([self.columns, self.rows], dtype=torch.float64)


def scale(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Return pixels (C, H, W) at another size by bicubic interpolation with antialiasing, clipped to [-1, 1]."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    found = F.interpolate(pixels[None], size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return found[0].clamp(-1, 1)


def read_points(path: str | PathLike[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return points of a CSV file, float64 (n, 2), and their names: the third column, or their numbers.

    A first line of words is a header, whose columns x and y may stand anywhere.

    Raises:
        DataError: The file cannot be read, or a line holds no two numbers.
    """
    import csv

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the points {path}: {error}.") from error
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = "x" in head and "y" in head
    x, y = (head.index("x"), head.index("y")) if named else (0, 1)
    rest = [column for column in range(max(map(len, rows), default=0)) if column not in (x, y)]
    points, names = [], []
    for number, row in enumerate(rows[1:] if named else rows, 2 if named else 1):
        try:
            points.append((float(row[x]), float(row[y])))
        except (ValueError, IndexError) as error:
            raise DataError(
                f"line {number} of {path} is {','.join(row)!r}; expected x,y in pixels, such as 120,48.5."
            ) from error
        names.append(row[rest[0]].strip() if rest and rest[0] < len(row) else str(len(points)))
    if not points:
        raise DataError(f"{path} holds no points; expected lines x,y in pixels, such as 120,48.5.")
    return torch.tensor(points, dtype=torch.float64), tuple(names)

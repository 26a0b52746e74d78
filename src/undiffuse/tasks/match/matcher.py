"""`Matcher`: the features of pictures, and of two pictures the vectors that are compared."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.events import Listener, silent
from undiffuse.models.model import Model
from undiffuse.tasks.match.frame import Frame, Picture, read_mask, read_picture
from undiffuse.tasks.match.fusion import fuse, join, reduce_pair, resize
from undiffuse.tasks.match.matching import Cells, Found, find_matches
from undiffuse.tasks.match.options import MatchOptions
from undiffuse.tasks.match.sources import canvas_size, make_sources

_KEPT = 8  # pictures whose maps are remembered


@dataclass(frozen=True)
class Described:
    """A picture with its features.

    Args:
        picture: The picture.
        frame: Where it lies in its canvas.
        maps: Source -> layer -> (C, h, w).
    """

    picture: Picture
    frame: Frame
    maps: dict[str, dict[str, Tensor]]


class Matcher:
    """Matches pictures by one choice of features.

    Args:
        model: A model of images; None where no diffusion features are asked for.
        options: The choice.
        device: Where DINO runs if there is no model, which else says it.

    Raises:
        ValueError: See `make_sources`.
        CheckpointError: The DINO network cannot be read.
    """

    def __init__(self, model: Model | None, options: MatchOptions, *, device: torch.device | str = "cpu") -> None:
        self.options, self.sources = options, make_sources(model, options, device)
        height, width = canvas_size(model, options.size) or (1, 1)
        self.ratio = height / width
        self._kept: OrderedDict[tuple[str, int], Described] = OrderedDict()

    def describe(self, given: Any, name: str = "the picture") -> Described:
        """Read a picture (see `read_picture`) and compute its features; those of the last few files are remembered.

        Raises:
            DataError, ValueError: It cannot be read.
        """
        if isinstance(given, Described):
            return given
        key = _file_key(given)
        if key is not None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        picture = read_picture(given, name)
        frame = Frame.around(picture.size, self.ratio)
        found = Described(picture, frame, {name: source.maps(picture, frame) for name, source in self.sources.items()})
        if key is not None:
            self._kept[key] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def pair(
        self, src: Described, dst: Described, dst_mask: Any = None, src_mask: Tensor | None = None
    ) -> tuple[Cells, Cells]:
        """Return the cells of two pictures with comparable vectors.

        Args:
            src: The source.
            dst: The target.
            dst_mask: Where matches may lie (H, W); see `read_mask`.
            src_mask: What of the source there is to match, bool (H, W); None: all.

        Raises:
            ValueError: An empty mask, one of another size, or features that are not finite.
        """
        dims = {name: self.options.pca if name == "diffusion" else 0 for name in self.sources}
        pairs = {name: reduce_pair(src.maps[name], dst.maps[name], dims[name]) for name in self.sources}
        both = []
        for which, found in enumerate((src, dst)):
            joined = [join(pair[which]) for pair in pairs.values()]
            grid = self._grid(joined)
            vectors = fuse([resize(features, grid) for features in joined], self.options.weights)
            allowed = found.frame.inside(grid)
            if which == 1 and dst_mask is not None:
                allowed = found.frame.masked(read_mask(dst_mask, found.picture.size, "the target's mask"), grid)
            elif which == 0 and src_mask is not None:
                allowed = found.frame.touched(src_mask, grid)
            both.append(Cells(vectors, found.frame, grid, allowed))
        return both[0], both[1]

    def find(self, src: Cells, dst: Cells, queries: Tensor, listener: Listener = silent) -> Found:
        """Match cells of the source, by the method of the options."""
        how = self.options
        return find_matches(
            src,
            dst,
            queries,
            method=how.method,
            temperature=how.temperature,
            window=how.window,
            listener=listener,
        )

    def settings(self) -> dict[str, Any]:
        """Return what matches depend on, as plain JSON."""
        how = self.options
        found: dict[str, Any] = {name: source.describe() for name, source in self.sources.items()}
        found["weights"] = dict(zip(how.sources, how.weights, strict=True))
        found |= {"method": how.method, "pca": how.pca, "seed": how.seed, "temperature": how.temperature}
        found |= {"mutual": how.mutual, "ratio": how.ratio}
        return found | ({"window": how.window} if how.method == "window" else {})

    def _grid(self, joined: list[Tensor]) -> tuple[int, int]:
        """Return the rows and columns of the cells: of the finest features, or as the options say."""
        finest = max((tuple(features.shape[1:]) for features in joined), key=lambda grid: grid[0] * grid[1])
        if self.options.cells is None:
            return finest[0], finest[1]
        longer = max(finest)
        rows, columns = (max(1, round(self.options.cells * side / longer)) for side in finest)
        return rows, columns


def _file_key(given: Any) -> tuple[str, int] | None:
    """Return what tells a file from others and from what it was before it was written anew; None for what is none."""
    if not isinstance(given, str | PathLike) or not Path(given).is_file():
        return None
    return str(given), Path(given).stat().st_mtime_ns

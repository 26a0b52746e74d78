"""`match`: points of one picture in another; `match_dense`: all of it; `transfer`: points in several pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.models.model import Model
from undiffuse.tasks.match.frame import Frame, check_points, read_mask
from undiffuse.tasks.match.matcher import Described, Matcher
from undiffuse.tasks.match.matching import Cells, Found
from undiffuse.tasks.match.options import MatchOptions
from undiffuse.tasks.match.results import DenseMatch, Matches


def match(
    model: Model | Matcher | None, src: Any, points: Any, dst: Any, *, dst_mask: Any = None, **options: Any
) -> Matches:
    """Find points of one picture in another, without training.

    Both pictures are described by features on a grid of cells; a point's cell is matched with the most similar one.

    Args:
        model: A model of images, whose inner blocks are the features; None where others are asked for. A `Matcher`
            brings its own options and remembers features between calls.
        src: Source: a file, a uint8 array (H, W) or (H, W, C), or a float tensor (C, H, W) in [-1, 1].
        points: (n, 2): x and y in pixels of the source; whole numbers are centres of pixels.
        dst: Target, likewise, of any size.
        dst_mask: Where matches may lie: a file (white), or bool (H, W).
        options: See `MatchOptions`: features, alpha, layers, t, dino, method, mutual, ratio, ...

    Raises:
        DataError: A picture cannot be read.
        ValueError: Points outside the picture, options out of range, a mask of another size or an empty one.
        CheckpointError: The DINO network cannot be read.

    Source: Zhang et al. 2023, "A Tale of Two Features: Stable Diffusion Complements DINO for Zero-Shot Semantic
        Correspondence", arXiv:2305.15347.
    """
    matcher = make_matcher(model, options)
    return match_described(
        matcher, matcher.describe(src, "the source"), points, matcher.describe(dst, "the target"), dst_mask
    )


def transfer(
    model: Model | Matcher | None,
    src: Any,
    points: Any,
    targets: Sequence[Any],
    *,
    listener: Listener = silent,
    **options: Any,
) -> Iterator[Matches]:
    """Yield the matches of the same points in each of several pictures; arguments and errors as for `match`."""
    matcher = make_matcher(model, options)
    source = matcher.describe(src, "the source")
    listener(Started("match", len(targets), "picture"))
    for number, target in enumerate(targets, 1):
        yield match_described(matcher, source, points, matcher.describe(target, "the target"))
        listener(Advanced("match", number))
    listener(Finished("match"))


def match_dense(
    model: Model | Matcher | None,
    src: Any,
    dst: Any,
    *,
    src_mask: Any = None,
    dst_mask: Any = None,
    listener: Listener = silent,
    **options: Any,
) -> DenseMatch:
    """Match every pixel of one picture with another.

    Cells are matched, and their displacements are interpolated between the centres (bilinear); `cells` makes them
    finer. Arguments and errors as for `match`, and `listener` hears about progress; `mutual` and `ratio` drop nothing
    here, see `DenseMatch.mutual`. With `src_mask`, what of the source there is to match, the cells that it touches are
    matched among themselves alone, and pixels far from them have no number (NaN).
    """
    matcher = make_matcher(model, options)
    described = matcher.describe(src, "the source"), matcher.describe(dst, "the target")
    source = described[0].picture
    inside = None if src_mask is None else read_mask(src_mask, source.size, "the source's mask")
    a, b = matcher.pair(*described, dst_mask, inside)
    queries = a.allowed.nonzero().flatten()
    found = matcher.find(a, b, queries, listener)
    values = torch.zeros(len(a.allowed), 3, dtype=torch.float64)
    values[queries, :2] = found.positions - a.centres[queries]
    values[queries, 2] = found.confidence.double()
    spread = _between_cells(values, a)
    own = torch.zeros(len(a.allowed), dtype=torch.bool)
    own[queries] = found.back == queries
    pixels = a.frame.cells(_pixels(a.frame), a.grid)
    return DenseMatch(
        flow=spread[..., :2],
        confidence=spread[..., 2].float(),
        mutual=own[pixels].reshape(a.frame.height, a.frame.width),
        grid=a.grid,
        settings=matcher.settings(),
    )


def make_matcher(model: Model | Matcher | None, options: dict[str, Any]) -> Matcher:
    """Return the matcher of a model and options.

    Raises:
        TypeError: An option that there is not, or any beside a matcher.
    """
    if not isinstance(model, Matcher):
        if model is not None and not isinstance(model, Model):
            raise TypeError(f"match needs a Model or None, not {type(model).__name__}; load one by undiffuse.load.")
        return Matcher(model, MatchOptions(**options))
    if options:
        raise TypeError(f"a Matcher brings its own options; leave {', '.join(options)} out, or give the model.")
    return model


def match_described(matcher: Matcher, src: Described, points: Any, dst: Described, dst_mask: Any = None) -> Matches:
    """As `match`, for pictures whose features are known."""
    places = check_points(points, src.picture.size, src.picture.name)
    a, b = matcher.pair(src, dst, dst_mask)
    return match_cells(matcher, a, places, b)


def match_cells(matcher: Matcher, src: Cells, points: Tensor, dst: Cells) -> Matches:
    """As `match`, for pictures whose vectors are known."""
    queries = src.frame.cells(points, src.grid)
    found = matcher.find(src, dst, queries)
    mutual = found.back == queries
    return Matches(
        points=points,
        positions=found.positions,
        confidence=found.confidence,
        similarity=found.similarity,
        ratio=found.ratio,
        cycle=(src.centres[found.back] - src.centres[queries]).norm(dim=1),
        mutual=mutual,
        kept=_kept(found, mutual, matcher.options),
        grid=dst.grid,
        settings=matcher.settings(),
    )


def _kept(found: Found, mutual: Tensor, options: MatchOptions) -> Tensor:
    kept = mutual.clone() if options.mutual else torch.ones_like(mutual)
    return kept if options.ratio is None else kept & (found.ratio <= options.ratio)


def _pixels(frame: Frame) -> Tensor:
    """Return the centres of all pixels of a picture, (H W, 2)."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (frame.height, frame.width)), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def _between_cells(values: Tensor, cells: Cells) -> Tensor:
    """Interpolate what the picture's cells hold (N, D) to its pixels, (H, W, D): bilinear, without the padding's."""
    frame, known = cells.frame, cells.allowed.to(values.dtype)[:, None]
    held = torch.cat([values * known, known], dim=1).T.unflatten(1, cells.grid)[None]
    shares = torch.tensor([2.0 / frame.columns, 2.0 / frame.rows], dtype=values.dtype)
    offset = torch.tensor([frame.left + 0.5, frame.top + 0.5], dtype=values.dtype)
    places = ((_pixels(frame) + offset) * shares - 1).reshape(1, frame.height, frame.width, 2)
    found = F.grid_sample(held, places, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return (found[:-1] / found[-1:]).permute(1, 2, 0)

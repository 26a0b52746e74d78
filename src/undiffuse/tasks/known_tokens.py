"""What a completion starts from: tokens, and which of them are known; from texts, rows of tables, and pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.models.model import Model


@dataclass(frozen=True)
class Given:
    """Tokens to complete.

    Args:
        tokens: (B, L), with any class where they are not known.
        known: Which are known, bool (B, L).
        length: Tokens that were asked about; those behind are drawn too, and cut off.
        pixels: The pictures that the tokens come from, data units (B, C, H, W).
        pixel_mask: Which pixels are known, bool (B, 1, H, W).
    """

    tokens: Tensor
    known: Tensor
    length: int
    pixels: Tensor | None = None
    pixel_mask: Tensor | None = None

    def repeated(self, times: int) -> Given:
        """Return every item `times` times, one behind the other."""
        return replace(
            self, tokens=self.tokens.repeat_interleave(times, 0), known=self.known.repeat_interleave(times, 0)
        )


def read_given(model: Model, x: Any, mask: Any, placeholder: str, dilate: int | None) -> Given:
    """Return what is known of what.

    Args:
        model: A model of tokens, or of pictures through a codec with a codebook.
        x: A text or several, column -> value of a table, ids (L,) or (B, L), or pictures in data units.
        mask: True (1) where known; None where `x` says it itself.
        placeholder: The character of a text that stands for a token that is not known.
        dilate: Tokens by which the unknown part of a picture grows; None is 1.

    Raises:
        ValueError: What is given does not fit the model, or a mask is missing or given twice.
    """
    given = _read(model, x, mask, placeholder, dilate)
    if not bool(given.known.any(1).all()):
        raise ValueError("nothing is known; to make data from nothing use sample.")
    return given


def _read(model: Model, x: Any, mask: Any, placeholder: str, dilate: int | None) -> Given:
    spec = model.spec
    texts = [x] if isinstance(x, str) else list(x) if isinstance(x, (list, tuple)) and _all_texts(x) else None
    if texts is not None or isinstance(x, Mapping):
        if mask is not None:
            raise ValueError("a text or a row says itself what is known; leave the mask out.")
        if dilate is not None:
            raise ValueError(f"dilate={dilate} is for pictures, whose tokens see their neighbours; leave it out.")
        return _from_texts(texts, placeholder, spec) if texts is not None else _from_row(x, spec)
    if mask is None:
        raise ValueError("the mask is missing: give one of the shape of the data, 1 where known and 0 where not.")
    if model.codec is not None:
        return _from_pictures(model, torch.as_tensor(x), torch.as_tensor(mask), 1 if dilate is None else dilate)
    if dilate is not None:
        raise ValueError(f"dilate={dilate} is for pictures, whose tokens see their neighbours; leave it out.")
    return _from_ids(torch.as_tensor(x), torch.as_tensor(mask), spec)


def token_mask(known: Tensor, grid: tuple[int, ...], dilate: int = 0) -> Tensor:
    """Return which tokens of a picture are known: those all of whose pixels are, and far enough from the others.

    Args:
        known: Pixels, bool (B, 1, H, W).
        grid: Tokens (h, w), which divide (H, W).
        dilate: A token within so many tokens of an unknown one, also diagonally, counts as unknown: the encoder of a
            codec reads beyond the patch, so tokens beside a hole have seen it.

    Returns:
        bool (B, h * w).
    """
    missing = 1.0 - known.float()
    patch = tuple(side // count for side, count in zip(known.shape[2:], grid, strict=True))
    tokens = max_pool2d(missing, patch)
    if dilate:
        tokens = max_pool2d(tokens, 2 * dilate + 1, stride=1, padding=dilate)
    return tokens.flatten(1) == 0


def binary_mask(mask: Tensor) -> Tensor:
    """Return a mask as bool; other values than 0 and 1 are cut at one half of the largest (of 255, where above 1).

    Raises:
        ValueError: A value is below 0 or not a number.
    """
    if mask.dtype == torch.bool:
        return mask
    values = mask.double()
    if not bool((values >= 0).all()):
        raise ValueError("the mask has values below 0 or that are no numbers; expected 1 where known and 0 where not.")
    full = 255.0 if float(values.max()) > 1 else 1.0
    odd = int(((values != 0) & (values != full)).sum())
    if odd:
        warnings.warn(
            f"{odd} of {values.numel()} values of the mask are neither known ({full:g}) nor unknown (0); those from "
            f"{full / 2:g} on are taken as known.",
            stacklevel=2,
        )
    return values >= full / 2


def _all_texts(x: Any) -> bool:
    return len(x) > 0 and all(isinstance(item, str) for item in x)


def _from_texts(texts: list[str], placeholder: str, spec: DataSpec) -> Given:
    """Every placeholder is one token; the parts between are encoded by themselves."""
    from undiffuse.data.text import encode_text

    if not spec.is_discrete or spec.columns or spec.grid:
        what = "rows of a table" if spec.columns else f"{spec.noun}"
        raise ValueError(f"a text was given but the model makes {what}; give what it makes.")
    if len(placeholder) != 1:
        raise ValueError(f"placeholder={placeholder!r} must be one character, such as '_'.")
    rows: list[tuple[Tensor, Tensor]] = []
    for text in texts:
        parts: list[Tensor] = []
        for number, part in enumerate(text.split(placeholder)):
            parts += [torch.tensor([-1])] if number else []
            parts += [encode_text(part, spec)] if part else []
        ids = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        if not 0 < len(ids) <= spec.shape[0]:
            raise ValueError(f"the text is {len(ids)} tokens long; this model fills in texts of 1 to {spec.shape[0]}.")
        rows.append((ids.clamp(min=0), ids >= 0))
    if len({len(ids) for ids, _ in rows}) > 1:
        raise ValueError("the texts have different lengths; complete them one by one.")
    length = len(rows[0][0])
    tokens = torch.zeros(len(rows), spec.shape[0], dtype=torch.int64)
    known = torch.zeros(len(rows), spec.shape[0], dtype=torch.bool)
    tokens[:, :length] = torch.stack([ids for ids, _ in rows])
    known[:, :length] = torch.stack([open_ for _, open_ in rows])
    return Given(tokens, known, length)


def _from_row(values: Mapping[str, Any], spec: DataSpec) -> Given:
    """Find the ids of the columns that are given, as reading a table does."""
    from undiffuse.data.categories import Column

    if not spec.columns:
        raise ValueError(f"columns were given ({', '.join(values)}) but the model is not of a table; leave them out.")
    tokens = torch.zeros(1, spec.shape[0], dtype=torch.int64)
    known = torch.zeros(1, spec.shape[0], dtype=torch.bool)
    names, ends = list(spec.columns), torch.tensor(list(spec.columns.values())).cumsum(0).tolist()
    for name, value in values.items():
        if name not in spec.columns:
            near = did_you_mean(name, names)
            raise ValueError(f"column {name!r} is unknown to this model; its columns are {', '.join(names)}.{near}")
        place = names.index(name)
        first = ends[place] - spec.columns[name]
        choices = spec.vocabulary[first : ends[place]]
        number = int(Column(name, [str(value).strip()]).numbered(choices)[0])
        if number < 0:
            shown = ", ".join(choice or "(missing)" for choice in choices[:12]) + (", ..." if len(choices) > 12 else "")
            near = did_you_mean(str(value), choices)
            raise ValueError(f"column {name!r} has no value {str(value)!r}; its values are {shown}.{near}")
        tokens[0, place], known[0, place] = first + number, True
    return Given(tokens, known, spec.shape[0])


def _from_ids(tokens: Tensor, mask: Tensor, spec: DataSpec) -> Given:
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.dtype != torch.int64 or tuple(tokens.shape[1:]) != spec.shape:
        raise ValueError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; expected int64 (B, {spec.shape[0]})."
        )
    if tuple(mask.shape) not in (spec.shape, tuple(tokens.shape)):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}; expected {spec.shape} or that of the tokens, "
            f"{tuple(tokens.shape)}."
        )
    known = binary_mask(mask).expand_as(tokens)
    outside = known & ((tokens < 0) | (tokens >= spec.categories))
    if bool(outside.any()):
        raise ValueError(
            f"known tokens have ids outside 0 to {spec.categories - 1}; those are the classes of this model."
        )
    return Given(torch.where(known, tokens, 0), known, spec.shape[0])


def _from_pictures(model: Model, x: Tensor, mask: Tensor, dilate: int) -> Given:
    """Fill what is missing with the mean of what is known, and encode.

    Raises:
        ValueError: Shapes that do not fit, or no token is known.
    """
    spec, grid = model.spec, model.state_spec.grid
    if spec.kind != "image":
        raise ValueError(f"completion through a codec is for images; this model makes {spec.noun}.")
    if dilate < 0:
        raise ValueError(f"dilate={dilate} must be 0 or more tokens.")
    x = (x[None] if x.ndim == 3 else x).float()
    if tuple(x.shape[1:]) != spec.shape:
        raise ValueError(f"the picture has shape {tuple(x.shape[1:])}; this model completes pictures of {spec.shape}.")
    known = _fit_pixel_mask(mask, x)
    if not bool(known.flatten(1).any(1).all()):
        raise ValueError("no pixel is known; to make pictures from nothing use sample. The mask is 1 where known.")
    total = known.sum((2, 3), keepdim=True)
    mean = torch.where(known, x, 0.0).sum((2, 3), keepdim=True) / total
    with torch.no_grad():
        tokens = model.encode(torch.where(known, x, mean)).cpu()
    tokens_known = token_mask(known, grid, dilate)
    if not bool(known.all()) and not bool(tokens_known.any(1).all()):
        patch = " x ".join(str(side // count) for side, count in zip(spec.shape[1:], grid, strict=True))
        raise ValueError(
            f"no token is known: a token stands for {patch} pixels, all of which must be known, with {dilate} more "
            f"token(s) around; give a larger known part, or a smaller dilate (0 trusts tokens beside the hole)."
        )
    return Given(tokens, tokens_known, math.prod(grid), x, known)


def _fit_pixel_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask as bool (B, 1, H, W)."""
    size = tuple(x.shape[2:])
    if tuple(mask.shape[-2:]) != size or mask.ndim > 4 or (mask.ndim == 4 and mask.shape[1] != 1):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}; expected the picture's height and width, {size[0]} x {size[1]}, "
            "one value per pixel."
        )
    known = binary_mask(mask)
    known = known[:, None] if known.ndim == 3 else known
    if known.ndim == 4 and known.shape[0] not in (1, len(x)):
        raise ValueError(f"there are {known.shape[0]} masks for {len(x)} pictures; give one, or one for each.")
    return known.expand(len(x), 1, *size)

"""From what a user writes (a class name, a caption, one number for all) to the tensors that denoisers take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, SupportsInt

import torch
from torch import Tensor
from torch.nn.functional import pad

from undiffuse.codecs.codec import Codec
from undiffuse.denoisers.shift import SOURCE
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.words import did_you_mean

_ENCODED = 64  # given pictures that are encoded at once


class Fitted(dict[str, Tensor]):
    """What `fit_conditions` returns; fitting it again changes nothing."""

    def rows(self, low: int, high: int) -> Fitted:
        """Return the rows of samples `low` to `high` - 1."""
        return Fitted({name: rows[low:high] for name, rows in self.items()})


def fit_conditions(
    cond: dict[str, Any] | None, n: int, spec: DataSpec, device: torch.device, codec: Codec | None = None
) -> Fitted:
    """Return one tensor per condition with `n` rows, as `ConditionSpec` describes them.

    Args:
        cond: Name -> one value, which is repeated, or `n` of them; None leaves a condition out:

            label       class number or name
            vector      (width,) or (n, width) numbers, in the units of the data set's column
            text        a string, or bytes int64 (L,) or (n, L)
            embedding   (L, width) or (n, L, width), or a sequence of (L, width) of different lengths; a string, or n
                        of them, where the model knows its text encoder (`ConditionSpec.encoder`)
            map         (width, *) or (n, width, *), on the data's grid, in model units: [-1, 1] for pictures; also
                        where the denoiser works on latents, for which the codec encodes the given picture

        n: Number of samples.
        spec: Says which conditions there are. A map of a video may be of every frame, (F, width, *); that reading goes
            before `n` maps.
        device: Where the tensors go.
        codec: Of a model on latents, whose spec is then `spec`.

    Raises:
        ValueError: A condition or class that the model does not know, a caption that is too long, another size, or
            another number of rows than `n`.
        CheckpointError: A text encoder is gone, or another one is in its place.
    """
    if isinstance(cond, Fitted):
        return Fitted((name, rows.to(device)) for name, rows in cond.items())
    known = spec.conditions
    for name in cond or {}:
        if name not in known:
            what = f"its conditions are {', '.join(known)}" if known else "it was trained without conditions"
            raise ValueError(f"condition {name!r} is unknown to this model; {what}.{did_you_mean(name, known)}")
    return Fitted(
        (name, _fit(name, value, n, known[name], spec, device, codec).to(device))
        for name, value in (cond or {}).items()
        if value is not None
    )


def class_turns(spec: DataSpec, n: int) -> dict[str, list[int]]:
    """Return class numbers for `n` samples: the classes of the first label take turns, then those of the next.

    So every combination of several labels comes once before the first comes again.
    """
    turns, period = {}, 1
    for name, part in spec.conditions.items():
        if part.kind == "label":
            turns[name] = [i // period % len(part.classes) for i in range(n)]
            period *= len(part.classes)
    return turns


def fit_tokens(prefix: str | Sequence[int] | Tensor, spec: DataSpec, process: object, device: torch.device) -> Tensor:
    """Return one start state (1, L) that begins with `prefix`, masks after it.

    Raises:
        ValueError: The data are not tokens, the process has no masks, the prefix is longer than an item, or it holds
            what the vocabulary lacks.
    """
    if not isinstance(process, CategoricalProcess) or process.kind != "absorbing":
        raise ValueError("a prefix needs a token model with an absorbing process; this model has another one.")
    ids = _text_ids(prefix, spec) if isinstance(prefix, str) else torch.as_tensor(prefix, dtype=torch.int64)
    length = spec.shape[0]
    if ids.ndim != 1 or len(ids) > length:
        raise ValueError(f"the prefix has shape {tuple(ids.shape)}; expected at most {length} tokens in a row.")
    if bool(((ids < 0) | (ids >= process.classes)).any()):
        raise ValueError(f"the prefix has ids outside 0 to {process.classes - 1}.")
    start = torch.full((1, length), process.classes)
    start[0, : len(ids)] = ids
    return start.to(device)


def _text_ids(text: str, spec: DataSpec) -> Tensor:
    from undiffuse.data.text import encode_text

    return encode_text(text, spec)


def _fit(
    name: str, value: Any, n: int, part: ConditionSpec, spec: DataSpec, device: torch.device, codec: Codec | None
) -> Tensor:
    """Return the rows (n, ...) of one condition."""
    if part.kind == "label":
        return _labels(name, value, n, part.classes)
    if part.kind == "vector":
        return _vectors(name, value, n, part)
    if part.kind == "text":
        return _texts(name, value, n, part.length)
    if part.kind == "embedding":
        return _embeddings(name, value, n, part, device)
    if codec is not None and name == SOURCE:
        return _encoded(value, n, spec, device, codec)
    return _maps(name, value, n, part, spec)


def _labels(name: str, value: Any, n: int, classes: tuple[str, ...]) -> Tensor:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    if isinstance(values, (str, int)):
        values = [values]
    if isinstance(values, list):
        values = torch.tensor([_number(name, v, classes) for v in values], dtype=torch.int64)
    labels = torch.as_tensor(values)
    if labels.is_floating_point():
        raise ValueError(f"{name}s are {labels.dtype}; expected class numbers or names.")
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if outside.numel():
        raise ValueError(
            f"{name} {int(outside.flatten()[0])} does not exist; this model knows 0 to {len(classes) - 1}."
        )
    return _rows(name, labels.long().reshape(-1), n)


def _number(name: str, value: Any, classes: tuple[str, ...]) -> int:
    if not isinstance(value, str):
        whole = isinstance(value, SupportsInt) and int(value) == value
        if not whole:
            raise ValueError(f"{name} {value!r} is no class; give a name, or a number from 0 to {len(classes) - 1}.")
        return int(value)
    if value in classes:
        return classes.index(value)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ValueError(f"{name} {value!r} does not exist; this model knows {shown}.{did_you_mean(value, classes)}")


def _vectors(name: str, value: Any, n: int, part: ConditionSpec) -> Tensor:
    rows = _array(name, value).double().cpu()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != part.width:
        raise _misfit(name, rows, f"({part.width},) or ({n}, {part.width})")
    mean, std = rows.new_tensor(part.mean or (0.0,)), rows.new_tensor(part.std or (1.0,))
    return _rows(name, ((rows - mean) / std).float(), n)


def _texts(name: str, value: Any, n: int, length: int) -> Tensor:
    from undiffuse.data.columns import encode_caption

    if _is_numeric(value):
        value = torch.as_tensor(value)
        rows = value[None] if value.ndim == 1 else value
        if rows.ndim != 2 or rows.dtype != torch.int64 or rows.shape[1] > length:
            raise _misfit(name, rows, f"strings, or int64 bytes ({length},) or ({n}, {length})")
        return _rows(name, pad(rows, (0, length - rows.shape[1]), value=-1), n)
    texts = [value] if isinstance(value, str) else list(value)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"condition {name!r} holds {text!r}; expected a string, or one for each of {n} samples.")
        if len(text.encode()) > length:
            raise ValueError(
                f"condition {name!r} is {len(text.encode())} bytes long, {text[:40]!r}...; this model reads at most "
                f"{length}. Shorten it."
            )
    return _rows(name, torch.stack([torch.from_numpy(encode_caption(text, length)).long() for text in texts]), n)


def _embeddings(name: str, value: Any, n: int, part: ConditionSpec, device: torch.device) -> Tensor:
    expected = f"(up to {part.length}, {part.width}), one or {n} of them"
    given = [value] if _is_numeric(value) or isinstance(value, str) else list(value)
    words = list(dict.fromkeys(item for item in given if isinstance(item, str)))
    read = _read_captions(name, words, part, device) if words else {}
    parts = [
        read[item] if isinstance(item, str) else torch.as_tensor(item, dtype=torch.float32, device="cpu")
        for item in given
    ]
    parts = [row for item in parts for row in (item.unbind() if item.ndim == 3 else [item])]
    for row in parts:
        if row.ndim != 2 or row.shape[1] != part.width or row.shape[0] > part.length:
            raise _misfit(name, row, expected)
    return _rows(name, torch.stack([pad(row, (0, 0, 0, part.length - row.shape[0])) for row in parts]), n)


def _read_captions(name: str, captions: list[str], part: ConditionSpec, device: torch.device) -> dict[str, Tensor]:
    """Return the outputs (L, width) of the condition's text encoder for each caption."""
    from undiffuse.data.encoders import get_encoder

    if not part.encoder:
        raise ValueError(
            f"condition {name!r} is {captions[0][:40]!r} but the model does not know the encoder of its texts; give "
            f"outputs of the encoder as a tensor (up to {part.length}, {part.width})."
        )
    encoder = get_encoder(part.encoder, part.encoder_hash, device)
    for caption, length in zip(captions, encoder.lengths(captions), strict=True):
        if length > part.length:
            raise ValueError(
                f"condition {name!r} is {length} tokens long, {caption[:40]!r}...; this model reads at most "
                f"{part.length}. Shorten it."
            )
    # One at a time: in a batch the last bits would depend on the other captions, and a sample must not.
    return {caption: encoder.encode([caption], part.length).outputs[0].float() for caption in captions}


def _maps(name: str, value: Any, n: int, part: ConditionSpec, spec: DataSpec) -> Tensor:
    rows = _array(name, value)
    shapes = [(part.width, *spec.shape[spec.channel_axis + 1 :])]
    if spec.kind == "video":
        shapes.insert(0, (spec.shape[0], *shapes[0]))
    if not rows.is_floating_point():
        raise ValueError(f"condition {name!r} is a map of {rows.dtype}; expected floats, [-1, 1] for pictures.")
    for shape in shapes:
        if rows.shape[-len(shape) :] == shape and rows.ndim - len(shape) in (0, 1):
            return _rows(name, rows.float() if rows.ndim > len(shape) else rows.float()[None], n)
    raise _misfit(name, rows, " or ".join(map(str, shapes)) + f", one or {n} of them")


@torch.no_grad()
def _encoded(value: Any, n: int, spec: DataSpec, device: torch.device, codec: Codec) -> Tensor:
    """Return the latents (n, c, *) of a picture given on the grid of the data; `spec` is that of the latents."""
    axis = spec.channel_axis
    sizes = (side * codec.factor for side in spec.shape[axis + 1 :])
    data = replace(codec.data, shape=(*spec.shape[:axis], codec.data.channels, *sizes))
    rows = _maps(SOURCE, value, n, codec.data.cond[SOURCE], data)
    return torch.cat([codec.encode_maps(part.to(device)) for part in rows.split(_ENCODED)])


def _array(name: str, value: Any) -> Tensor:
    """Return an array, numbers in nested lists, or a list of arrays of one shape, as one tensor."""
    if _is_numeric(value):
        return torch.as_tensor(value)
    try:
        return torch.stack([torch.as_tensor(item) for item in value])
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"condition {name!r} holds {str(value)[:60]!r}; expected numbers of one shape.") from None


def _is_numeric(value: Any) -> bool:
    """Whether a value is one array, or nested lists of numbers."""
    while isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[0]
        if hasattr(value, "shape"):
            return False
    return hasattr(value, "shape") or isinstance(value, (int, float))


def _misfit(name: str, rows: Tensor, expected: str) -> ValueError:
    return ValueError(f"condition {name!r} has shape {tuple(rows.shape)} of {rows.dtype}; expected {expected}.")


def _rows(name: str, rows: Tensor, n: int) -> Tensor:
    if len(rows) not in (1, n):
        raise ValueError(f"condition {name!r} has {len(rows)} rows; expected 1 or {n}.")
    return rows.expand(n, *rows.shape[1:])

"""From what a user writes (a class name, one number for all, a text) to the tensors that denoisers take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undiffuse.process.categorical import CategoricalProcess
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean


def fit_conditions(cond: dict[str, Any] | None, n: int, spec: DataSpec, device: torch.device) -> dict[str, Tensor]:
    """Return one tensor per condition with `n` rows.

    Args:
        cond: "label" as a class number or name, or a sequence of them; other names as vectors (width,) or (n, width).
        n: Number of samples; a single value is repeated.
        spec: Names the classes and vector conditions that there are.
        device: Where the tensors go.

    Raises:
        ValueError: A condition or class that the model does not know, or another number of rows than `n`.
    """
    known = spec.conditions
    for name in cond or {}:
        if name not in known:
            what = f"its conditions are {', '.join(known)}" if known else "it was trained without conditions"
            raise ValueError(f"condition {name!r} is unknown to this model; {what}.")
    return {
        name: _labels(value, n, spec.classes).to(device)
        if name == "label"
        else _vectors(name, value, n, spec.cond[name].width).to(device)
        for name, value in (cond or {}).items()
        if value is not None
    }


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


def _labels(value: Any, n: int, classes: tuple[str, ...]) -> Tensor:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    if isinstance(values, (str, int)):
        values = [values]
    if isinstance(values, list):
        values = torch.tensor([_number(v, classes) for v in values], dtype=torch.int64)
    labels = torch.as_tensor(values)
    if labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype}; expected class numbers or names.")
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if outside.numel():
        raise ValueError(f"label {int(outside.flatten()[0])} does not exist; this model knows 0 to {len(classes) - 1}.")
    return _rows("label", labels.long().reshape(-1), n)


def _number(value: Any, classes: tuple[str, ...]) -> int:
    if not isinstance(value, str):
        return int(value)
    if value in classes:
        return classes.index(value)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ValueError(f"label {value!r} does not exist; this model knows {shown}.{did_you_mean(value, classes)}")


def _vectors(name: str, value: Any, n: int, width: int) -> Tensor:
    rows = torch.as_tensor(value, dtype=torch.float32)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"condition {name!r} has shape {tuple(rows.shape)}; expected ({width},) or ({n}, {width}).")
    return _rows(name, rows, n)


def _rows(name: str, rows: Tensor, n: int) -> Tensor:
    if len(rows) not in (1, n):
        raise ValueError(f"condition {name!r} has {len(rows)} rows; expected 1 or {n}.")
    return rows.expand(n, *rows.shape[1:])

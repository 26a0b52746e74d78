"""The conditions that compete: from what a user writes (class names, prompts, numbers) to rows of conditions."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.subject import Asked
from undiffuse.models.conditions import Fitted
from undiffuse.networks.embedded import Embedded
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.words import did_you_mean

_WORDS = ("text", "embedding")  # kinds of conditions that prompts are given to


@dataclass(frozen=True)
class Candidates:
    """C conditions, the classes they speak for, and which of them are the same.

    Args:
        names: Of the candidates, C of them.
        classes: Class of each, int64 (C,).
        class_names: K of them.
        cond: Condition -> rows (C, ...).
        same: Of each the first candidate with the same condition, as a number among the distinct ones, int64 (C,).
    """

    names: tuple[str, ...]
    classes: Tensor
    class_names: tuple[str, ...]
    cond: Fitted
    same: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @property
    def distinct(self) -> Tensor:
        """The first candidate of each distinct condition, int64 (D,)."""
        seen = torch.full((int(self.same.max()) + 1,), len(self.same), dtype=torch.int64)
        return seen.scatter_reduce(0, self.same, torch.arange(len(self.same)), "amin")


def read_candidates(
    asked: Asked,
    candidates: Any = None,
    *,
    condition: str | None = None,
    template: str | Sequence[str] | None = None,
) -> Candidates:
    """Return the candidates that a user means.

    Args:
        asked: Whose conditions they are.
        candidates: None: all classes of the model's label. Class names or numbers; prompts; a list among them holds
            several prompts of one class, which is called as the first. Rows (C, width) for a vector. Or condition ->
            C values, where a candidate consists of several.
        condition: Name of the condition; None: the label, or the only one, or the one that reads words.
        template: What a prompt is made of a class name with, "a photo of a {}."; several give each class as many.

    Raises:
        ValueError: A model without conditions, candidates that it does not know, or none.
    """
    spec = asked.spec if asked.model is not None else None
    if spec is not None and not spec.conditions:
        raise ValueError(
            "this model was trained without conditions, so there is nothing that candidates could differ in."
        )
    if isinstance(candidates, Mapping):
        if condition is not None or template is not None:
            raise ValueError("candidates by condition say everything; leave condition and template out.")
        return _of_conditions(asked, candidates)
    name = condition or _usual_condition(spec)
    part = None if spec is None else _part(spec, name)
    groups = _groups(candidates, name, part)
    names = [_called(group[0], part) for group in groups]
    if template is not None:
        groups = _filled(groups, template, name, part)
    flat = [value for group in groups for value in group]
    classes = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    whole = candidates if _is_rows(candidates) else flat
    shown = [_called(value, part) for value in flat] if not _is_rows(candidates) else names
    return _joined(asked, {name: whole}, tuple(shown), classes, tuple(names))


def _of_conditions(asked: Asked, candidates: Mapping[str, Any]) -> Candidates:
    counts = {name: len(values) for name, values in candidates.items() if not isinstance(values, str)}
    if len(counts) < len(candidates) or len(set(counts.values())) != 1:
        raise ValueError(f"each condition needs a value for each candidate; got {counts or dict(candidates)} of them.")
    count = next(iter(counts.values()))
    rows = zip(*([_word(value) for value in values] for values in candidates.values()), strict=True)
    names = tuple(", ".join(parts) for parts in rows)
    return _joined(asked, dict(candidates), names, torch.arange(count), names)


def _joined(
    asked: Asked, cond: dict[str, Any], names: tuple[str, ...], classes: Tensor, class_names: tuple[str, ...]
) -> Candidates:
    if not names:
        raise ValueError("there are no candidates; give at least one, better two.")
    if asked.model is None:
        cond = {name: torch.as_tensor(values) for name, values in cond.items()}
    fitted = asked.conditions(cond, len(names))
    return Candidates(names, classes, class_names, fitted, _same_rows(fitted, len(names)))


def _same_rows(cond: Fitted, count: int) -> Tensor:
    """Return for each row the number of its first equal among the distinct ones, int64 (C,)."""
    found: dict[bytes, int] = {}
    columns = [rows.detach().cpu().contiguous().reshape(count, -1) for rows in cond.values()]
    keys = [b"".join(column[row].numpy().tobytes() for column in columns) for row in range(count)]
    return torch.tensor([found.setdefault(key, len(found)) for key in keys])


def _usual_condition(spec: DataSpec | None) -> str:
    if spec is None or "label" in spec.conditions:
        return "label"
    known = spec.conditions
    words = [name for name, part in known.items() if part.kind in _WORDS]
    found = words if len(words) == 1 else list(known)
    if len(found) != 1:
        raise ValueError(
            f"this model has the conditions {', '.join(known)}; say which the candidates are of, by condition."
        )
    return found[0]


def _part(spec: DataSpec, name: str) -> ConditionSpec:
    known = spec.conditions
    if name not in known:
        near = did_you_mean(name, known)
        raise ValueError(f"condition {name!r} is unknown to this model; its conditions are {', '.join(known)}.{near}")
    return known[name]


def _groups(candidates: Any, name: str, part: ConditionSpec | None) -> list[list[Any]]:
    """Return the candidates of each class."""
    if candidates is None:
        if part is None or part.kind != "label":
            raise ValueError(f"say which candidates there are: {name!r} has no classes of its own.")
        return [[number] for number in range(len(part.classes))]
    if isinstance(candidates, str):
        raise ValueError(f"candidates={candidates!r} is one word; give a list, [{candidates!r}, ...].")
    if _is_rows(candidates):
        return [[row] for row in candidates]
    several = part is not None and part.kind in (*_WORDS, "label")
    groups = [list(one) if several and _is_list(one) else [one] for one in candidates]
    if any(not group for group in groups):
        raise ValueError("a class among the candidates has no prompts; give at least one.")
    return groups


def _filled(
    groups: list[list[Any]], template: str | Sequence[str], name: str, part: ConditionSpec | None
) -> list[list[Any]]:
    """Return the prompts that templates make of each class's names."""
    templates = [template] if isinstance(template, str) else list(template)
    if part is None or part.kind not in _WORDS:
        raise ValueError(f"a template makes prompts, and condition {name!r} reads no words; leave template out.")
    for text in templates:
        if "{}" not in text:
            raise ValueError(
                f'template {text!r} has no place for the class; write it with {{}}, as "a photo of a {{}}."'
            )
    if not templates:
        raise ValueError('template is an empty list; give at least one, as "a photo of a {}."')
    return [[text.replace("{}", str(value)) for text in templates for value in group] for group in groups]


def _called(value: Any, part: ConditionSpec | None) -> str:
    if part is not None and part.kind == "label" and isinstance(value, (numbers.Integral, Tensor)):
        number = int(value)
        return part.classes[number] if 0 <= number < len(part.classes) else str(number)
    return _word(value)


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)) and len(value) <= 4:
        return " ".join(_word(part) for part in value)
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_rows(candidates: Any) -> bool:
    """Whether candidates are one array, of a row each."""
    return hasattr(candidates, "shape") and hasattr(candidates, "__array__")


def check_apart(candidates: Fitted, others: Fitted) -> None:
    """Refuse a condition that both the candidates and the items give.

    Raises:
        ValueError: There is one.
    """
    if overlap := sorted(candidates.keys() & others.keys()):
        raise ValueError(f"condition {overlap[0]!r} is given in cond and by the candidates; leave it out of cond.")


class PairConditions:
    """Embedded conditions of pairs (item, candidate); candidate C is the one without its condition.

    Args:
        denoiser: Embeds them.
        candidates: The rows of the candidates (C, ...).
        others: Conditions of the items (B, ...), the same for all candidates; empty: none.
        null: Whether candidate C is asked about.
    """

    def __init__(self, denoiser: Any, candidates: Fitted, others: Fitted, null: bool) -> None:
        check_apart(candidates, others)
        self.denoiser, self.others, self.null = denoiser, others, null
        self.rows = {name: torch.cat([rows, rows[:1]]) if null else rows for name, rows in candidates.items()}
        self.count = len(next(iter(candidates.values())))
        self.embedded = None if others else self._embed(self.rows, torch.arange(self.count + null))

    def of(self, items: Tensor, candidates: Tensor) -> Embedded | None:
        """Return the conditions of pairs, int64 (R,) each."""
        if not self.others:
            return None if self.embedded is None else self.embedded.take(candidates)
        rows = {name: values[candidates.to(values.device)] for name, values in self.rows.items()}
        rows |= {name: values[items.to(values.device)] for name, values in self.others.items()}
        return self._embed(rows, candidates)

    @torch.no_grad()
    def _embed(self, rows: dict[str, Tensor], candidates: Tensor) -> Embedded | None:
        if not self.null:
            return self.denoiser.embed(rows, len(candidates))
        free = candidates == self.count
        kept = self.denoiser.kept_conditions
        drop = {name: free.to(values.device) for name, values in self.rows.items() if name not in kept}
        if not drop:
            raise ValueError(
                "the candidates' conditions are never left out by this model, so nothing can be contrasted."
            )
        return self.denoiser.embed(rows, len(candidates), drop)

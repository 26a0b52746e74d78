"""Class names to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.errors import DataError
from undiffuse.words import did_you_mean


def number_labels(names: Sequence[str], where: str, known: tuple[str, ...] = ()) -> tuple[Tensor, tuple[str, ...]]:
    """Return the number of each item's class, int64 (N,), and the class names in order.

    Args:
        names: Class name of each item.
        where: Stands for the data in errors.
        known: The classes of a model; empty: the names found, sorted (as numbers where all are whole numbers).

    Raises:
        DataError: A name is not among `known`.
    """
    found = sorted(set(names), key=_order)
    if known:
        _refuse_unknown(found, known, where)
    classes = known or tuple(found)
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name] for name in names], dtype=torch.int64), classes


def _order(name: str) -> tuple[int, int, str]:
    """Whole numbers first, by value; then names by letter."""
    whole = name.lstrip("-").isascii() and name.lstrip("-").isdigit()
    return (0, int(name), name) if whole else (1, 0, name)


def _refuse_unknown(found: Sequence[str], known: tuple[str, ...], where: str) -> None:
    unknown = [name for name in found if name not in known]
    if not unknown:
        return
    hint = did_you_mean(unknown[0], known)
    raise DataError(
        f"{where} has {len(unknown)} class(es) that the model does not know, first {unknown[0]!r}; it knows "
        f"{len(known)}: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}; rename it, or use a model trained "
        f"on these classes.{hint}"
    )

"""Limits that options of all packages have, in the same words.

Each function takes the options and the names that it looks at. NaN is refused; None, the default of some, passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any


def check_counts(least: int | None = 1, **numbers: Any) -> None:
    """Refuse numbers that are not whole, or below `least` where there is one; for arguments of functions.

    Raises:
        ValueError: One is.
    """
    bound = "" if least is None else f", at least {least}"
    for name, value in numbers.items():
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError(f"{name}={value} must be a whole number{bound}.")
        if least is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")


def at_least_one(options: Any, *names: str) -> None:
    """Refuse values below 1, and fractions where the field is an int.

    Raises:
        ValueError: One is.
    """
    declared = fields(options) if is_dataclass(options) else ()
    whole = [field.name for field in declared if field.name in names and str(field.type).startswith("int")]
    check_counts(**{name: getattr(options, name) for name in whole})
    _refuse_unless(lambda value: value >= 1, "must be at least 1.", options, names)


def positive(options: object, *names: str) -> None:
    """Refuse values that are not above 0.

    Raises:
        ValueError: One is not.
    """
    _refuse_unless(lambda value: value > 0, "must be positive.", options, names)


def not_negative(options: object, *names: str) -> None:
    """Refuse values below 0.

    Raises:
        ValueError: One is.
    """
    _refuse_unless(lambda value: value >= 0, "must not be negative.", options, names)


def share(options: object, *names: str) -> None:
    """Refuse values outside of [0, 1].

    Raises:
        ValueError: One is.
    """
    _refuse_unless(lambda value: 0 <= value <= 1, "is a share and must lie in [0, 1].", options, names)


def share_below_one(options: object, *names: str) -> None:
    """Refuse values outside of [0, 1).

    Raises:
        ValueError: One is.
    """
    _refuse_unless(lambda value: 0 <= value < 1, "must lie in [0, 1).", options, names)


def _refuse_unless(holds: Callable[[float], bool], said: str, options: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name}={value} {said}")

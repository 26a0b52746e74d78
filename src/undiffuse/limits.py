"""Limits that options of all packages have, in the same words.

Each function takes the options and the names that it looks at. NaN is refused; None, the default of some, passes.
"""

from __future__ import annotations

from collections.abc import Callable


def at_least_one(options: object, *names: str) -> None:
    """Refuse values below 1.

    Raises:
        ValueError: One is.
    """
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

"""A model tuned for one sampler says so where it is sampled with another."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undiffuse.models.model import Model

TUNED_FOR = "tuned_for"
"""In `Model.info`: "solver", "steps" (a list), "grid" and "guidance" of the sampler that the weights were tuned for."""


def warn_of_other_sampler(model: Model, given: dict[str, Any]) -> None:
    """Warn where a call asks a tuned model for another sampler than its own.

    Args:
        model: Any model.
        given: "solver", "steps", "grid" and "guidance" of a call; None where the model's default applies.
    """
    tuned = model.info.get(TUNED_FOR)
    if not isinstance(tuned, dict):
        return
    allowed = {name: value if isinstance(value, list) else [value] for name, value in tuned.items()}
    others = [
        f"{name}={value}" for name, value in given.items() if value is not None and not _is_in(value, allowed[name])
    ]
    if others:
        own = ", ".join(f"{name}={' or '.join(map(str, values))}" for name, values in allowed.items())
        warnings.warn(
            f"this model was tuned for {own} and is sampled with {', '.join(others)}, where it is usually worse than "
            f"the model it was made from; leave these out, or use that model.",
            stacklevel=4,
        )


def _is_in(value: Any, allowed: list[Any]) -> bool:
    """Whether a plain value is among the allowed ones; a solver or grid given as an object is not."""
    return isinstance(value, (str, int, float)) and value in allowed

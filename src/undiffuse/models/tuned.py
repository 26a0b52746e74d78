"""A model tuned for one sampler says so where it is sampled with another."""

from __future__ import annotations

import copy
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
    others = [
        f"{name}={value}"
        for name, value in given.items()
        if value is not None and not _is_in(value, _listed(tuned[name]))
    ]
    if others:
        warnings.warn(
            f"this model was tuned for {_in_words(tuned)} and is sampled with {', '.join(others)}, where it is usually "
            f"worse than the model it was made from; leave these out, or use that model.",
            stacklevel=4,
        )


def without_tuning(model: Model) -> Model:
    """Return a model that can be sampled with any sampler; where it was tuned for one, warn once and take a copy."""
    tuned = model.info.get(TUNED_FOR)
    if not isinstance(tuned, dict):
        return model
    warnings.warn(
        f"this model was tuned for {_in_words(tuned)}; with other samplers it is usually worse than the model it was "
        f"made from, and how near they come to a fine run of it says little.",
        stacklevel=3,
    )
    free = copy.copy(model)
    free.info = {name: value for name, value in model.info.items() if name != TUNED_FOR}
    return free


def _in_words(tuned: dict[str, Any]) -> str:
    return ", ".join(f"{name}={' or '.join(map(str, _listed(value)))}" for name, value in tuned.items())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_in(value: Any, allowed: list[Any]) -> bool:
    """Whether a plain value is among the allowed ones; a solver or grid given as an object is not."""
    return isinstance(value, (str, int, float)) and value in allowed

"""A model that came with a scheduler of diffusers is sampled as that scheduler does, where a call does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undiffuse.sampling.diffusers_setup import DiffusersSetup

SCHEDULER = "scheduler"
"""In `Model.defaults`: "config" of the scheduler, "per_step" and "patch" for flows, see `setup_of`."""


def setup_of(defaults: dict[str, Any], shape: Sequence[int]) -> DiffusersSetup | None:
    """Return the scheduler that a model's defaults name; None where they name none, or say otherwise.

    Args:
        defaults: Of the model. A "solver" or "grid" beside the scheduler goes before it.
        shape: Of one state; "dynamic" shifts of flows follow from the number of its patches.
    """
    held = defaults.get(SCHEDULER)
    if held is None:
        return None
    from undiffuse.sampling.diffusers_setup import from_diffusers

    config, patch = held["config"], held.get("patch", 1)
    tokens = (shape[-2] // patch) * (shape[-1] // patch) if len(shape) > 1 else 1
    return from_diffusers(config, mu=_shift(config, tokens), per_step=held.get("per_step", False))


def _shift(config: dict[str, Any], tokens: int) -> float:
    """Return mu of so many tokens: linear between two pairs, as diffusers' `calculate_shift` has it."""
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - first) / (last - first)

"""A model tuned or distilled for one sampler says so where it is sampled with another."""

from __future__ import annotations

import copy
import warnings
from numbers import Number
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.sampling.flow_map import jump_grid
from undiffuse.sampling.registry import make_solver

if TYPE_CHECKING:
    from undiffuse.models.model import Model

TUNED_FOR = "tuned_for"
"""In `Model.info`: "solver", "steps" (a list), "grid" and "guidance" of the sampler that the weights were tuned for."""


def warn_of_other_sampler(model: Model, given: dict[str, Any]) -> None:
    """Warn where a call asks a tuned model, or a student of progressive distillation, for another sampler than its own.

    Args:
        model: Any model.
        given: "solver", "steps", "grid", "guidance", "solver_options" and "threshold" of a call; None where the model's
            default applies.
    """
    tuned = model.info.get(TUNED_FOR)
    if not isinstance(tuned, dict):
        _warn_of_other_steps(model, given)
        return
    others = [
        f"{name}={given[name]}"
        for name in tuned
        if given.get(name) is not None and not _is_in(given[name], _listed(tuned[name]))
    ]
    others += _changed_options(given.get("solver") or tuned["solver"], given.get("solver_options") or {})
    others += [f"threshold={given['threshold']}"] if given.get("threshold") not in (None, "none") else []
    if others:
        warnings.warn(
            f"this model was tuned for {_in_words(tuned)} and is sampled with {', '.join(others)}, where it is usually "
            f"worse than the model it was made from; leave these out, or use that model.",
            stacklevel=4,
        )


def _warn_of_other_steps(model: Model, given: dict[str, Any]) -> None:
    """Warn where a student of progressive distillation, which knows the steps of one grid, is asked for others."""
    recipe = model.info.get("recipe")
    objective = recipe.get("objective") if isinstance(recipe, dict) else None
    if not isinstance(model.module, FlowMap) or model.module.spans != "steps" or not isinstance(objective, dict):
        return
    own, grid, asked = objective.get("last_steps"), given["grid"], given["steps"]
    if objective.get("kind") != "progressive" or own is None:
        return
    others = [f"steps={asked}"] if asked not in (None, own) else []
    if isinstance(grid, str):
        others += [f"grid={grid}"] if grid != "t" and own > 1 else []  # one step is on all grids
    elif grid is not None:
        times, known = torch.as_tensor(grid).double().cpu(), jump_grid(model.module, own)
        same = times.shape == known.shape and torch.allclose(times, known, rtol=0, atol=1e-3)
        others += [] if same else [f"a grid of {len(times) - 1} steps"]
    if others:
        warnings.warn(
            f"this model was distilled for steps={own} and is sampled with {', '.join(others)}, which it was not "
            f"trained for; leave that out, or distil again with another objective.last_steps.",
            stacklevel=5,
        )


def _changed_options(solver: Any, options: dict[str, Any]) -> list[str]:
    """Return the options, as NAME=VALUE, with which a solver given by name differs from the plain one."""
    if not options or not isinstance(solver, str) or make_solver(solver, **options) == make_solver(solver):
        return []
    return [f"{name}={value}" for name, value in options.items()]


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
    return isinstance(value, (str, Number)) and value in allowed

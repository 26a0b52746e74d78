"""What a call of `Model.sample` may ask of a flow map: jumps it was trained for, and nothing that needs a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.errors import PlanError
from undiffuse.sampling.flow_map import Jumps, sample_flow_map
from undiffuse.sampling.loop import SampleResult
from undiffuse.sampling.solver import Solver


def jumping(held: Denoiser | FlowMap, rule: Solver, given: dict[str, Any]) -> Callable[..., SampleResult] | None:
    """Return `sample_flow_map` with the model's map, where `rule` jumps with one; None where it walks with a denoiser.

    Args:
        held: What the model holds.
        rule: The solver.
        given: Arguments by name, which only a denoiser can follow; but "guidance" may be that of the training.

    Raises:
        PlanError: The model is a denoiser, or its map was not trained for such jumps.
        ValueError: Another guidance than that of the training, or something that needs a denoiser.
    """
    if not isinstance(rule, Jumps):
        return None
    if not isinstance(held, FlowMap):
        raise PlanError(
            "this solver jumps with a flow map, and the model is a denoiser; distil it first (undiffuse distill), or "
            "choose another solver such as dpm++2m."
        )
    rule.check(held)
    guidance = given.get("guidance")
    if guidance is not None and guidance != held.guided:
        folded = f"with guidance {held.guided:g} folded in" if held.guided != 1 else "without guidance"
        raise ValueError(
            f"guidance={guidance:g} was asked of a flow map that was trained {folded}; leave it out, or distil again "
            f"with guidance={guidance:g}."
        )
    asked = [name for name, value in given.items() if value and name != "guidance" and value != "none"]
    if asked:
        raise ValueError(f"{asked[0]} needs a denoiser at every step, and this solver jumps with a flow map; omit it.")
    return partial(sample_flow_map, held, gamma=rule.gamma)

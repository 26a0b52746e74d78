"""What `tokens_per_call` and `purity` of a call mean for the solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from undiffuse.sampling.solver import Solver

_NAME = "token-budget"


@dataclass(frozen=True)
class Budget:
    """The solver of a call, by name or built, None for the model's own; and options that follow for it."""

    solver: str | Solver | None
    options: dict[str, Any] = field(default_factory=dict)


def read_budget(
    defaults: dict[str, Any], solver: str | Solver | None, tokens_per_call: int | None, purity: float | None
) -> Budget:
    """Return the solver that a call asks for: `token-budget` where it says how masks open, and names no other.

    With purity that solver also opens pure places first. Another solver with purity sharpens only.

    Args:
        defaults: Those of the model.
        solver: What the call names.
        tokens_per_call, purity: See `Model.sample_result`.

    Raises:
        ValueError: A cap for a solver that has none.
    """
    asked = tokens_per_call is not None or purity is not None
    name = solver if solver is not None else _NAME if asked else defaults.get("solver")
    if name != _NAME:
        if tokens_per_call is not None:
            given = name if isinstance(name, str) else type(name).__name__
            raise ValueError(
                f"tokens_per_call={tokens_per_call} belongs to solver {_NAME!r}, not {given!r}; leave one out."
            )
        return Budget(solver)
    cap = defaults.get("tokens_per_call") if tokens_per_call is None else tokens_per_call
    pure = defaults.get("purity") if purity is None else purity
    options: dict[str, Any] = {} if cap is None else {"tokens_per_call": cap}
    return Budget(_NAME, options if pure is None else {**options, "positions": "purity"})

"""Options of sampling, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How the trained model samples unless told otherwise. None leaves a choice to the kind of process."""

    solver: (
        Literal["ddim", "ddpm", "euler", "heun", "edm-heun", "dpm++2m", "sde-dpm++2m", "ancestral", "first-hitting"]
        | None
    ) = _option(None, "rule that steps; none: dpm++2m, or first-hitting for tokens")
    steps: int | None = _option(None, "steps; none: 25, or one per token")
    grid: (
        Literal["t", "logsnr", "karras", "quadratic", "exponential", "beta", "linspace", "leading", "trailing"] | None
    ) = _option(None, "spacing of the steps; none: logsnr")
    guidance: float = _option(1.0, "classifier-free guidance scale; 1 is none")

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1.")
        if self.guidance < 0:
            raise ValueError(f"guidance={self.guidance} must not be negative; 1 is conditional without guidance.")

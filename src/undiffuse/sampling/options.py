"""Options of sampling, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from undiffuse.process.grid_names import check_grid_name
from undiffuse.sampling.registry import check_solver_name
from undiffuse.words import option


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How the trained model samples unless told otherwise. None leaves a choice to the kind of process."""

    solver: str | None = option(
        None,
        "rule that steps, see undiffuse solvers; none: dpm++2m; tokens: first-hitting, or ancestral where noise "
        "replaces them",
    )
    steps: int | None = option(None, "steps; none: 25, or one per token")
    grid: str | None = option(
        None,
        "spacing of the steps: logsnr, t, karras, quadratic, beta, linspace, leading, trailing, logsnr:LOW:HIGH:BEND, "
        "or published, that of the solver; none: logsnr",
    )
    guidance: float = option(1.0, "classifier-free guidance scale; 1 is none")
    guidance_interval: tuple[float, float] | None = option(
        None, "guide only where sigma / alpha (tokens: t) is above the first and at most the second; none: everywhere"
    )
    guidance_rescale: float = option(
        0.0, "share of the guided mean that is scaled back to the spread of the conditional one, 0 to 1"
    )
    threshold: Literal["static", "dynamic"] | None = option(
        None, "bound every answer to the data's range: static clips, dynamic also scales; none: neither"
    )

    truncation: float | None = option(
        None, "tokens: keep the likeliest classes of each that together reach this probability; none: all"
    )
    purity: float | None = option(
        None, "token-budget: sharpen each token by its purity, so strongly, and open pure places first; none: neither"
    )
    tokens_per_call: int | None = option(None, "token-budget: most masks that open with one evaluation; none: no cap")

    def __post_init__(self) -> None:
        if self.solver is not None:
            check_solver_name(self.solver)
        if self.grid is not None:
            check_grid_name(self.grid)
        self._check_tokens()
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1.")
        if self.guidance < 0:
            raise ValueError(f"guidance={self.guidance} must not be negative; 1 is conditional without guidance.")
        if self.guidance_interval is not None and not self.guidance_interval[0] < self.guidance_interval[1]:
            raise ValueError(f"guidance_interval={self.guidance_interval} is empty; give two rising numbers.")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={self.guidance_rescale} is a share and must lie in [0, 1].")

    def _check_tokens(self) -> None:
        if self.truncation is not None and not 0 < self.truncation <= 1:
            raise ValueError(f"truncation={self.truncation} is outside of (0, 1]; 1 keeps all classes, 0.86 is usual.")
        if self.purity is not None and not self.purity >= 0:
            raise ValueError(f"purity={self.purity} must not be negative; 0 sharpens nothing, 1 is usual.")
        budget = {"purity": self.purity, "tokens_per_call": self.tokens_per_call}
        given = [name for name, value in budget.items() if value is not None]
        if given and self.solver != "token-budget":
            raise ValueError(f"sample.{given[0]} belongs to sample.solver=token-budget; set that too.")

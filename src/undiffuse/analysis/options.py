"""Options of likelihoods. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from undiffuse.limits import at_least_one, positive
from undiffuse.words import did_you_mean, option

EXACT_LIMIT = 4096
"""Most elements of an item whose exact divergence is computed: it costs one backward pass per element and step."""
AUTO_LIMIT = 32
"""Most elements of an item for which "auto" takes the exact divergence; of 8 x 8 pixels it would take minutes."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How a likelihood is computed.

    Raises:
        ValueError: An unknown word, or a number out of range.
    """

    method: Literal["auto", "ode", "elbo"] = option(
        "auto", "ode: probability-flow ODE; elbo: evidence bound; auto: ode, for tokens elbo"
    )
    divergence: Literal["auto", "exact", "hutchinson"] = option(
        "auto", "exact, or hutchinson: random probes; auto: exact up to 32 elements"
    )
    probes: int = option(2, "random probes per item of the Hutchinson estimate; its error needs 2 or more")
    integrator: Literal["dormand-prince", "heun"] = option(
        "dormand-prince", "dormand-prince with adaptive steps, or heun on a grid of steps"
    )
    steps: int = option(64, "steps of heun, two evaluations each")
    grid: Literal["quadratic", "logsnr", "karras", "t"] = option(
        "quadratic", "spacing of heun's steps; quadratic is uniform in the root of t"
    )
    rtol: float = option(1e-4, "relative tolerance of dormand-prince")
    atol: float = option(1e-4, "absolute tolerance of dormand-prince")
    max_steps: int = option(2000, "most steps that dormand-prince may try")
    t_min: float | None = option(None, "time that stands for the data; none: the schedule's own")
    draws: int = option(16, "noise draws per item of the evidence bound")
    levels: int | None = option(None, "noise levels of the discrete evidence bound; none: the continuous one")
    dequantise: bool | None = option(None, "add uniform noise of one level to data; none: to integers with a range")
    batch_size: int = option(64, "items computed at once; changes speed and memory only")
    chunk: int | None = option(None, "cotangents of the divergence that run at once; none: some 64 rows")
    allow_unnormalised: bool = option(False, "go on with a guided or wrapped denoiser, whose figures are no densities")

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name in ("method", "divergence", "integrator", "grid"):
            value, known = getattr(self, name), get_args(types[name])
            if value not in known:
                near = did_you_mean(str(value), known)
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.{near}")
        at_least_one(self, "probes", "steps", "draws", "batch_size", "max_steps", "levels", "chunk")
        positive(self, "rtol", "atol")

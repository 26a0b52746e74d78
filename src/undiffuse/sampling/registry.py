"""Solvers by name: one literal table that feeds `--help`, listings and loading."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from undiffuse.sampling.solver import Solver
from undiffuse.words import did_you_mean

SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("undiffuse.sampling.ddim:DDIM", {}),
    "ddpm": ("undiffuse.sampling.ddim:DDPM", {}),
    "ddpm-learned": ("undiffuse.sampling.ddim:DDPM", {"variance": "learned"}),
    "euler": ("undiffuse.sampling.euler:Euler", {}),
    "heun": ("undiffuse.sampling.euler:Heun", {}),
    "edm-heun": ("undiffuse.sampling.euler:EDMHeun", {}),
    "dpm++2m": ("undiffuse.sampling.dpm_multistep:DPMpp2M", {}),
    "sde-dpm++2m": ("undiffuse.sampling.dpm_multistep:DPMpp2M", {"tau": 1.0}),
    "ancestral": ("undiffuse.sampling.ancestral:Ancestral", {}),
    "first-hitting": ("undiffuse.sampling.first_hitting:FirstHitting", {}),
}


def make_solver(name: str, **options: Any) -> Solver:
    """Build the solver called `name`; `options` are its own, e.g. eta=0.5 for "ddim".

    Raises:
        ValueError: The name or an option is unknown, or an option is out of range.
    """
    if name not in SOLVERS:
        near = did_you_mean(name, SOLVERS)
        raise ValueError(f"solver {name!r} is unknown; choose one of {', '.join(SOLVERS)}.{near}")
    location, preset = SOLVERS[name]
    module, attribute = location.split(":")
    try:
        return getattr(import_module(module), attribute)(**{**preset, **options})
    except TypeError as error:
        raise ValueError(f"solver {name!r} does not take these options: {error}.") from error

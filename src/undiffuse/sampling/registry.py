"""Solvers by name: one literal table that feeds `--help`, listings and loading. Torch-free; `catalogue` says more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from undiffuse._lazy import resolve
from undiffuse.config.schema import slots
from undiffuse.config.values import read_value
from undiffuse.errors import ConfigError
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.sampling.solver import Solver

SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("undiffuse.sampling.ddim:DDIM", {}),
    "ddpm": ("undiffuse.sampling.ddim:DDPM", {}),
    "ddpm-learned": ("undiffuse.sampling.ddim:DDPM", {"variance": "learned"}),
    "euler": ("undiffuse.sampling.euler:Euler", {}),
    "heun": ("undiffuse.sampling.euler:Heun", {}),
    "edm-heun": ("undiffuse.sampling.euler:EDMHeun", {}),
    "euler-ancestral": ("undiffuse.sampling.ddim:DDIM", {"eta": 1.0}),
    "lcm": ("undiffuse.sampling.ddim:DDIM", {"eta": 1.0, "rule": "mixed"}),
    "tcd": ("undiffuse.sampling.tcd:TCD", {}),
    "dpm++2m": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {}),
    "dpm++3m": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {"order": 3}),
    "dpm-solver-2m": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {"form": "noise"}),
    "dpm-solver-3m": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {"order": 3, "form": "noise"}),
    "sde-dpm++1": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {"order": 1, "tau": 1.0}),
    "sde-dpm++2m": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {"tau": 1.0}),
    "sde-dpm++3m": ("undiffuse.sampling.dpm_multistep:DPMMultistep", {"order": 3, "tau": 1.0}),
    "deis-2": ("undiffuse.sampling.deis:DEIS", {"order": 2}),
    "deis-3": ("undiffuse.sampling.deis:DEIS", {}),
    "lms": ("undiffuse.sampling.deis:DEIS", {"order": 4, "variable": "rho"}),
    "ipndm": ("undiffuse.sampling.deis:DEIS", {"order": 4, "variable": "steps"}),
    "unipc": ("undiffuse.sampling.unipc:UniPC", {}),
    "unipc-3": ("undiffuse.sampling.unipc:UniPC", {"order": 3}),
    "dpm-solver-2": ("undiffuse.sampling.singlestep:DPMSolver2", {}),
    "dpm2-ancestral": ("undiffuse.sampling.dpm2_ancestral:DPM2Ancestral", {}),
    "dpm-solver-3": ("undiffuse.sampling.singlestep:DPMSolver3", {}),
    "dpm++2s": ("undiffuse.sampling.singlestep:DPMSolver2", {"form": "data"}),
    "dpm++3s": ("undiffuse.sampling.singlestep:DPMSolver3", {"form": "data"}),
    "dpm-fast": ("undiffuse.sampling.singlestep:DPMFast", {}),
    "rk4": ("undiffuse.sampling.runge_kutta:RK4", {}),
    "dpm-adaptive-12": ("undiffuse.sampling.adaptive:DPMAdaptive", {"order": 2}),
    "dpm-adaptive-23": ("undiffuse.sampling.adaptive:DPMAdaptive", {}),
    "rk45": ("undiffuse.sampling.adaptive:RK45", {}),
    "euler-maruyama": ("undiffuse.sampling.euler_maruyama:EulerMaruyama", {}),
    "pc-langevin": ("undiffuse.sampling.langevin:PredictorCorrector", {}),
    "annealed-langevin": ("undiffuse.sampling.langevin:AnnealedLangevin", {}),
    "flow-map": ("undiffuse.sampling.flow_map:Jumps", {}),
    "consistency": ("undiffuse.sampling.flow_map:Jumps", {"gamma": 1.0}),
    "ancestral": ("undiffuse.sampling.ancestral:Ancestral", {}),
    "token-budget": ("undiffuse.sampling.token_budget:TokenBudget", {}),
    "first-hitting": ("undiffuse.sampling.first_hitting:FirstHitting", {}),
    "left-to-right": ("undiffuse.sampling.left_to_right:LeftToRight", {}),
}


def check_solver_name(name: str) -> None:
    """Refuse the name of no solver.

    Raises:
        ValueError: It is none; the nearest one is named.
    """
    if name not in SOLVERS:
        near = did_you_mean(name, SOLVERS)
        raise ValueError(f"solver {name!r} is unknown; `undiffuse solvers` lists them all.{near}")


def make_solver(name: str, **options: Any) -> Solver:
    """Build the solver called `name`; `options` are its own, e.g. eta=0.5 for "ddim".

    Raises:
        ValueError: The name or an option is unknown, or an option is of another type or out of range.
    """
    check_solver_name(name)
    location, preset = SOLVERS[name]
    rule = resolve(location)
    return rule(**{**preset, **_checked(name, rule, options)}) if options else rule(**preset)


def _checked(name: str, rule: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options in the types of the fields of `rule`: 3.0 is 3 for a whole number, 1 is 1.0 for any."""
    known = slots(rule)
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"solver {name!r} has no option {option!r}; {has}.{did_you_mean(option, known)}")
    try:
        return {
            option: value if type(value) is known[option].hint else read_value(option, known[option].hint, value)
            for option, value in options.items()
        }
    except ConfigError as error:
        raise ValueError(f"solver {name!r}: {error}") from error

r"""Process, solver and grids from the config of a diffusers scheduler, and the config back.

    setup = from_diffusers("folder/scheduler_config.json")
    denoiser = setup.wrap(NetworkDenoiser(network, setup.process, setup.prediction))
    result = sample(denoiser, solver=setup.solver, grid=setup.grid(20), ...)

diffusers itself is not needed. An option without a counterpart here is refused, never dropped, and `to_diffusers`
writes the config from the parts, not from a copy of what was read.

The boundary scaling of LCM, which moves an answer by less than 1e-5, is left out. The first consistency models are
flow maps here, whose scheduler holds a part of the network (`pretrained.consistency`), and have no setup. Schedulers
that walk upwards (the inverse ones) are the same solver with `sample(up=True)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.sampling.ddim import DDIM, DDPM
from undiffuse.sampling.deis import DEIS
from undiffuse.sampling.diffusers_layouts import (
    AngleLayout,
    Config,
    EDMLayout,
    FlowLayout,
    Options,
    Parts,
    SCMLayout,
    TableLayout,
    UnboundedLayout,
)
from undiffuse.sampling.diffusers_spacing import FlowSpacing
from undiffuse.sampling.dpm2_ancestral import DPM2Ancestral
from undiffuse.sampling.dpm_multistep import DPMMultistep
from undiffuse.sampling.euler import EDMHeun, Euler, Heun
from undiffuse.sampling.singlestep import DPMFast, DPMSolver2
from undiffuse.sampling.solver import Solver
from undiffuse.sampling.tcd import TCD
from undiffuse.sampling.unipc import UniPC
from undiffuse.words import did_you_mean


@dataclass(frozen=True, kw_only=True)
class DiffusersSetup(Parts):
    """A scheduler of diffusers in our parts.

    Args:
        name: Its class, such as "DPMSolverMultistepScheduler".
        solver: The rule of its steps.
    """

    name: str
    solver: Solver

    def grid(self, steps: int) -> Tensor:
        """Return the times of the scheduler's own noise levels, float64, for `sample`."""
        return self.spacing.grid(self.process.schedule, steps)

    def start(self, noise: NoiseSource, shape: tuple[int, ...], grid: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the states (B, *shape) that diffusers begins with: noise of the length sqrt(alpha^2 + sigma^2).

        Where `grid` begins below t = 1, as "leading" steps do, that stands for data in noise.
        """
        alpha, sigma = self.process.schedule.levels(grid[:1].double())
        return float((alpha**2 + sigma**2).sqrt()) * noise.normal("init", 0, shape, dtype)

    def timesteps(self, steps: int) -> list[float]:
        """Return what the scheduler would tell the network at the start of each step."""
        return self.spacing.timesteps(self.process.schedule, steps)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """Bound the answers as the scheduler does."""
        if self.bounds is None:
            return denoiser
        from undiffuse.guidance.thresholding import Thresholding

        noise: Literal["own", "new"] = "own" if self.name == "DDIMScheduler" else "new"
        return Thresholding(
            denoiser, self.bounds.mode, bound=self.bounds.bound, quantile=self.bounds.quantile, noise=noise
        )

    def to_diffusers(self) -> Config:
        """Return the config that makes this scheduler with `getattr(diffusers, setup.name).from_config(config)`."""
        family = _FAMILIES[self.name]
        return {"_class_name": self.name, **family.layout.write(self), **family.write(self.solver)}


def from_diffusers(config: Any, mu: float | None = None, per_step: bool = False) -> DiffusersSetup:
    """Read the config of a diffusers scheduler.

    Args:
        config: Its dict (with `_class_name`), the scheduler itself, or the path of its JSON file.
        mu: Of flow schedulers with `use_dynamic_shifting`, which compute it from the size of the picture.
        per_step: Of flows: N steps end at sigma = 1 / N before the shift, as the pipeline of Flux asks for.

    Raises:
        PlanError: A class or an option that has no counterpart here.
    """
    if isinstance(config, str | Path):
        config = json.loads(Path(config).read_text())
    elif not isinstance(config, Mapping):
        config = {**config.config, "_class_name": type(config).__name__}
    name = config.get("_class_name")
    if name not in _FAMILIES:
        near = did_you_mean(str(name), _FAMILIES)
        raise PlanError(f"scheduler class {name!r} has no counterpart; known are {', '.join(_FAMILIES)}.{near}")
    family = _FAMILIES[name]
    options = Options(name, {key: value for key, value in config.items() if not key.startswith("_")})
    parts, solver = family.layout.read(options, mu), family.read(options)
    options.refuse_rest()
    if per_step and isinstance(parts.spacing, FlowSpacing):
        parts = replace(parts, spacing=replace(parts.spacing, per_step=True))
    return DiffusersSetup(name=name, solver=solver, **{f.name: getattr(parts, f.name) for f in fields(Parts)})


# -- solvers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """How one class maps: its levels, its solver from the options, and the options from the solver."""

    layout: TableLayout | FlowLayout | EDMLayout | AngleLayout | SCMLayout
    read: Callable[[Options], Solver]
    write: Callable[[Any], Config] = lambda solver: {}


def _plain(solver: Solver) -> Callable[[Options], Solver]:
    return lambda options: solver


_VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}


def _read_ddpm(options: Options) -> Solver:
    return DDPM(variance=options.choose("variance_type", "fixed_small", _VARIANCES))


def _write_ddpm(solver: DDPM) -> Config:
    return {"variance_type": next(key for key, name in _VARIANCES.items() if name == solver.variance)}


_ALGORITHMS: dict[str, tuple[Literal["data", "noise"], float]] = {
    "dpmsolver": ("noise", 0.0),
    "dpmsolver++": ("data", 0.0),
    "sde-dpmsolver++": ("data", 1.0),
}
_VARIANTS = {"midpoint": "midpoint", "heun": "heun"}


def _read_multistep(options: Options) -> Solver:
    form, tau = options.choose("algorithm_type", "dpmsolver++", _ALGORITHMS)
    order = options.take("solver_order", 2)
    return DPMMultistep(
        order=order,
        form=form,
        tau=tau,
        variant=options.choose("solver_type", "midpoint", _VARIANTS),
        published=("diffusers" if tau else True) if order == 3 else False,
        lower_final="few" if options.take("lower_order_final", True) else False,
    )


def _write_multistep(solver: DPMMultistep) -> Config:
    return {
        "algorithm_type": next(key for key, kind in _ALGORITHMS.items() if kind == (solver.form, solver.tau)),
        "solver_order": solver.order,
        "solver_type": solver.variant,
        "lower_order_final": solver.lower_final == "few",
    }


def _read_cosine(options: Options) -> Solver:
    options.left["algorithm_type"] = "sde-dpmsolver++"  # the class knows no other
    return _read_multistep(options)


def _write_cosine(solver: DPMMultistep) -> Config:
    return {key: value for key, value in _write_multistep(solver).items() if key != "algorithm_type"}


def _read_singlestep(options: Options) -> Solver:
    form, tau = options.choose("algorithm_type", "dpmsolver++", _ALGORITHMS)
    order, variant = options.take("solver_order", 2), options.choose("solver_type", "midpoint", _VARIANTS)
    if tau or (order == 3 and variant == "heun"):
        raise PlanError(
            f"{options.name} with solver_order={order}, solver_type={variant!r} and tau={tau:g} has no counterpart; "
            "only deterministic ones have, of order 3 those with solver_type='midpoint'."
        )
    lowered = options.take("lower_order_final", False)
    return DPMFast(order=order, form=form, variant=variant, lower_final=lowered, published="diffusers")


def _write_singlestep(solver: DPMFast) -> Config:
    return {
        "algorithm_type": "dpmsolver" if solver.form == "noise" else "dpmsolver++",
        "solver_order": solver.order,
        "solver_type": solver.variant,
        "lower_order_final": solver.lower_final,
    }


def _read_unipc(options: Options) -> Solver:
    return UniPC(
        order=options.take("solver_order", 2),
        form="data" if options.take("predict_x0", True) else "noise",
        variant=options.choose("solver_type", "bh2", {"bh1": "bh1", "bh2": "bh2"}),
        lower_final=options.take("lower_order_final", True),
    )


def _write_unipc(solver: UniPC) -> Config:
    return {
        "solver_order": solver.order,
        "predict_x0": solver.form == "data",
        "solver_type": solver.variant,
        "lower_order_final": solver.lower_final is True,
    }


def _read_deis(options: Options) -> Solver:
    options.choose("algorithm_type", "deis", {"deis": "deis"})
    options.choose("solver_type", "logrho", {"logrho": "logrho"})
    lowered = options.take("lower_order_final", True)
    return DEIS(order=options.take("solver_order", 2), variable="logrho", lower_final="few" if lowered else False)


def _write_deis(solver: DEIS) -> Config:
    return {"solver_order": solver.order, "solver_type": "logrho", "lower_order_final": solver.lower_final == "few"}


def _read_lcm(options: Options) -> Solver:
    scaling = options.take("timestep_scaling", 10.0)
    if scaling < 10:
        raise PlanError(
            f"timestep_scaling={scaling} of {options.name} has no counterpart; from 10 on it changes next to nothing."
        )
    return DDIM(eta=1.0, rule="mixed")


def _read_tcd(options: Options) -> Solver:
    options.take("timestep_scaling", 10.0)  # the class has it and does not read it
    return TCD()


_STABLE: dict[str, Any] = {"first": 0.00085, "last": 0.012}
_FEW: dict[str, Any] = {
    "kind": "scaled_linear",
    "coarse": 50,
    "whole": True,
    "spacing": None,
    "tiny": False,
    "curves": False,
}
_EXTRA: dict[str, Any] = {"extra": True, "whole": True, "end": "final_sigmas_type"}
_LMS = DEIS(order=4, variable="rho", lower_final=False)
_ADAMS = DEIS(order=4, variable="steps", lower_final=False)  # PNDM but for its first steps, which ask twice or more
_FAMILIES: dict[str, _Family] = {
    "DDPMScheduler": _Family(
        TableLayout(whole=True, spacing="leading", clips=True, tiny=False, curves=False), _read_ddpm, _write_ddpm
    ),
    "DDIMScheduler": _Family(
        TableLayout(whole=True, spacing="leading", clips=True, tiny=False, curves=False, end="set_alpha_to_one"),
        _plain(DDIM()),
    ),
    "PNDMScheduler": _Family(
        TableLayout(whole=True, spacing="leading", curves=False, end="set_alpha_to_one"), _plain(_ADAMS)
    ),
    "IPNDMScheduler": _Family(AngleLayout(), _plain(_ADAMS)),
    "EulerDiscreteScheduler": _Family(TableLayout(end="final_sigmas_type"), _plain(DDIM())),
    "EulerAncestralDiscreteScheduler": _Family(TableLayout(curves=False), _plain(DDIM(eta=1.0))),
    "HeunDiscreteScheduler": _Family(TableLayout(**_STABLE, clips=False), _plain(EDMHeun())),
    "KDPM2DiscreteScheduler": _Family(TableLayout(**_STABLE), _plain(DPMSolver2())),
    "KDPM2AncestralDiscreteScheduler": _Family(TableLayout(**_STABLE), _plain(DPM2Ancestral())),
    "LCMScheduler": _Family(TableLayout(**_STABLE, **_FEW, clips=False), _read_lcm),
    "TCDScheduler": _Family(UnboundedLayout(**_STABLE, **_FEW, end="sigma_min"), _read_tcd),
    "SCMScheduler": _Family(SCMLayout(), _plain(DDIM(eta=1.0, rule="mixed"))),
    "LMSDiscreteScheduler": _Family(TableLayout(), _plain(_LMS)),
    "DPMSolverMultistepScheduler": _Family(TableLayout(**_EXTRA), _read_multistep, _write_multistep),
    "DPMSolverSinglestepScheduler": _Family(TableLayout(**_EXTRA, spacing=None), _read_singlestep, _write_singlestep),
    "UniPCMultistepScheduler": _Family(TableLayout(**_EXTRA), _read_unipc, _write_unipc),
    "DEISMultistepScheduler": _Family(TableLayout(**{**_EXTRA, "end": "sigma_min"}), _read_deis, _write_deis),
    "FlowMatchEulerDiscreteScheduler": _Family(FlowLayout(), _plain(Euler())),
    "FlowMatchHeunDiscreteScheduler": _Family(FlowLayout(), _plain(Heun())),
    "EDMEulerScheduler": _Family(EDMLayout(), _plain(DDIM())),
    "EDMDPMSolverMultistepScheduler": _Family(EDMLayout(), _read_multistep, _write_multistep),
    "CosineDPMSolverMultistepScheduler": _Family(
        EDMLayout(low=0.3, high=500.0, data_std=1.0, curve="exponential", prediction="v_prediction"),
        _read_cosine,
        _write_cosine,
    ),
}

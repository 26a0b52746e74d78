"""Known faults of public samplers, measured: the tables of docs/how-to/known-faults.md.

Our solvers have the published rules as options (`published=True`, `published="diffusers"`), which the tests hold to
diffusers to 2e-6; so this script needs nothing but the library.

    python benchmarks/known_faults.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.diffusers_setup import from_diffusers
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver

COUNTS = (16, 32, 64, 128, 256)
F64 = torch.float64


def mixture(process: GaussianProcess) -> MixtureDenoiser:
    """Three Gaussians in the plane (principles, section 5)."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]], dtype=F64)
    spreads, weights = torch.tensor([0.3, 0.5, 0.4], dtype=F64), torch.tensor([0.3, 0.4, 0.3], dtype=F64)
    return MixtureDenoiser(weights, means, spreads, process)


def even_grid(process: GaussianProcess, steps: int, low: float) -> Tensor:
    """Even in half log-SNR from t = 1 to `low`."""
    ends = process.schedule.half_logsnr(torch.tensor([1.0, low], dtype=F64)).tolist()
    return process.schedule.time(torch.linspace(*ends, steps + 1, dtype=F64))


def ends(denoiser: Any, solver: str, options: dict[str, Any], grid: Tensor, start: Tensor, noise: Any = None) -> Tensor:
    """Final states of a run."""
    rule, source = make_solver(solver, **options), noise or KeyedNoise(0, range(len(start)))
    return sample(
        denoiser, noise=source, shape=tuple(start.shape[1:]), solver=rule, grid=grid, start=start, dtype=F64
    ).x


def third_order() -> None:
    """RMS error of the end point against a fine run, for the step with and without the factor 2."""
    process = GaussianProcess(make_schedule("vp"))
    denoiser, x = mixture(process), KeyedNoise(0, range(64)).normal("init", 0, (2,), F64)
    fine = ends(denoiser, "dpm-solver-3", {}, even_grid(process, 1000, 0.01), x)
    print("\n| solver | " + " | ".join(f"N = {n}" for n in COUNTS) + " |\n|---|" + "---|" * len(COUNTS))
    rows = {
        "`dpm++2m`": ("dpm++2m", {}),
        "`dpm++3m`, published": ("dpm++3m", {"published": True}),
        "`dpm++3m`": ("dpm++3m", {}),
    }
    for name, (solver, options) in rows.items():
        gaps = [ends(denoiser, solver, options, even_grid(process, n, 0.01), x) - fine for n in COUNTS]
        print(f"| {name} | " + " | ".join(f"{float(gap.square().sum(1).mean().sqrt()):.1e}" for gap in gaps) + " |")


def stochastic() -> None:
    """Error of the variance of samples of N(0.7, 0.25), exactly: one probe per unit of randomness."""
    process = GaussianProcess(make_schedule("vp"))
    denoiser = GaussianDenoiser(torch.tensor([0.7], dtype=F64), torch.tensor([[0.25]], dtype=F64), process)
    print("\n| solver | " + " | ".join(f"N = {n}" for n in COUNTS) + " |\n|---|" + "---|" * len(COUNTS))
    for published, name in (("diffusers", "as in diffusers"), (True, "as in k-diffusion"), (False, "corrected")):
        errors = []
        for n in COUNTS:
            grid = even_grid(process, n, 0.005)
            (alpha, low), (sigma, noise) = ([float(c[0]), float(c[-1])] for c in process.schedule.levels(grid))
            starts = torch.full((n + 2, 1), 0.7 * alpha, dtype=F64)
            starts[1] += (0.25 * alpha**2 + sigma**2) ** 0.5
            units = {("step", k): torch.zeros(n + 2, 1, dtype=F64) for k in range(n)}
            for k in range(n):
                units["step", k][k + 2] = 1.0
            options = {"published": published, "lower_final": False}
            x = ends(denoiser, "sde-dpm++3m", options, grid, starts, InjectedNoise(units))
            errors.append(abs(float((x[1:] - x[0]).square().sum()) - 0.25 * low**2 - noise**2))
        print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")


def leading() -> None:
    """First entry of 10, 20 and 50 steps of 1000, and the mean of DDIM's samples of N(1, 0.25)."""
    print("\n| steps | spacing | first entry | alpha there | mean of samples, 1 is right |\n|---|---|---|---|---|")
    for steps in (10, 20, 50):
        for spacing in ("leading", "trailing"):
            config = {"_class_name": "DDIMScheduler", "timestep_spacing": spacing, "clip_sample": False}
            setup = from_diffusers(
                {**config, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
            )
            denoiser = GaussianDenoiser(torch.ones(1, dtype=F64), torch.tensor([[0.25]], dtype=F64), setup.process)
            grid = setup.grid(steps)
            mean = float(ends(denoiser, "ddim", {}, grid, torch.zeros(1, 1, dtype=F64)))  # the map is affine
            alpha = float(setup.process.schedule.alpha(grid[:1]))
            print(f"| {steps} | {spacing} | {setup.timesteps(steps)[0]:.0f} | {alpha:.3f} | {mean:.3f} |")


if __name__ == "__main__":
    third_order()
    stochastic()
    leading()

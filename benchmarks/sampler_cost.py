"""What the sampling loop itself costs: a null network on 256 points in the plane, 50 steps, set-up included.

Each of our solvers runs beside the scheduler of diffusers that takes the same steps, in one process on one core, in
turns that `torch.utils.benchmark` times; reported is the ratio of the medians of turns. With `--runs 1` turns are
single runs: each then finds the processor's caches full of the other, which costs the shorter one more. "posterior"
asks a denoiser that returns a constant posterior, so that it is the loop alone; "network" asks a `NetworkDenoiser`
around a null backbone, conversions included.

    python benchmarks/sampler_cost.py [--runs 1] [--out results.json]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.tables import ddpm_schedule
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver

POINTS, STEPS, TURNS = (256, 2), 50, 9
ASKED = {"ddim": 1 / 5, "dpm++2m": 1 / 8, "dpm++3m": 1 / 8, "unipc-3": 1 / 15}
STOCHASTIC = 2.0  # times the deterministic solver, its draws not counted


class NullDenoiser(Denoiser):
    """Answers every question with the same posterior."""

    def __init__(self, process: GaussianProcess) -> None:
        super().__init__()
        self.process = process
        self.answer = Posterior(torch.zeros(POINTS))

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
        """Return zero."""
        return self.answer


class NullNetwork(nn.Module):
    """Predicts no noise, at no cost."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.zeros(POINTS)

    def forward(self, x: Tensor, level: Tensor, cond: Any) -> Tensor:
        """Return zero."""
        return self.answer


def ours(denoiser: Denoiser, solver: str) -> None:
    """One run of our loop, with a fresh process so that nothing is cached."""
    denoiser.process = GaussianProcess(denoiser.process.schedule)
    grid = make_grid(denoiser.process.schedule, STEPS, "leading")
    sample(denoiser, noise=KeyedNoise(0, range(POINTS[0])), shape=POINTS[1:], solver=make_solver(solver), grid=grid)


def draws() -> None:
    """The noise that a stochastic solver draws for one run."""
    noise = KeyedNoise(0, range(POINTS[0]))
    for step in range(STEPS):
        noise.normal("step", step, POINTS[1:])


def theirs(scheduler: Any) -> None:
    """The documented loop of diffusers."""
    with torch.no_grad():
        scheduler.set_timesteps(STEPS)
        x = torch.randn(POINTS) * scheduler.init_noise_sigma
        eps = torch.zeros(POINTS)
        for t in scheduler.timesteps:
            x = scheduler.step(eps, t, x).prev_sample


def medians(tasks: dict[str, Callable[[], None]], turns: int, runs: int) -> dict[str, float]:
    """Return the median seconds of a run of each task, in turns of `runs` runs, or of a fifth of a second for 0."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(turns):
        for name, task in tasks.items():
            times[name].append(_timed(task, runs) if runs else _timer(task).blocked_autorange(min_run_time=0.2).median)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _timer(task: Callable[[], None]) -> Timer:
    return Timer("task()", globals={"task": task})


def _timed(task: Callable[[], None], runs: int) -> float:
    """Return the mean seconds of a run, the first one too, which torch's timer leaves out."""
    begun = time.perf_counter()
    for _ in range(runs):
        task()
    return (time.perf_counter() - begun) / runs


def main() -> None:
    """Measure and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--runs", type=int, default=0, help="runs of a turn; 0: those of a fifth of a second")
    asked = parser.parse_args()
    runs = 1 if asked.quick else asked.runs
    turns = 5 if asked.quick else TURNS if runs == 0 else 20 * TURNS
    torch.set_num_threads(1)
    process = GaussianProcess(ddpm_schedule())
    constant = NullDenoiser(process)
    network = NetworkDenoiser(NullNetwork(), process, "noise")
    peers = {
        "ddim": DDIMScheduler(),
        "dpm++2m": DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2),
        "dpm++3m": DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=3),
        "unipc-3": UniPCMultistepScheduler(solver_order=3),
        "sde-dpm++2m": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2),
    }
    rows: list[Measure] = []
    for solver, scheduler in peers.items():
        found = medians(
            {
                "diffusers": lambda scheduler=scheduler: theirs(scheduler),
                "posterior": lambda solver=solver: ours(constant, solver),
                "network": lambda solver=solver: ours(network, solver),
            },
            turns,
            runs,
        )
        against = f"of {type(scheduler).__name__} of diffusers"
        loop, whole = (found[name] / found["diffusers"] for name in ("posterior", "network"))
        rows.append(Measure(f"{solver}: the loop", loop, asked=ASKED.get(solver), note=against))
        rows.append(Measure(f"{solver}: with conversions", whole, note=against))
        rows += [Measure(f"{solver}: {name}", 1e3 * seconds, "ms") for name, seconds in found.items()]
    found = medians(
        {"dpm++2m": lambda: ours(constant, "dpm++2m"), "sde": lambda: ours(constant, "sde-dpm++2m"), "draws": draws},
        turns,
        runs,
    )
    ratio = (found["sde"] - found["draws"]) / found["dpm++2m"]
    rows.append(Measure("sde-dpm++2m without its draws, of dpm++2m", ratio, asked=STOCHASTIC))
    rows.append(Measure("the draws", 1e3 * found["draws"], "ms"))
    said = "The sampling loop on 256 points with a network that costs nothing, 50 steps, against diffusers' schedulers."
    publish(
        Results("Cost of the sampling loop", said, tuple(rows), machine_settings(turns=turns, runs=runs)), asked.out
    )


if __name__ == "__main__":
    main()

"""The tables of the monograph's claims at small scale: a plane with three Gaussians, where everything is known exactly.

Errors are root mean squares over 64 trajectories against a fine run from the same noise, in float64; variances and
likelihoods are compared with their exact values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from undiffuse.analysis.likelihood import log_likelihood
from undiffuse.analysis.probability_flow import LogProb
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.events import Listener, silent
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts, short
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.process.schedules import Schedule
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.report.plots import Curve, error_by_evaluations
from undiffuse.sampling.loop import SampleResult, sample
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver

_TRAJECTORIES, _REFERENCE_STEPS = 64, 3000
_STEPS = (16, 32, 64, 128, 256)
_LATEST = 0.01  # time at which the trajectories of the order table end

_SOLVERS: dict[str, tuple[Solver, float]] = {
    "DDIM": (make_solver("ddim"), 1),
    "Euler in t": (make_solver("euler"), 1),
    "Heun in t": (make_solver("heun"), 2),
    "EDM Heun": (make_solver("edm-heun"), 2),
    "DPM-Solver-2": (make_solver("dpm-solver-2"), 2),
    "DPM-Solver++ 2S": (make_solver("dpm++2s"), 2),
    "DPM-Solver-3": (make_solver("dpm-solver-3"), 3),
    "DPM-Solver++ 2M": (make_solver("dpm++2m"), 2),
    "DPM-Solver++ 3M as published": (make_solver("dpm++3m", published=True), 2),
    "DPM-Solver++ 3M": (make_solver("dpm++3m"), 3),
    "DEIS-2": (make_solver("deis-2"), 2),
    "DEIS-3": (make_solver("deis-3"), 3),
    "UniPC-1": (make_solver("unipc", order=1), 2),
    "UniPC-2": (make_solver("unipc"), 3),
    "UniPC-3": (make_solver("unipc-3"), 4),
}
"""Label -> solver and its order on a grid even in half log-SNR."""
_SLOW = ("UniPC-3",)  # its order shows at more steps than 256, so nothing is asked of it


def reproduce(*, quick: bool = False, seed: int = 0, listener: Listener = silent, keep: Keep = drop) -> Study:
    """Compute all tables; `quick` takes fewer steps and trajectories and trains nothing: to try it."""
    parts = [
        ("orders of convergence", partial(orders, quick, seed)),
        ("grids", partial(grids, quick, seed)),
        ("stochastic solvers", partial(variances, quick)),
        ("likelihoods", partial(likelihoods, quick, seed)),
        ("parallel in time", partial(picard, quick, seed)),
    ]
    if not quick:
        from undiffuse.papers.few_steps import flow_maps
        from undiffuse.papers.own_model import digits

        parts += [("flow maps", partial(flow_maps, seed)), ("a trained model", partial(digits, seed))]
    return run_parts("principles", parts, machine_settings(seed=seed, quick=quick), listener, keep)


def mixture(process: GaussianProcess) -> MixtureDenoiser:
    """Return the exact denoiser of the three Gaussians."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
    return MixtureDenoiser(weights, means, torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64), process)


# -- parts --------------------------------------------------------------------------------------------


def orders(quick: bool, seed: int) -> Part:
    """Errors of every deterministic solver by number of steps, and the order they show."""
    process = GaussianProcess(make_schedule("vp"))
    denoiser, counts = mixture(process), _STEPS[:3] if quick else _STEPS
    start = _noise(seed, 16 if quick else _TRAJECTORIES)
    fine = _even(process.schedule, 300 if quick else _REFERENCE_STEPS, _LATEST)
    reference = _run(denoiser, make_solver("dpm-solver-3"), fine, start).x
    rows, measures = [], []
    curves: list[Curve] = []
    for label, (solver, order) in _SOLVERS.items():
        runs = [_run(denoiser, solver, _even(process.schedule, n, _LATEST), start) for n in counts]
        errors = [_error(run.x, reference) for run in runs]
        found = _slope(errors[-2:] if quick else errors[1:], counts[-1] / counts[-2 if quick else 1])
        rows.append((label, *map(short, errors), f"{found:.2f}", f"{order:g}"))
        curves.append(Curve(label, [run.nfe for run in runs], errors, dashed=len(curves) >= 8))  # colours repeat
        asked = None if quick or label in _SLOW else 0.25
        measures.append(Measure(f"{label}: order off by", abs(found - order), unit="orders", asked=asked))
    return Part(
        title="Orders of convergence",
        text=f"Root mean square error at t = {_LATEST} of {len(start)} trajectories on the schedule vp, on grids even "
        "in half log-SNR. The third-order multistep rule as published lacks a factor of 2 and is of second order. The "
        "table counts steps; the picture counts evaluations, of which some solvers make two or three per step.",
        columns=("solver", *(f"N = {n}" for n in counts), "order", "expected"),
        rows=rows,
        numeric=range(1, len(counts) + 3),
        measures=measures,
        figure=error_by_evaluations(curves),
        caption="Error by network evaluations. The slope is the order.",
    )


def grids(quick: bool, seed: int) -> Part:
    """The same solvers on other grids: spacing is worth more than order."""
    process = GaussianProcess(make_schedule("ddpm"))
    denoiser, start = mixture(process), _noise(seed, 16 if quick else _TRAJECTORIES)
    named = {
        "order 1": make_solver("ddim"),
        "2M": make_solver("dpm++2m", lower_final=False),
        "3M published": make_solver("dpm++3m", published=True, lower_final=False),
        "3M": make_solver("dpm++3m", lower_final=False),
        "3M published, lowered": make_solver("dpm++3m", published=True, lower_final=True),
        "3M, lowered": make_solver("dpm++3m", lower_final=True),
        "UniPC-2": make_solver("unipc", lower_final=True),
        "UniPC-3": make_solver("unipc-3", lower_final=True),
    }
    rows: list[tuple[str, ...]] = []
    best: dict[str, float] = {}
    for shape, end in (("logsnr", "zero"), ("karras", "zero"), ("trailing", "zero"), ("linspace", "t_min")):
        fine = make_grid(process.schedule, 300 if quick else _REFERENCE_STEPS, "logsnr", end)  # type: ignore[arg-type]
        reference = _run(denoiser, make_solver("dpm++2m"), fine, start).x
        for n in (20, 50):
            grid = make_grid(process.schedule, n, shape, end)  # type: ignore[arg-type]
            errors = [_error(_run(denoiser, solver, grid, start).x, reference) for solver in named.values()]
            rows.append((f"{shape} to {'0' if end == 'zero' else 't_min'}", str(n), *map(short, errors)))
            if n == 20:
                best[shape] = min(errors)
    gain = best["trailing"] / best["logsnr"]
    return Part(
        title="The grid is worth more than the order",
        text="The same mixture on the table of 1000 noise levels that DDPM uses, from pure noise. Lowered: the last "
        "two steps have order 2 and 1. A grid even in half log-SNR with 20 steps beats every solver on the spacing "
        "'trailing' with as many; a third-order rule pays on even grids alone.",
        columns=("grid", "N", *named),
        rows=rows,
        numeric=range(1, len(named) + 2),
        measures=[Measure("best of trailing / best of logsnr, 20 steps", gain, asked=5.0, better="higher")],
    )


def variances(quick: bool) -> Part:
    """Exact errors of the variance that stochastic solvers sample, for a Gaussian."""
    counts = _STEPS[:3] if quick else _STEPS
    named: dict[str, tuple[Solver, float]] = {
        "DDIM, eta = 1": (make_solver("ddim", eta=1.0), 1),
        "Euler-Maruyama": (make_solver("euler-maruyama"), 1),
        "SDE-DPM-Solver++ 2M, midpoint": (make_solver("sde-dpm++2m"), 2),
        "SDE-DPM-Solver++ 2M, heun": (make_solver("sde-dpm++2m", variant="heun"), 2),
        "SDE-DPM-Solver++ 3M as published": (make_solver("sde-dpm++3m", published=True), 2),
        "SDE-DPM-Solver++ 3M": (make_solver("sde-dpm++3m"), 2),
        "SDE-DPM-Solver++ 3M of diffusers": (make_solver("sde-dpm++3m", published="diffusers"), 1),
        "EDM Heun, churn 10": (make_solver("edm-heun", churn=10.0), 2),
    }
    rows, measures = [], []
    for label, (solver, order) in named.items():
        errors = [variance_error(solver, n) for n in counts]
        found = _slope(errors[-2:], counts[-1] / counts[-2])
        rows.append((label, *map(short, errors), f"{found:.2f}", f"{order:g}"))
        asked = None if quick else 0.25
        measures.append(Measure(f"{label}: order off by", abs(found - order), unit="orders", asked=asked))
    return Part(
        title="Stochastic solvers",
        text="Error of the variance of samples of N(0.7, 0.5^2) on the schedule vp from t = 1 to 0.005, "
        "computed exactly: a sampler of a Gaussian is an affine function of its noises, so its coefficients are found "
        "by feeding it unit vectors. Nothing is drawn.",
        columns=("solver", *(f"N = {n}" for n in counts), "order", "expected"),
        rows=rows,
        numeric=range(1, len(counts) + 3),
        measures=measures,
    )


def variance_error(solver: Solver, steps: int, mean: float = 0.7, std: float = 0.5, latest: float = 0.005) -> float:
    """Return the error of the variance that a solver samples of N(mean, std^2), exactly.

    The state after the last step is a + sum_k b_k z_k. Row k of one batch gets the noise z_k = 1 and no other, and row
    0 none at all, so the rows differ from row 0 by the b_k.
    """
    process = GaussianProcess(make_schedule("vp"))
    mean_, cov = torch.tensor([mean], dtype=torch.float64), torch.tensor([[std**2]], dtype=torch.float64)
    denoiser = GaussianDenoiser(mean_, cov, process)
    count = steps + 2
    units = torch.eye(count, dtype=torch.float64)[:, :, None]
    noise = InjectedNoise({("step", k): units[:, k + 2] for k in range(steps)})
    first = torch.ones((), dtype=torch.float64)
    spread = (process.schedule.alpha(first) ** 2 * std**2 + process.schedule.sigma(first) ** 2).sqrt()
    start = process.schedule.alpha(first) * mean + spread * units[:, 1]
    x = _run(denoiser, solver, _even(process.schedule, steps, latest), start, noise=noise).x[:, 0]
    found = float((x[1:] - x[0]).square().sum())
    end = torch.tensor(latest, dtype=torch.float64)
    exact = float(process.schedule.alpha(end) ** 2 * std**2 + process.schedule.sigma(end) ** 2)
    return abs(found - exact)


def likelihoods(quick: bool, seed: int) -> Part:
    """Errors of log p by the probability-flow ODE, against the exact density."""
    process = GaussianProcess(make_schedule("vp"))
    denoiser, latest, n = mixture(process), 1e-3, 16 if quick else _TRAJECTORIES
    noise = KeyedNoise(seed, range(n))
    clean = denoiser.sample_data(noise.normal("data", 0, (2,), torch.float64), noise.uniform("data", 1, ()))
    x = process.corrupt(clean, latest, noise.normal("data", 2, (2,), torch.float64))
    exact = denoiser.log_prob(x, latest)
    counts = _STEPS[:3] if quick else _STEPS

    def worst(prior: LogProb | None, steps: int) -> float:
        found = log_likelihood(
            denoiser,
            x,
            seed=seed,
            prior=prior,
            method="ode",
            divergence="exact",
            integrator="heun",
            steps=steps,
            t_min=latest,
        )
        return float((found.log_p - exact).abs().max())

    own, plain = ([worst(prior, steps) for steps in counts] for prior in (denoiser.log_prob, None))
    order = _slope(own[-2:], counts[-1] / counts[-2])
    return Part(
        title="Likelihoods",
        text=f"Largest error of log p in nats over {n} points, by the probability-flow ODE with Heun's rule on a grid "
        "even in the root of t, with the exact divergence. With the exact density at t = 1 only the integrator errs; "
        "with a standard normal there, what is left does not depend on the number of steps.",
        columns=("density at t = 1", *(f"N = {n}" for n in counts)),
        rows=[("exact", *map(short, own)), ("standard normal", *map(short, plain))],
        numeric=range(1, len(counts) + 1),
        measures=[
            Measure("order off by", abs(order - 2), unit="orders", asked=None if quick else 0.25),
            Measure(f"error at N = {counts[-1]}", own[-1], unit="nats", asked=None if quick else 1e-3),
        ],
    )


def picard(quick: bool, seed: int) -> Part:
    """Batched calls and errors of sampling in parallel over time."""
    process = GaussianProcess(make_schedule("vp"))
    denoiser, start = mixture(process), _noise(seed, 16 if quick else _TRAJECTORIES)
    steps, solver = 64, make_solver("ddim")
    grid = _even(process.schedule, steps, _LATEST)
    sequential = _run(denoiser, solver, grid, start).x
    fine = _even(process.schedule, 300 if quick else _REFERENCE_STEPS, _LATEST)
    own = _error(sequential, _run(denoiser, make_solver("dpm-solver-3"), fine, start).x)
    rows, worst = [], 0.0
    for tol in (0.1, 0.01):
        for window in (64, 16, 8):
            found = _run(denoiser, solver, grid, start, parallel=window, parallel_tol=tol)
            error = _error(found.x, sequential)
            worst = max(worst, error / own)
            rows.append((str(window), f"{tol:g}", str(found.calls), str(found.nfe), short(error)))
    exact = _run(denoiser, solver, grid, start, parallel=steps, parallel_tol=0.0)
    return Part(
        title="Parallel in time",
        text=f"DDIM with {steps} steps by Picard iteration on a window of steps. Its own error is {short(own)}; what "
        "the iteration adds is below that. Fewer batched calls do more evaluations: it pays where a batch of the "
        "window costs less than the calls it saves, which is on an accelerator.",
        columns=("window", "tolerance", "batched calls", "evaluations per sample", "difference to the sequential run"),
        rows=rows,
        numeric=range(5),
        measures=[
            Measure("largest difference / DDIM's own error", worst, asked=0.25),
            Measure("difference at tolerance 0", _error(exact.x, sequential), unit="", asked=1e-10),
        ],
    )


# -- helpers ------------------------------------------------------------------------------------------


def _noise(seed: int, count: int) -> Tensor:
    return KeyedNoise(seed, range(count)).normal("init", 0, (2,), torch.float64)


def _even(schedule: Schedule, steps: int, latest: float) -> Tensor:
    """Return a grid even in half log-SNR from t = 1 to `latest`."""
    ends = schedule.half_logsnr(torch.tensor([1.0, latest], dtype=torch.float64)).tolist()
    times = schedule.time(torch.linspace(ends[0], ends[1], steps + 1, dtype=torch.float64))
    times[0], times[-1] = 1.0, latest
    return times


def _run(denoiser: Denoiser, solver: Solver, grid: Tensor, start: Tensor, **options: object) -> SampleResult:
    given = {"noise": KeyedNoise(0, range(len(start))), **options}
    return sample(
        denoiser,
        shape=tuple(start.shape[1:]),
        solver=solver,
        grid=grid,
        start=start,
        dtype=torch.float64,
        **given,  # type: ignore[arg-type]
    )


def _error(x: Tensor, reference: Tensor) -> float:
    """Return the root of the mean squared distance of points."""
    return float((x - reference).square().sum(-1).mean().sqrt())


def _slope(errors: Sequence[float], factor: float) -> float:
    """Return the order that the first and the last error show, `factor` apart in the number of steps."""
    return math.log(errors[0] / errors[-1]) / math.log(factor)

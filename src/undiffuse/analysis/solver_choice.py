"""`choose_solver`: which solver and grid come nearest to a fine run of a model, at given numbers of evaluations.

Deterministic solvers all follow one curve from each noise, the probability-flow ODE, so they are compared where it
ends: by the distance to a run of many steps from the same noise. Solvers with random steps have no such end point; they
are compared by the energy distance of a set of samples to samples of the fine run from other noise, on the grid of the
best deterministic one, of which it is measured too. Both are in model units and judge the solver, not the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from undiffuse.analysis.grid_tuning import LimitedGrid, tune_grid
from undiffuse.analysis.solver_bench import Bench, Progress
from undiffuse.analysis.solver_results import SolverChoice, Trial
from undiffuse.events import Listener, silent
from undiffuse.models.conditions import class_turns
from undiffuse.models.model import Model
from undiffuse.models.tuned import without_tuning
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.tables import TableSchedule
from undiffuse.sampling.catalogue import CATALOGUE
from undiffuse.sampling.registry import SOLVERS
from undiffuse.words import did_you_mean

BUDGETS = (5, 10, 20)
GRIDS = ("logsnr", "t", "karras")
TABLE_GRIDS = ("trailing",)
_TUNED_BY = "dpm++2m"  # the solver that the first search for a grid is made with
_TRIALS, _REFINING = 18, 12  # of the search for a grid, and of its refinement with the best solver
_TOLERANCES = (1.0, 0.3, 0.1)  # of adaptive solvers, around the published 0.05 for tens of evaluations


def choose_solver(
    model: Model,
    *,
    name: str = "MODEL",
    budgets: Sequence[int] = BUDGETS,
    solvers: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    tune: bool = True,
    n: int = 32,
    set_size: int = 256,
    reference_steps: int = 500,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
    listener: Listener = silent,
    **sampling: Any,
) -> SolverChoice:
    """Try solvers and grids at each budget and say which comes nearest to a fine run.

    A budget counts network evaluations per sample as made: guidance costs two. Each solver gets the most steps that
    fit; adaptive ones stand under the evaluations they made. Beside the named grids one is fitted to the model for each
    budget (`tune`), on other noise than the errors are measured with.

    Args:
        model: A model of continuous data.
        name: What the commands in the result call it.
        budgets: Network evaluations per sample.
        solvers: Names to try; None: all that can sample this model.
        grids: Names of grids to try; None: logsnr, t, karras, and for a table of noise levels trailing.
        tune: Fit a grid too.
        n: Samples behind each error.
        set_size: Samples behind each energy distance; 0: leave solvers with random steps out.
        reference_steps: Steps of the fine run, of dpm++2m on the grid logsnr.
        seed: Of the noise.
        cond: Conditions: one value for all; None: classes take turns.
        listener: Hears about progress.
        sampling: Further arguments of `Model.sample_result`: guidance, threshold, ...

    Raises:
        ValueError: Tokens, unknown names, or numbers that are too small.
    """
    _check(model, budgets, n, set_size, reference_steps)
    began = time.monotonic()
    names = _solvers(model, solvers)
    odes = [solver for solver in names if CATALOGUE[solver].is_ode]
    planned = [solver for solver in odes if not CATALOGUE[solver].makes_times]
    others = [solver for solver in names if solver not in odes and set_size]
    if not odes and not others:
        raise ValueError(
            f"solvers {', '.join(names)} take random steps, which only sets of samples compare; give a set size of 2 "
            "or more (256 is usual), or a solver without them such as ddim."
        )
    shapes = tuple(grids) if grids else GRIDS + TABLE_GRIDS * isinstance(_schedule(model), TableSchedule)
    for shape in shapes:  # refuses unknown ones before the reference is drawn
        make_grid(_schedule(model), min(budgets), shape)  # type: ignore[arg-type]
    each = len(planned) * (len(shapes) + tune) + (_TRIALS + _REFINING) * tune + len(others)
    model = without_tuning(model)
    progress = Progress(listener, len(budgets) * each + len(odes) - len(planned) + 2)
    bench = Bench(model, seed, n, set_size, cond, sampling, reference_steps, progress)
    progress.start()
    bench.prepare()
    trials = [trial for solver in odes if solver not in planned for trial in bench.adaptive_trials(solver, _TOLERANCES)]
    trials = [replace(trial, budget=_budget(trial.nfe, budgets)) for trial in trials]
    for budget in sorted(set(budgets)):
        tried = [bench.trial(solver, shape, budget) for solver in planned for shape in shapes]
        if tune and planned:
            tried += _tuned(bench, planned, budget)
        trials += _with_distances(bench, tried)
        best = _best(tried)
        trials += [bench.random_trial(solver, best.grid if best else shapes[0], budget) for solver in others]
    progress.finish()
    return SolverChoice(
        model=name,
        budgets=tuple(sorted(set(budgets))),
        trials=tuple(trial for trial in trials if trial.nfe or trial.failure),
        n=n,
        set_size=set_size,
        reference=f"dpm++2m with {reference_steps} steps on the grid logsnr",
        reference_error=bench.reference_error,
        distance_floor=bench.floor,
        settings={"seed": seed}
        | {key: value for key, value in sampling.items() if _is_plain(value)}
        | _told(model, cond),
        seconds=time.monotonic() - began,
    )


def _tuned(bench: Bench, solvers: list[str], budget: int) -> list[Trial]:
    """Fit a grid with one solver, try all on it, and refine it with the best."""

    def searched(solver: str, trials: int, start: LimitedGrid | None = None, step: float = 1.0) -> LimitedGrid:
        def error(shape: str) -> float:
            bench.progress.step()
            steps = bench.steps(solver, shape, budget)
            return bench.error(bench.n, solver=solver, steps=steps, grid=shape)[0] if steps else math.inf

        return tune_grid(bench.schedule, error, start=start, trials=trials, step=step)

    first = searched(_TUNED_BY if _TUNED_BY in solvers else solvers[0], _TRIALS)
    tried = [bench.trial(solver, first.name, budget) for solver in solvers]
    best = _best(tried)
    if best is None:
        return tried
    finer = searched(best.solver, _REFINING, first, 0.5)
    return tried if finer == first else [*tried, bench.trial(best.solver, finer.name, budget)]


def _with_distances(bench: Bench, tried: list[Trial]) -> list[Trial]:
    """Give the best deterministic trial and ddim on the grid logsnr their energy distance."""
    best = _best(tried)
    if not bench.set_size or best is None:
        return tried
    return [
        replace(trial, distance=bench.distance(trial))
        if trial.error is not None and (trial is best or (trial.solver, trial.grid) == ("ddim", "logsnr"))
        else trial
        for trial in tried
    ]


def _budget(nfe: int, budgets: Sequence[int]) -> int:
    """Return the smallest budget that holds so many evaluations; their number where none does."""
    return min((budget for budget in budgets if budget >= nfe), default=nfe)


def _best(tried: list[Trial]) -> Trial | None:
    return min((t for t in tried if t.error is not None), key=lambda t: t.error or 0.0, default=None)


def _check(model: Model, budgets: Sequence[int], n: int, set_size: int, reference_steps: int) -> None:
    if model.spec.is_discrete or not isinstance(model.denoiser.process, GaussianProcess):
        raise ValueError(
            "token models have no curves to compare end points of. first-hitting is exact at one evaluation per token; "
            "for fewer compare `undiffuse evaluate --steps N` at several N."
        )
    if not budgets or min(budgets) < 1 or n < 2 or set_size == 1 or set_size < 0:
        raise ValueError(
            f"budgets={list(budgets)}, n={n}, set_size={set_size}; budgets must be at least 1, n at least 2, and "
            "set_size 0 or at least 2."
        )
    if reference_steps < 5 * max(budgets):
        raise ValueError(
            f"reference_steps={reference_steps} is no fine run beside {max(budgets)} evaluations; give at least "
            f"{5 * max(budgets)}."
        )


def _solvers(model: Model, asked: Sequence[str] | None) -> list[str]:
    for name in asked or ():
        if name not in SOLVERS:
            raise ValueError(f"solver {name!r} is unknown.{did_you_mean(name, SOLVERS)} See `undiffuse solvers`.")
    fitting = [name for name, facts in CATALOGUE.items() if facts.data == "data" and facts.needs in ("", "no grid")]
    if getattr(model.denoiser, "learns_variance", False):
        fitting.append("ddpm-learned")
    unfit = [name for name in asked or () if name not in fitting]
    if unfit:
        raise ValueError(
            f"solver {unfit[0]!r} cannot be compared here: it needs {CATALOGUE[unfit[0]].needs or 'tokens'}."
        )
    return fitting if asked is None else list(dict.fromkeys(asked))


def _told(model: Model, cond: dict[str, Any] | None) -> dict[str, Any]:
    """Return the conditions as a setting: none where classes take turns, and "none" for labels that are not given."""
    if cond is None:
        return {}
    return {"cond": {name: value if _is_plain(value) else "..." for name, value in cond.items()} or _no_labels(model)}


def _no_labels(model: Model) -> dict[str, str]:
    return dict.fromkeys(class_turns(model.spec, 1), "none")


def _schedule(model: Model) -> Any:
    return model.denoiser.process.schedule  # type: ignore[union-attr]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple, list, dict))

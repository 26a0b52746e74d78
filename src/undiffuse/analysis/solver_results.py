"""What `choose_solver` returns: every trial, and for each budget the best of them, in words and as a command."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from undiffuse.words import plain_json

KEPT_SETTINGS = ("guidance", "guidance_interval", "guidance_rescale", "threshold")
"""What trials may share and a model keeps among its defaults."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One solver on one grid with the most steps that a budget allows.

    Args:
        solver, grid, steps: What was run; no grid and 0 steps where the solver makes its own times.
        budget: Network evaluations that were allowed; of adaptive solvers the smallest that holds those made.
        nfe: Evaluations that were made.
        error: Root mean square, per element and in model units, of the difference to the reference from the same noise;
            None for solvers with random steps.
        uncertainty: Standard error of `error`.
        distance: Energy distance to samples of the reference from other noise, in model units; None where not measured.
        failure: Why there is no figure; empty where there is one.
        options: Options of the solver.
    """

    solver: str
    grid: str
    steps: int
    budget: int
    nfe: int = 0
    error: float | None = None
    uncertainty: float | None = None
    distance: float | None = None
    failure: str = ""
    options: tuple[tuple[str, float], ...] = ()

    @property
    def command(self) -> str:
        """The options of `undiffuse sample` that run it."""
        own = "".join(f" --solver-option {name}={value:g}" for name, value in self.options)
        return f"--solver {self.solver}" + (f" --steps {self.steps} --grid={self.grid}" if self.steps else own)

    @property
    def defaults(self) -> dict[str, Any]:
        """What a model keeps to sample so; nothing for adaptive solvers, whose options no model keeps."""
        return {"solver": self.solver, "steps": self.steps, "grid": self.grid} if self.steps else {}


@dataclass(frozen=True, kw_only=True)
class SolverChoice:
    """Which sampler suits a model at each budget.

    Args:
        model: Its name.
        budgets: Network evaluations per sample.
        trials: Everything that was tried.
        n: Samples behind each error.
        set_size: Samples behind each energy distance.
        reference: How the reference was made.
        reference_error: RMS difference between the reference and one with half its steps: what errors mean less below.
        distance_floor: Energy distance between two sets of reference samples: as good as it gets.
        settings: What all trials share: "seed", "guidance", "threshold" and the like, and "cond", conditions by name.
        seconds: How long it took.
    """

    model: str
    budgets: tuple[int, ...]
    trials: tuple[Trial, ...]
    n: int
    set_size: int
    reference: str
    reference_error: float
    distance_floor: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    columns: ClassVar[tuple[str, ...]] = (
        "evaluations",
        "solver",
        "steps",
        "grid",
        "error",
        "v ddim",
        "energy distance",
    )

    def ranked(self, budget: int) -> list[Trial]:
        """Return the trials of a budget that have an error, the best first."""
        found = [trial for trial in self.trials if trial.budget == budget and trial.error is not None]
        return sorted(found, key=lambda trial: trial.error or 0.0)

    def best(self, budget: int) -> Trial | None:
        """Return the deterministic trial with the smallest error; without any the best random one; None for nothing."""
        return next(iter(self.ranked(budget)), None) or self.best_random(budget)

    def ddim(self, budget: int, grid: str | None = "logsnr") -> Trial | None:
        """Return DDIM on a grid, by default that of models; on its own best one where `grid` is None."""
        return next((t for t in self.ranked(budget) if t.solver == "ddim" and grid in (None, t.grid)), None)

    def best_random(self, budget: int) -> Trial | None:
        """Return the trial with random steps that is nearest in distribution."""
        found = [t for t in self.trials if t.budget == budget and t.error is None and t.distance is not None]
        return min(found, key=lambda trial: trial.distance or 0.0, default=None)

    def recommendation(self, budget: int) -> str:
        """Say in words what to take at a budget."""
        best = self.best(budget)
        if best is None:
            tried = [trial for trial in self.trials if trial.budget == budget and trial.failure]
            what = "gave finite samples; try other solvers or grids" if tried else "fits; allow more"
            return f"At {budget} evaluations nothing that was tried {what}."
        many = (
            f"{best.steps} step{'s' if best.steps > 1 else ''} on the grid {best.grid}"
            if best.steps
            else "its own steps"
        )
        text = f"At {budget} evaluations take {best.solver} with {many}: "
        if best.error is None:
            return f"{text}energy distance {best.distance:.3g}; no solver without random steps was tried."
        text += ", ".join([f"error {best.error:.3g}", *filter(None, [self._against_ddim(best)])])
        if best.error < 3 * self.reference_error:
            text += "; this is near the error of the reference itself"
        return text + "."

    def _against_ddim(self, best: Trial) -> str:
        """Return how far below those of ddim an error is; nothing of ddim itself on the grid that it has there."""
        plain, own = self.ddim(best.budget), self.ddim(best.budget, None)
        if plain is None or own is None or not best.error or best is plain:
            return ""
        words = [_times_below(plain, best, "ddim on the grid logsnr")]
        if own.grid != plain.grid and best is not own:
            words.append(_times_below(own, best, f"ddim on its best grid, {own.grid}"))
        return " and ".join(words)

    def command(self, budget: int) -> str:
        """Return the command that samples as recommended, with what all trials share; empty where nothing is."""
        best = self.best(budget)
        words = [f"undiffuse sample {shlex.quote(self.model)}", "" if best is None else best.command, *self._shared()]
        return "" if best is None else " ".join(words)

    def defaults(self, budget: int) -> dict[str, Any]:
        """Return what a model keeps to sample as recommended, conditions aside; nothing where nothing can be kept."""
        best = self.best(budget)
        own = {} if best is None else best.defaults
        return own and own | {
            name: self.settings[name] for name in KEPT_SETTINGS if self.settings.get(name) is not None
        }

    def table(self, most: int = 6) -> list[tuple[str, ...]]:
        """Return rows of strings to go under `columns`: the best `most` of a budget, ddim, and the best random one."""
        rows = []
        for budget in self.budgets:
            ranked, plain = self.ranked(budget), self.ddim(budget)
            shown = ranked[:most] + [t for t in (plain, self.best_random(budget)) if t is not None]
            rows += [self._row(trial, plain) for trial in dict.fromkeys(shown)]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        best = {
            str(budget): {
                "words": self.recommendation(budget),
                "command": self.command(budget),
                "defaults": self.defaults(budget),
                **(asdict(found) if (found := self.best(budget)) else {}),
            }
            for budget in self.budgets
        }
        return plain_json(asdict(self) | {"recommended": best})

    def _shared(self) -> list[str]:
        """The words of `undiffuse sample` for what all trials share."""
        words = [
            f"--{name.replace('_', '-')} {_plain(self.settings[name])}"
            for name in KEPT_SETTINGS
            if self.settings.get(name) is not None
        ]
        asked = [("cond", self.settings.get("cond")), ("negative", self.settings.get("negative"))]
        pairs = [(option, f"{name}={_plain(value)}") for option, cond in asked for name, value in (cond or {}).items()]
        return words + [f"--{option} {shlex.quote(pair)}" for option, pair in pairs]

    def _row(self, trial: Trial, plain: Trial | None) -> tuple[str, ...]:
        against = "" if plain is None or trial is plain else _beside(trial.error, plain.error)
        error = "random steps" if trial.error is None else f"{trial.error:.4f} ± {trial.uncertainty:.4f}"
        distance = "" if trial.distance is None else f"{trial.distance:.4f}"
        steps = str(trial.steps) if trial.steps else f"rtol {dict(trial.options)['rtol']:g}"
        return str(trial.nfe), trial.solver, steps, trial.grid, error, against, distance


def _plain(value: Any) -> str:
    """Return a setting as the command reads it: 2, 0.3,3 or a red square; ... for what no word says."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_plain, value))
    if isinstance(value, (bool, int, float)):
        return f"{value:.10g}"
    return value if isinstance(value, str) else "..."


def _times_below(other: Trial, best: Trial, name: str) -> str:
    ratio = _ratio(other.error, best.error)
    return f"like {name}" if ratio == "1.0" else f"{ratio} times below {name}"


def _beside(error: float | None, plain: float | None) -> str:
    """Return how an error compares with that of ddim: 2.9 x lower, 1.4 x higher, or the same."""
    if error is None or plain is None:
        return ""
    ratio, word = (_ratio(plain, error), "lower") if error < plain else (_ratio(error, plain), "higher")
    return "the same" if ratio == "1.0" else f"{ratio} x {word}"


def _ratio(first: float | None, second: float | None) -> str:
    ratio = math.nan if not first or not second else first / second
    return f"{ratio:.1f}"

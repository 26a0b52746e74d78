"""What the reproductions of restoration papers share: digits with their exact prior, trials on them, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from undiffuse.models.model import Model
from undiffuse.operators.parse import parse_operator
from undiffuse.tasks.restore.bench import Trial, exact_row, measure, method_row
from undiffuse.tasks.restore.bench_results import BenchRow
from undiffuse.tasks.restore.bench_words import operator_text
from undiffuse.tasks.restore.exact import digits_prior

_COLUMNS = (
    "method",
    "steps",
    "PSNR, one",
    "PSNR, mean",
    "spread / exact",
    "energy distance",
    "residual / noise",
    "calls",
    "differentiated",
    "s / image",
)


@dataclass(frozen=True)
class Bench:
    """The exact prior of the digits, held-out digits, and how many samples of each are drawn.

    Args:
        model: The prior.
        clean: True items (B, 1, 8, 8), model units.
        samples: K.
        seed: Of everything random.
    """

    model: Model
    clean: Tensor
    samples: int
    seed: int

    def trial(self, word: str, noise_std: float) -> Trial:
        """Return measurements by an operator, with the exact posterior; a mask of its own for each item."""
        items = range(len(self.clean))
        operator = parse_operator(operator_text(word), self.model.spec, seed=self.seed, items=items)
        return measure(word, operator, self.clean, noise_std, self.seed, self.model)

    def exact(self, trial: Trial) -> BenchRow:
        """Return the row of the exact posterior."""
        return exact_row(trial, self.samples, self.seed)

    def row(self, trial: Trial, label: str, method: str, steps: int, **options: Any) -> BenchRow:
        """Return the row of a method, called `label`.

        Raises:
            ValueError: The method failed; a reproduction has no rows without figures.
        """
        run: Mapping[str, Any] = {"steps": steps, "samples": self.samples, "seed": self.seed, "options": options}
        row = method_row(self.model, trial, method, {**run, "batch_size": len(self.clean) * self.samples})
        if row.failure:
            raise ValueError(f"{label} on {trial.name}: {row.failure}")
        return replace(row, method=label)


def digits_bench(quick: bool, seed: int, images: int = 24) -> Bench:
    """Return the bench of both reproductions: so many digits and 8 samples of each; `quick`: 4 and 3."""
    prior, held_out = digits_prior()
    assert prior.spec is not None
    return Bench(Model(prior, prior.spec), held_out[: 4 if quick else images], 3 if quick else 8, seed)


def table(rows: Sequence[BenchRow]) -> tuple[Sequence[str], Sequence[Sequence[str]], range]:
    """Return columns, cells and numeric columns of rows."""
    cells = [
        (
            row.method,
            str(row.steps or ""),
            number(row.psnr),
            number(row.psnr_mean),
            number(row.exact_spread),
            number(row.energy, 3),
            number(row.residual_ratio),
            str(row.nfe or ""),
            str(row.nfe_grad or ""),
            number(row.seconds, 3),
        )
        for row in rows
    ]
    return _COLUMNS, cells, range(1, len(_COLUMNS))


def number(value: float | None, digits: int = 2) -> str:
    """Return a figure, or nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"

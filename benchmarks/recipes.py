"""What recipes learn in a short training, on data that everyone has: a figure beside its target, and the curve.

    python benchmarks/recipes.py [--names table signals ...] [--share 1.0] [--cifar10 train.zip] [--out recipes.json]

Each is trained by its recipe but for the number of steps, judged as `undiffuse evaluate` does, and its loss recorded.
The rows of the table come from a law that is known, so their target is its entropy and 3 % more. `cifar10` is asked
for by name and by its file; it has the size of the built-in model, for its own is meant for an accelerator.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.metrics import evaluate
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.training import train
from undiffuse.training.log import read_log

SEASON = np.array([0.3, 0.2, 0.3, 0.2])
WEATHER = np.array([[0.2, 0.3, 0.5], [0.3, 0.4, 0.3], [0.7, 0.2, 0.1], [0.2, 0.6, 0.2]])  # given the season
CLOTHES = np.array([[0.1, 0.3, 0.6], [0.1, 0.7, 0.2], [0.8, 0.1, 0.1]])  # given the weather
UMBRELLA = np.array([[0.95, 0.05], [0.1, 0.9], [0.6, 0.4]])  # given the weather
ROWS = 6000
FRECHET = "Frechet distance / floor"


@dataclass(frozen=True)
class Case:
    """A recipe on a data set.

    Args:
        source: Data, or what writes them into a folder.
        steps: Optimizer steps.
        metric: What is evaluated.
        figure: The row of it that counts.
        asked: What it should reach.
        unit: Of the figure.
        n: Samples that are judged.
        codec_steps: Those of a codec that is trained first; with fewer steps in proportion.
        changes: To the recipe.
    """

    source: str | Callable[[Path], str]
    steps: int
    metric: str
    figure: str
    asked: float
    unit: str = "ratio"
    n: int = 1000
    codec_steps: int = 0
    changes: tuple[str, ...] = ()


def write_table(folder: Path) -> str:
    """Write rows of four columns, each drawn given one before it, and return the file."""
    rng = np.random.Generator(np.random.PCG64(0))
    columns = [rng.choice(4, ROWS, p=SEASON)]
    for law, parent in ((WEATHER, 0), (CLOTHES, 1), (UMBRELLA, 1)):
        columns.append((rng.random(ROWS)[:, None] > law[columns[parent]].cumsum(1)).sum(1).clip(max=law.shape[1] - 1))
    names = ("season", "weather", "clothes", "umbrella")
    rows = [",".join(f"value{number}" for number in row) for row in zip(*columns, strict=True)]
    path = folder / "days.csv"
    path.write_text("\n".join([",".join(names), *rows]) + "\n", encoding="utf-8")
    return str(path)


def entropy() -> float:
    """Return the entropy of a row, in bits per cell."""
    weather = SEASON @ WEATHER
    parts = (SEASON @ _bits(WEATHER), weather @ _bits(CLOTHES), weather @ _bits(UMBRELLA))
    return float((_bits(SEASON[None])[0] + sum(parts)) / 4)


def _bits(rows: np.ndarray) -> np.ndarray:
    return -(rows * np.log2(rows)).sum(1)


CASES = {
    "table": Case(write_table, 600, "bits", "held-out rows", round(1.03 * entropy(), 3), "bits per cell"),
    "signals": Case("waves", 800, "frechet", FRECHET, 2.0),
    "latent": Case("digits", 1500, "frechet", FRECHET, 3.0, codec_steps=1000, changes=("codec.halvings=1",)),
    "video-digits": Case("video-digits", 600, "frechet", FRECHET, 4.0, n=400),
}
_SMALL = ("model.channels=32", "model.multipliers=1,2,4", "model.blocks=1", "train.precision=float32")
CIFAR10 = Case("", 600, "frechet", FRECHET, 60.0, changes=(*_SMALL, "train.batch_size=32", "data.augment=0"))


def measure(name: str, case: Case, steps: int, n: int) -> dict[str, Any]:
    """Train, judge, and return the figure, what it took, and the curve."""
    with tempfile.TemporaryDirectory() as place:
        source = case.source if isinstance(case.source, str) else case.source(Path(place))
        codec = (f"codec.steps={max(8, case.codec_steps * steps // case.steps)}",) if case.codec_steps else ()
        start = time.process_time()
        run = train(
            source,
            name,
            out=Path(place) / "run",
            steps=steps,
            warmup=min(100, steps // 10),
            log_every=max(1, steps // 40),
            checkpoint_every=10**6,
            preview_every=0,
            overrides=(*case.changes, *codec),
        )
        taken = time.process_time() - start
        lines = [line for line in read_log(run.folder / "log.jsonl") if "loss" in line]
        row = evaluate(run.model, source, n=n, metrics=[case.metric])[case.figure]
        return {
            "data": Path(source).name,
            "steps": steps,
            "processor seconds": round(taken, 1),
            "parameters": run.model.parameters,
            "value": row.value,
            "error": row.error,
            "step": [line["step"] for line in lines],
            "loss": [round(line["loss"], 5) for line in lines],
        }


def main() -> None:
    """Measure and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--names", nargs="+", default=list(CASES), choices=[*CASES, "cifar10"])
    parser.add_argument("--cifar10", metavar="FILE", help="pictures in class folders: train.zip of CIFAR-10")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each case")
    asked = parser.parse_args()
    cases = CASES | ({"cifar10": replace(CIFAR10, source=asked.cifar10)} if asked.cifar10 else {})
    if missing := set(asked.names) - cases.keys():
        parser.error(f"{missing.pop()} needs its file: --cifar10 train.zip")
    found: dict[str, dict[str, Any]] = {}
    for name in asked.names:
        case = cases[name]
        steps, n = (8, 200) if asked.quick else (round(case.steps * asked.share), case.n)
        found[name] = measure(name, case, steps, n)
    measures = tuple(
        Measure(
            f"{name}: {cases[name].figure}",
            row["value"],
            cases[name].unit,
            asked=cases[name].asked,
            error=row["error"],
            note=f"{row['data']}, {row['steps']} steps, {row['processor seconds']:g} processor seconds",
        )
        for name, row in found.items()
    )
    said = "Recipes in short trainings on data that everyone has; the loss over the steps is among the details."
    publish(Results("Recipes", said, measures, machine_settings(), found), asked.out)


if __name__ == "__main__":
    main()

"""What the choice of the loss weight does to a small model: the vector recipe on two moons, equal steps with each.

python benchmarks/loss_weights.py [--steps 600] [--seeds 0 1 2] [--out RESULT.json]

Energy distances of samples to held-out points are given as multiples of that between two sets of real points.
"""

from __future__ import annotations

import tempfile
import time

from undiffuse.data import open_data, split
from undiffuse.metrics import evaluate
from undiffuse.report.measures import Measure, Results, machine_settings, mean_and_error, publish, script_options
from undiffuse.training import train
from undiffuse.training.weights import LOG_WEIGHTS

SOURCE, HELD_OUT = "moons", 2000


def measure(weight: str, seed: int, steps: int, held_out: int) -> float:
    """Train with a weight and return the energy distance over that of real data."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            SOURCE,
            "vector",
            out=folder,
            steps=steps,
            seed=seed,
            checkpoint_every=10**9,
            preview_every=0,
            validate_every=0,
            overrides=[
                "model.width=64",
                "objective.times=uniform",
                f"objective.weight={weight}",
                f"data.holdout={held_out}",
            ],
        )
        training, unseen = split(open_data(SOURCE), held_out)
        found = evaluate(run.model, training, held_out=unseen, n=held_out, metrics=["energy"])
    return found["energy distance / floor"].value


def table(steps: int, seeds: list[int], held_out: int) -> dict[str, list[float]]:
    """Return the distances of all seeds for each weight."""
    return {weight: [measure(weight, seed, steps, held_out) for seed in seeds] for weight in LOG_WEIGHTS}


def main() -> None:
    """Measure and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    steps, seeds, held_out = (50, asked.seeds[:1], 500) if asked.quick else (asked.steps, asked.seeds, HELD_OUT)
    start = time.process_time()
    rows = table(steps, seeds, held_out)
    measures = []
    for weight, values in rows.items():
        mean, error = mean_and_error(values)
        measures.append(Measure(weight, mean, error=error, note="energy distance / real v real"))
    taken = {"processor seconds": round(time.process_time() - start, 1)}
    settings = machine_settings(data=SOURCE, steps=steps, seeds=seeds, **taken)
    said = "The vector recipe on two moons with each loss weight; energy distance as a multiple of real v real."
    publish(Results("Loss weights", said, tuple(measures), settings, {"weights": rows}), asked.out)


if __name__ == "__main__":
    main()

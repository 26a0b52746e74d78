"""How well the vector recipe learns two plane data sets in at most a minute: energy distance v real data.

python benchmarks/quality_vector.py [--seconds 60]
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from undiffuse.data import open_data, split
from undiffuse.metrics import evaluate
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.training import train
from undiffuse.training.pace import steps_within

SOURCES = ("mixture3", "moons")
ASKED = 2.0
HELD_OUT = 4000  # no point that the model is judged by was trained on


def measure(source: str, seconds: float, held_out: int) -> dict[str, Any]:
    """Train for the time given and compare `held_out` samples with as many points that were held out."""
    steps = min(steps_within(source, "vector", 0.9 * seconds), 20_000)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = train(
            source,
            "vector",
            out=folder,
            steps=steps,
            checkpoint_every=100_000,
            preview_every=0,
            overrides=[f"data.holdout={held_out}"],
        )
        taken = time.perf_counter() - start
        training, unseen = split(open_data(source), held_out)
        found = evaluate(run.model, training, held_out=unseen, n=held_out)
    row = found["energy distance / floor"]
    return {"steps": steps, "seconds": round(taken, 1), "ratio to real v real": row.value, "error": row.error}


def main() -> None:
    """Measure and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    seconds, held_out = (min(asked.seconds, 2.0), 500) if asked.quick else (asked.seconds, HELD_OUT)
    result = {source: measure(source, seconds, held_out) for source in SOURCES}
    measures = tuple(
        Measure(
            source, found["ratio to real v real"], asked=ASKED, error=found["error"], note=f"{found['steps']} steps"
        )
        for source, found in result.items()
    )
    said = f"Energy distance after {seconds:g} seconds of the vector recipe, as a multiple of real v real."
    publish(Results("Quality on points", said, measures, machine_settings(), result), asked.out)


if __name__ == "__main__":
    main()

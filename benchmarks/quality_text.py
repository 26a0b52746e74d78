"""Bits per character of the text recipe after a given time, beside interpolated n-grams.

    python benchmarks/quality_text.py --text tinyshakespeare.txt --minutes 10

Without --text the packaged prose is used, which is far smaller.
"""

from __future__ import annotations

import tempfile
import time

from undiffuse.data import open_data, split
from undiffuse.metrics import evaluate
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.training import train
from undiffuse.training.pace import steps_within


def main() -> None:
    """Train, evaluate and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--text", default="prose")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("overrides", nargs="*", help="group.key=value")
    asked = parser.parse_args()
    minutes = min(asked.minutes, 0.1) if asked.quick else asked.minutes
    steps = steps_within(asked.text, "text", 0.97 * 60 * minutes, asked.overrides)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = train(
            asked.text,
            "text",
            out=folder,
            steps=steps,
            checkpoint_every=100_000,
            preview_every=0,
            overrides=asked.overrides,
        )
        taken = time.perf_counter() - start
        training, held_out = split(open_data(asked.text))
        found = evaluate(run.model, training, held_out=held_out, metrics=["bits"])
    measures = [Measure(row.name, row.value, row.unit or "-", error=row.error, note=row.note) for row in found.rows]
    bits = found["held-out text"].value
    for order in (2, 3):
        grams = found[f"held-out text, {order}-gram"].value
        measures.append(Measure(f"held-out text / {order}-gram", bits / grams, note="bits, of interpolated n-grams"))
    settings = machine_settings(text=asked.text, steps=steps, seconds=round(taken, 1))
    said = f"Bits per character of held-out text after {minutes:g} minutes of the text recipe, beside n-grams."
    publish(Results("Quality on text", said, tuple(measures), settings), asked.out)


if __name__ == "__main__":
    main()

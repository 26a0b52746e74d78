"""Bits per character of the text recipe after a given time, beside interpolated n-grams.

    python benchmarks/quality_text.py --text tinyshakespeare.txt --minutes 10

Without --text the packaged prose is used, which is far smaller.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import torch

from undiffuse.data import open_data, split
from undiffuse.metrics import evaluate
from undiffuse.training import train
from undiffuse.training.pace import steps_within


def main() -> None:
    """Train, evaluate and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="prose")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("overrides", nargs="*", help="group.key=value")
    asked = parser.parse_args()
    steps = steps_within(asked.text, "text", 0.97 * 60 * asked.minutes, asked.overrides)
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
    rows = {row.name: {"value": row.value, "error": row.error} for row in found.rows}
    print(
        json.dumps({"threads": torch.get_num_threads(), "steps": steps, "seconds": round(taken, 1), **rows}, indent=2)
    )


if __name__ == "__main__":
    main()

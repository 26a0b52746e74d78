"""The built-in digits model before and after distillation: quality at 1, 2 and 4 evaluations, in one table.

    python benchmarks/few_step_digits.py [--steps 2000] [--methods progressive,consistency] [--out few_step_digits.json]

Each cell holds the label agreement of a judge that was fitted on real digits and the Frechet distance over that of real
digits v real digits, as `undiffuse evaluate` measures them. The first rows are the model before, with dpm++2m and with
DDIM, also with 25 steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import undiffuse as ud

_STEPS = (1, 2, 4)
_TRAIN = {"batch_size": 64, "checkpoint_every": 100_000, "preview_every": 0, "log_every": 100}


def main() -> None:
    """Distil, evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each student")
    parser.add_argument("--methods", default="progressive,consistency,consistency-training,scm")
    parser.add_argument("-n", type=int, default=1000, help="samples per cell")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args()
    steps, n = (4, 200) if options.quick else (options.steps, options.n)
    rows: list[dict[str, Any]] = []
    for solver in ("dpm++2m", "ddim"):
        cells = {k: quality(ud.load("digits"), n, steps=k, solver=solver) for k in (*_STEPS, 25)}
        rows.append(_show({"method": f"digits, {solver}", "seconds": 0.0, "cells": cells}))
    for method in options.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            student = ud.distill("digits", method=method, data="digits", steps=steps, out=folder, **_TRAIN)
            seconds = time.perf_counter() - started
        cells = {k: quality(student, n, steps=k) for k in _STEPS}
        rows.append(_show({"method": method, "seconds": seconds, "cells": cells}))
    if options.out is not None:
        options.out.write_text(json.dumps({"steps": steps, "n": n, "rows": rows}, indent=1) + "\n")


def quality(model: ud.Model, n: int, **sampling: Any) -> tuple[float, float]:
    """Return label agreement and Frechet distance over that of real v real."""
    found = ud.evaluate(model, "digits", n=n, metrics=["agreement", "frechet"], **sampling)
    named = {row.name: row.value for row in found.rows}
    return named["label agreement"], named["Frechet distance / floor"]


def _show(row: dict[str, Any]) -> dict[str, Any]:
    cells = "   ".join(f"{k}: {agreement:.3f} {ratio:6.2f}x" for k, (agreement, ratio) in row["cells"].items())
    print(f"{row['method']:22s} {row['seconds']:5.0f} s   {cells}", flush=True)
    return row


if __name__ == "__main__":
    main()

"""Where sampling in parallel over time pays: wall-clock time against the sequential run, for the digits model.

The answer is a matter of the hardware. A sweep replaces several calls of the network by one that is a window's width
larger; it pays where that call takes less than those it replaces. So the first measure is that of the network: one
call of 64 rows against 8 calls of one row, which is what 64 steps of DDIM become at the default tolerance. Then whole
runs, sequential and in parallel, by turns: ratios of medians below 1 are gains.

    python benchmarks/parallel_in_time.py [--device cuda] [--out results.json]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import undiffuse as ud
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options

STEPS, WINDOWS, BATCHES = 64, (8, 16, 64), (1, 16)


def median(task: Callable[[], Any], repeats: int, device: str) -> float:
    """Return the median seconds of a task after two rounds of warming up."""
    times: list[float] = []
    for turn in range(repeats + 2):
        start = time.perf_counter()
        task()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def calls(model: ud.Model, repeats: int, device: str) -> float:
    """Return the time of one call of 64 rows over that of 8 calls of one row."""

    def ask(rows: int, count: int) -> None:
        x = torch.zeros(rows, *model.state_spec.shape, device=device)
        t = torch.full((rows,), 0.5, dtype=torch.float64, device=device)
        with torch.no_grad():
            for _ in range(count):
                model.denoiser(x, t, model.denoiser.embed(None, rows))

    return median(partial(ask, 64, 1), repeats, device) / median(partial(ask, 1, 8), repeats, device)


def main() -> None:
    """Measure and print JSON."""
    options = script_options(__doc__)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    asked = options.parse_args()
    repeats = 2 if asked.quick else 7
    model = ud.load("digits").to(asked.device)
    rows = [Measure("one call of 64 rows", calls(model, repeats, asked.device), note="of 8 calls of one row")]
    for batch in BATCHES:
        run = partial(model.sample_result, batch, solver="ddim", steps=STEPS)
        alone = median(run, repeats, asked.device)
        exact = run(dtype=torch.float64).x
        fine = model.sample_result(batch, solver="dpm++2m", steps=300, dtype=torch.float64).x
        own = float((fine - exact).square().mean().sqrt())
        rows.append(Measure(f"batch {batch}: {STEPS} steps of ddim", 1e3 * alone, "ms"))
        for window in WINDOWS if not asked.quick else WINDOWS[1:2]:
            found = run(parallel=window, dtype=torch.float64)
            error = float((found.x - exact).square().mean().sqrt())
            said = f"{found.calls} calls for {STEPS}, {found.nfe} evaluations, {error / own:.2f} of DDIM's own error"
            seconds = median(partial(run, parallel=window), repeats, asked.device)
            rows.append(Measure(f"batch {batch}: {window} steps at once", seconds / alone, note=said))
    settings = machine_settings(repeats=repeats, device=asked.device)
    said = "Wall-clock time of runs in parallel over time, as a share of the sequential run; below 1 is a gain."
    publish(Results("Parallel in time", said, tuple(rows), settings), asked.out)


if __name__ == "__main__":
    main()

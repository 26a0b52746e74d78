"""What `import undiffuse` and the help pages cost, as shares of `import torch`.

Every round starts one fresh interpreter per case, torch first, so that load and clock changes meet all cases; the
figure is the median over rounds of the ratio within a round. "import undiffuse" is `import torch, undiffuse`: what a
program pays that needs both. Prints JSON.

    python benchmarks/import_time.py [--rounds 15] [--out results.json]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options

TORCH = "import torch"
CASES: dict[str, tuple[Sequence[str], float]] = {
    "import undiffuse": (("-c", "import torch, undiffuse"), 1.05),
    "undiffuse --help": (("-m", "undiffuse", "--help"), 0.12),
    "undiffuse sample --help": (("-m", "undiffuse", "sample", "--help"), 0.2),
    "undiffuse train --help": (("-m", "undiffuse", "train", "--help"), 0.2),
}
"""Name -> (arguments of the interpreter, the most it may cost as a share of `import torch`)."""


def seconds(arguments: Sequence[str]) -> float:
    """Return how long a fresh interpreter takes, its own start and end included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the times of every case in every round, after one round that fills the disk cache."""
    commands = {TORCH: ("-c", TORCH)} | {name: arguments for name, (arguments, _) in CASES.items()}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, arguments in commands.items():
            taken = seconds(arguments)
            if number:
                times[name].append(taken)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median time, median ratio to torch, and the goal, for every case."""
    rows = {TORCH: {"seconds": statistics.median(times[TORCH])}}
    for name, (_, goal) in CASES.items():
        ratios = [own / torch for own, torch in zip(times[name], times[TORCH], strict=True)]
        rows[name] = {
            "seconds": statistics.median(times[name]),
            "ratio": statistics.median(ratios),
            "goal": goal,
        }
    return rows


def main() -> None:
    """Measure and print."""
    parser = script_options(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    rows = summary(measure(rounds))
    measures = [Measure(name, rows[name]["ratio"], asked=rows[name]["goal"], note=f"of {TORCH}") for name in CASES]
    measures += [Measure(name, 1e3 * row["seconds"], "ms") for name, row in rows.items()]
    said = f"Time of a fresh interpreter, as a share of `{TORCH}`; median over rounds."
    settings = machine_settings(rounds=rounds)
    publish(Results("Import and help", said, tuple(measures), settings, rows), options.out)


if __name__ == "__main__":
    main()

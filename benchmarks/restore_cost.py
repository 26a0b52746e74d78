"""What a restoration costs beside the network: time per step of each method against forward and backward passes.

A U-Net for 32 x 32 pictures in colour, half of the pixels missing, one core. For each method the ratio

    time of the restoration / (evaluations x forward + differentiated ones x products x backward)

of medians over runs that take turns, in seconds of one thread, so that other processes hardly count. Asked is at most
1.05: methods ask the network once a step and add next to nothing. MMPS takes one product per iteration and one more,
all others one. A pass itself varies by several percent from run to run, more than what most methods add; so methods
without a derivative are timed once more with a network that answers at once, and what they then take is set against
the passes too ("beside the network").

    python benchmarks/restore_cost.py [--out results.json]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.noise import KeyedNoise
from undiffuse.operators.diagonal import Mask
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import VPSchedule
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.registry import make_restorer
from undiffuse.tasks.restore.restorer import Problem

ROWS, SHAPE, STEPS, REPEATS, ASKED = 4, (3, 32, 32), 5, 7, 1.05
PRODUCTS: dict[str, int] = {
    "ddrm": 0,
    "ddnm": 0,
    "dds": 0,
    "diffpir": 0,
    "jfps": 0,
    "ilvr": 0,
    "gdp": 0,
    "red-diff": 0,
    "daps-moments": 0,
    "dps": 1,
    "pigdm": 1,
    "pigdm-step": 1,
    "mcg": 1,
    "mmps": 6,
}
"""Backward passes per evaluation."""


class Silent(Backbone):
    """A network that answers 0, for what a method takes beside the network."""

    def forward(self, x: Tensor, noise_level: Tensor, cond: Any = None) -> dict[str, Tensor]:
        """Return zeros like `x`."""
        return {"out": torch.zeros_like(x)}


def make_problem(network: Backbone | None = None) -> Problem:
    """A network, or one of ordinary size with random weights, and four half-known pictures."""
    spec = DataSpec(kind="image", shape=SHAPE, range=(0.0, 255.0))
    network = network or build_network(UNetOptions(channels=64), spec)
    denoiser = NetworkDenoiser(network, GaussianProcess(VPSchedule()), "v", spec=spec).eval()
    mask = (KeyedNoise(0, range(1)).uniform("data", 0, SHAPE)[0] < 0.5).double()
    operator = Mask(SHAPE, mask)
    y = operator(KeyedNoise(1, range(ROWS)).normal("data", 0, SHAPE))
    return Problem(denoiser=denoiser, y=y, operator=operator, noise_std=0.1, shape=SHAPE, data_var=0.3)


def passes(denoiser: Denoiser, x: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a forward pass without a graph, and one with a graph and a backward pass to the state."""

    def forward() -> None:
        with torch.no_grad():
            denoiser.mean(x, 0.5)

    def both() -> None:
        denoiser.linearise(x, 0.5).pull(x)

    return forward, both


def medians(tasks: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of each task, run in turns after a round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Measure and print JSON."""
    asked = script_options(__doc__).parse_args()
    repeats = 2 if asked.quick else REPEATS
    torch.set_num_threads(1)
    problem, alone, noise = make_problem(), make_problem(Silent()), KeyedNoise(0, range(ROWS))
    forward, both = passes(problem.denoiser, noise.normal("init", 0, SHAPE))
    tasks: dict[str, Callable[[], Any]] = {"forward": forward, "both": both}
    for name, products in PRODUCTS.items():
        tasks[name] = partial(make_restorer(name).solve, problem, noise, STEPS)
        if not products:
            tasks[f"{name}, beside the network"] = partial(make_restorer(name).solve, alone, noise, STEPS)
    found = medians(tasks, repeats)
    backward = found["both"] - found["forward"]
    rows = [Measure(f"{name}: a pass", 1e3 * found[name], "ms") for name in ("forward", "both")]
    for name, products in PRODUCTS.items():
        least = STEPS * (found["forward"] + products * backward)
        note = f"of {STEPS} steps of 1 + {products} passes"
        rows.append(Measure(name, found[name] / least, asked=ASKED, note=note))
        if not products:
            own = f"{name}, beside the network"
            rows.append(Measure(own, found[own] / least, asked=ASKED - 1, note=note))
    said = "Restoring four half-known 32 x 32 pictures with a U-Net, against the passes that the method needs."
    publish(Results("Cost of a restoration", said, tuple(rows), machine_settings(repeats=repeats)), asked.out)


if __name__ == "__main__":
    main()

"""Processor seconds until a model is good: ours v the training loops of diffusers, smalldiffusion, azula and textbooks.

    python benchmarks/peers_training.py [--tasks moons digits] [--seeds 0 1 2] [--out results.json]

Two moons: energy distance of 4000 samples to 4000 held-out points at most 2 x real v real, the mean of four draws,
for that of one moves by 0.5 with its draw. Digits: Frechet distance in the features of a classifier at most 4 x real
v real. Every loop is tried at a ladder of step numbers; counted are the processor seconds of all threads that the
loop used, data loading included, imports and evaluation left out. The time to the target is read off the mean curve
over the seeds, between two steps of the ladder on logarithmic axes. A loop whose learning rate follows a plan runs
anew for each number of steps; ours is the whole of `undiffuse.train`, from opening the data to the written model.
Peers that are not installed are left out and named. All have one thread.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peer_loops import OURS, Contender, Loop, Task, contenders
from torch import Tensor

from undiffuse.config import resolve
from undiffuse.data import open_data, split
from undiffuse.metrics import ClassifierFeatures, energy_distance, frechet_distance, ratio_to_floor
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.training.recipe import Recipe, recipe_layer

ASKED = 0.5  # share of the processor seconds of the best peer
DRAWS = 4  # of samples, where they are judged by a distance that depends on the draw
PATIENCE = 3.0  # a loop is given up after this many times the seconds of the best so far, or after `most`


@dataclass(frozen=True)
class Goal:
    """A task, how its samples are judged (as a multiple of real v real), and the ladder that is tried.

    Args:
        task: What to learn.
        judge: Maps samples in data units to a multiple of real v real.
        n: Samples that are judged.
        labels: Their labels, or None.
        target: The multiple to reach.
        first: The least number of steps tried; each next one is twice as many.
        most: Processor seconds after which a loop is given up.
    """

    task: Task
    judge: Callable[[Tensor], float]
    n: int
    labels: Tensor | None
    target: float
    first: int
    most: float


@dataclass(frozen=True)
class Point:
    """A step of the ladder: optimizer steps, processor seconds, multiple of real v real."""

    steps: int
    seconds: float
    ratio: float


def make_task(name: str, holdout: int) -> tuple[Task, Any, Any]:
    """Return a task, and its training and held-out data."""
    recipe = resolve(Recipe, recipe_layer({"moons": "vector"}.get(name, name)))
    training, held_out = split(open_data(name), holdout)
    batch = training.batch(torch.arange(len(training)))
    task = Task(name, name, recipe, training, batch["x"].float(), batch["cond"].get("label"), holdout)
    return task, training, held_out


def moons(most: float) -> Goal:
    """Return the goal on points."""
    task, training, held_out = make_task("moons", 4000)
    real, others = (
        data.spec.from_model(data.batch(torch.arange(len(data)))["x"]).numpy() for data in (training, held_out)
    )

    rows = np.random.default_rng(0).permutation(len(real))
    floor = _mean([_energy(real[part], others) for part in rows[: 3 * len(others)].reshape(3, -1)])

    def judge(samples: Tensor) -> float:
        return _mean([_energy(part.double().numpy(), others) for part in samples.split(len(others))]) / floor

    return Goal(task, judge, DRAWS * len(others), None, 2.0, 250, most)


def digits(most: float) -> Goal:
    """Return the goal on pictures."""
    task, training, held_out = make_task("digits", 400)
    real, others = (
        data.spec.from_model(data.batch(torch.arange(len(data)))["x"]).numpy() for data in (training, held_out)
    )
    extractor = ClassifierFeatures().fit(real, task.labels.numpy() if task.labels is not None else None)
    features = [extractor.features(rows) for rows in (real, others)]
    labels = held_out.batch(torch.arange(len(held_out)))["cond"]["label"].repeat(2)

    def judge(samples: Tensor) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ratio_to_floor(frechet_distance, extractor.features(samples.numpy()), *features, repeats=10).ratio

    return Goal(task, judge, len(labels), labels, 4.0, 125, most)


GOALS = {"moons": moons, "digits": digits}


def _energy(x: Any, y: Any) -> float:
    return energy_distance(x, y, estimator="v")


def climb(contender: Contender, goal: Goal, seed: int, most: float) -> list[Point]:
    """Return the ladder of one contender, until well below the target or out of patience."""
    contender.start(goal.task, seed, 2, **contender.settings).advance(2)  # what is imported on first use
    points: list[Point] = []
    loop: Loop | None = None
    spent, done, steps = 0.0, 0, goal.first
    while spent <= most:
        if loop is None or contender.planned:
            loop, spent, done = contender.start(goal.task, seed, steps, **contender.settings), 0.0, 0
        started = time.process_time()
        loop.advance(steps - done)
        spent += time.process_time() - started
        samples = loop.draw(goal.n, goal.labels)
        points.append(Point(steps, spent, goal.judge(samples)))
        say(f"{goal.task.name}: {contender.name}, seed {seed}: {steps} steps, {spent:.1f} s, {points[-1].ratio:.2f}")
        done, steps = steps, 2 * steps
        if len(points) >= 2 and all(point.ratio < 0.8 * goal.target for point in points[-2:]):
            break
    return points


def seconds_to(target: float, ladders: Sequence[Sequence[Point]]) -> float | None:
    """Return processor seconds at which the mean curve over seeds first reaches the target, None where it never does.

    Between steps of the ladder the logarithm of the ratio is taken as linear in that of the seconds. Where the first
    step reaches it already, its seconds are returned.
    """
    rows = list(zip(*ladders, strict=False))
    curve = [(_mean([p.seconds for p in row]), _mean([p.ratio for p in row])) for row in rows]
    for number, (seconds, ratio) in enumerate(curve):
        if ratio <= target:
            if number == 0:
                return seconds
            before, above = curve[number - 1]
            share = math.log(above / target) / math.log(above / ratio)
            return before * (seconds / before) ** share
    return None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def compare(goal: Goal, seeds: Sequence[int], only: Sequence[str]) -> tuple[list[Measure], dict[str, Any]]:
    """Run everyone, or those whose names begin as `only` says, on one goal."""
    seconds: dict[str, float | None] = {}
    ladders: dict[str, list[list[Point]]] = {}
    left_out: dict[str, list[str]] = {}
    for contender in contenders(goal.task):
        if only and not contender.name.startswith(tuple(only)):
            continue
        if contender.missing:
            left_out[contender.name] = contender.missing
            say(f"{goal.task.name}: {contender.name} left out: {', '.join(contender.missing)} not installed")
            continue
        found = [value for name, value in seconds.items() if value is not None and name != OURS]
        most = min([goal.most, *(PATIENCE * value for value in found)])
        with quiet():
            ladders[contender.name] = [climb(contender, goal, seed, most) for seed in seeds]
        seconds[contender.name] = seconds_to(goal.target, ladders[contender.name])
    plain = {name: [[vars(point) for point in ladder] for ladder in rows] for name, rows in ladders.items()}
    return measures(goal, seconds, ladders), {"seconds": seconds, "ladders": plain, "left out": left_out}


def measures(goal: Goal, seconds: dict[str, float | None], ladders: dict[str, list[list[Point]]]) -> list[Measure]:
    """Return ours over the best peer, and everybody's seconds."""
    name = goal.task.name
    peers = {who: value for who, value in seconds.items() if who != OURS and value is not None}
    best = min(peers, key=peers.__getitem__, default=None)
    own = seconds.get(OURS)
    ratio = own / peers[best] if own is not None and best is not None else None
    note = f"the best peer is {best}" if best else "no peer reached the target"
    rows = [Measure(f"{name}: our processor seconds / the best peer's", ratio, asked=ASKED, note=note)]
    for who, value in seconds.items():
        tried = max(ladder[-1].seconds for ladder in ladders[who])
        missed = f"target {goal.target:g} x real v real not reached in {tried:.0f} s"
        rows.append(Measure(f"{name}: {who}", value, "processor seconds", note="" if value is not None else missed))
    return rows


@contextlib.contextmanager
def quiet() -> Any:
    """Keep the bars of other libraries off the terminal; our own lines go to the real stderr."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def say(line: str) -> None:
    """Tell people what goes on."""
    print(line, file=sys.__stderr__, flush=True)


def main() -> None:
    """Measure and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="loops whose names begin so, such as undiffuse azula")
    parser.add_argument("--most", type=float, default=120.0, help="processor seconds after which a loop is given up")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seeds, most = (asked.seeds[:1], min(asked.most, 10.0)) if asked.quick else (asked.seeds, asked.most)
    rows: list[Measure] = []
    details: dict[str, Any] = {}
    for name in asked.tasks:
        goal = GOALS[name](most)
        found, details[name] = compare(goal, seeds, asked.only)
        rows += found
    summary = (
        "Processor seconds of training until samples are good: on two moons an energy distance of 2 x real v real, on "
        "the digits a Frechet distance in classifier features of 4 x. Evaluation does not count; one thread."
    )
    publish(Results("Training beside peers", summary, tuple(rows), machine_settings(seeds=seeds), details), asked.out)


if __name__ == "__main__":
    main()

"""What a training step costs beyond the bare one, for an MLP on points and the U-Net of the digits.

"bare" is forward, mean squared error, backward, fused AdamW on fixed tensors. "full" is `Trainer.step`: data,
keyed noise, noise levels, weighting, label drop, clipping, two averages, log window. Both run the same network
in one process; steps alternate, so that load and clock changes meet both. Prints JSON.

    python benchmarks/training_step.py [--rounds 150] [--cpu-time] [--out results.json]
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.config import resolve
from undiffuse.data import TensorDataset, open_data
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.devices import Devices
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.trainer import Trainer

Clock = Callable[[], float]


def points() -> TensorDataset:
    """Ten thousand points of the plane in two classes."""
    x = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(
        data=x, spec=DataSpec(kind="vector", shape=(2,), classes=("left", "right")), labels=(x[:, 0] > 0).long()
    )


def make_trainer(layer: dict, dataset: TensorDataset, folder: str) -> Trainer:
    """Return a trainer that is never asked to save, with its data on its device."""
    recipe = resolve(Recipe, layer, {"train.steps": 1_000_000})
    denoiser, devices = build_denoiser(recipe, dataset.spec), Devices(recipe.train)
    objective = make_objective(recipe.objective, denoiser)
    return Trainer(denoiser, objective, dataset.to(devices.device), recipe.train, Path(folder), devices=devices)


def bare_step(trainer: Trainer) -> Callable[[], None]:
    """Return the bare step on a copy of the trainer's network, with one of its batches."""
    network: Any = copy.deepcopy(trainer.denoiser.backbone)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    batch = trainer.stream.step(0)
    level = torch.linspace(-1, 1, len(batch.x), device=batch.x.device)
    cond = {name: tensor.clone() for name, tensor in batch.cond.items()}

    def loss() -> Tensor:
        embedded = network.conditioners.embed(cond, len(batch.x))
        return F.mse_loss(network(batch.x, level, embedded)["out"], batch.target)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def full_step(trainer: Trainer) -> Callable[[], None]:
    """Return the trainer's step; the log window is read at the trainer's own pace."""

    def step() -> None:
        trainer.step()
        if trainer.state.step % trainer.options.log_every == 0:
            trainer.state.window.close()

    return step


def timed(action: Callable[[], object], clock: Clock) -> float:
    """Return the seconds that `action` takes."""
    start = clock()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def compare(trainer: Trainer, rounds: int, clock: Clock) -> dict[str, float]:
    """Return medians in milliseconds and their ratio.

    Most steps only cut their rows from a block of batches, so the median step does not see the making of blocks; its
    cost is measured apart and its share per step added.
    """
    bare, full = bare_step(trainer), full_step(trainer)
    pairs = [(timed(bare, clock), timed(full, clock)) for _ in range(rounds + 5)][5:]
    blocks = [timed(lambda: trainer.stream._prepare(0), clock) for _ in range(7)]
    prepare = statistics.median(blocks) / trainer.stream.block_steps
    bare_median, full_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "bare_ms": 1e3 * bare_median,
        "full_ms": 1e3 * (full_median + prepare),
        "of_which_batches_ms": 1e3 * prepare,
        "ratio": (full_median + prepare) / bare_median,
        "ratio_of_pairs": statistics.median(f / b for b, f in pairs) + prepare / bare_median,
    }


def main() -> None:
    """Measure and print."""
    parser = script_options(__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, for a machine that others use too")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    mlp = {"model": {"kind": "mlp", "width": 256, "depth": 4}, "train.batch_size": 256}
    cases = {"mlp-256": (mlp, points()), "digits-unet": (recipe_layer("digits"), open_data("digits"))}
    rounds = 10 if arguments.quick else arguments.rounds
    results: dict[str, dict[str, float]] = {}
    for name, (layer, dataset) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(make_trainer(layer, dataset, folder), rounds, clock)
    measures = []
    for name, found in results.items():
        measures.append(Measure(f"{name}: full / bare", found["ratio"], note="medians, making of batches added"))
        pairs = found["ratio_of_pairs"]
        measures.append(Measure(f"{name}: median of pairs", pairs, note="each step over the one before"))
        measures += [Measure(f"{name}: {key[:-3]}", found[key], "ms") for key in found if key.endswith("_ms")]
    said = "A step of the trainer against forward, loss, backward and optimizer alone, on the same network."
    settings = machine_settings(rounds=rounds, clock=clock.__name__)
    publish(Results("Cost of a training step", said, tuple(measures), settings, results), arguments.out)


if __name__ == "__main__":
    main()

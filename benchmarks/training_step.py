"""What a training step costs beyond the bare one, for an MLP on points and the U-Net of the digits.

"bare" is forward, mean squared error, backward, fused AdamW on fixed tensors. "full" is `Trainer.step`: data,
keyed noise, noise levels, weighting, label drop, clipping, two averages, log window. Both run the same network
in one process; steps alternate in short rounds, so that load and clock changes meet both. Prints JSON.

    python benchmarks/training_step.py [--rounds 60] [--out results.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.config import resolve
from undiffuse.data import TensorDataset, open_data
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.trainer import Trainer

STEPS_PER_ROUND = 4


def points() -> TensorDataset:
    """Ten thousand points of the plane in two classes."""
    x = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(
        data=x, spec=DataSpec(kind="vector", shape=(2,), classes=("left", "right")), labels=(x[:, 0] > 0).long()
    )


def make_trainer(layer: dict, dataset: TensorDataset, folder: str) -> Trainer:
    """Return a trainer that is never asked to save."""
    recipe = resolve(Recipe, layer, {"train.steps": 1_000_000})
    denoiser = build_denoiser(recipe, dataset.spec)
    return Trainer(denoiser, make_objective(recipe.objective, denoiser), dataset, recipe.train, Path(folder))


def bare_step(trainer: Trainer) -> Callable[[], None]:
    """Return the bare step on a copy of the trainer's network, with one of its batches."""
    network = copy.deepcopy(trainer.denoiser.backbone)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    batch = trainer.stream.step(0)
    level = torch.linspace(-1, 1, len(batch.x))
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


def compare(trainer: Trainer, rounds: int) -> dict[str, float]:
    """Return medians over rounds of the seconds of one step, and their ratio."""
    steps = {"bare": bare_step(trainer), "full": full_step(trainer)}
    seconds: dict[str, list[float]] = {"bare": [], "full": []}
    for number in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(STEPS_PER_ROUND):
                step()
            if number >= 3:
                seconds[name].append((time.perf_counter() - start) / STEPS_PER_ROUND)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    paired = statistics.median(f / b for f, b in zip(seconds["full"], seconds["bare"], strict=True))
    return {
        "bare_ms": 1e3 * medians["bare"],
        "full_ms": 1e3 * medians["full"],
        "ratio": medians["full"] / medians["bare"],
        "paired_ratio": paired,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    mlp = {"model": {"kind": "mlp", "width": 256, "depth": 4}, "train.batch_size": 256}
    cases = {"mlp-256": (mlp, points()), "digits-unet": (recipe_layer("digits"), open_data("digits"))}
    results: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name, (layer, dataset) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(make_trainer(layer, dataset, folder), arguments.rounds)
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

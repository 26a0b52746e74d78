"""Short trainings of one or several processes, for the tests of both; also a script that torchrun starts.

peers.py FOLDER SCENARIO ...: the main process writes the losses of each to FOLDER/SCENARIO.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from undiffuse.data import TensorDataset
from undiffuse.denoisers import NetworkDenoiser
from undiffuse.models.processes import leave
from undiffuse.networks import MLPOptions, TransformerOptions, UNetOptions, build_network
from undiffuse.process import GaussianProcess, make_schedule
from undiffuse.process.options import CategoricalOptions
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.options import DenoisingOptions, MaskedELBOOptions, TrainOptions
from undiffuse.training.recipe import Recipe
from undiffuse.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
DEFAULTS: dict[str, Any] = {
    "steps": 50,
    "batch_size": 16,
    "warmup": 5,
    "log_every": 10,
    "checkpoint_every": 1000,
    "lr": 3e-3,
    "decay": "constant",
    "clip": 0.3,
    "accumulate": 2,
    "device": "cpu",
}

BY_LOSS: dict[str, Any] = {
    "decay": "plateau",
    "plateau_every": 3,
    "plateau_patience": 4,
    "plateau_threshold": 0.2,
    "clip_steps": 20,
    "ema_every": 4,
}


def launch(script: Path, *words: object, processes: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", **environment}
    whole = [*command, str(script), *map(str, words)]
    return subprocess.run(whole, env=variables, capture_output=True, text=True, timeout=300)


def vectors() -> TensorDataset:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    spec = DataSpec(kind="vector", shape=(3,), classes=("a", "b"))
    return TensorDataset(data=x, spec=spec, labels=(x[:, 0] > 0).long())


def images() -> TensorDataset:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorDataset(data=x, spec=DataSpec(kind="image", shape=(1, 8, 8)))


def tokens() -> TensorDataset:
    x = torch.randint(0, 5, (60, 12), generator=torch.Generator().manual_seed(0))
    return TensorDataset(data=x, spec=DataSpec(kind="tokens", shape=(12,), vocabulary=tuple("abcde")))


class InDoubles:
    """A data set whose items are float64."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset, self.spec = dataset, dataset.spec

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, index: torch.Tensor) -> dict[str, Any]:
        batch = self.dataset.batch(index)
        return {**batch, "x": batch["x"].double()}


def make_trainer(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Trainer:
    """KIND is "mlp" (labels), "importance" (adaptive times), "unet", or "tokens" (a transformer, masked)."""
    torch.manual_seed(0)
    train = TrainOptions(**{**DEFAULTS, **options})
    if kind == "tokens":
        dataset = tokens()
        network = TransformerOptions(width=16, depth=2, heads=2)
        recipe = Recipe(
            model=network, process=CategoricalOptions(), objective=MaskedELBOOptions(), train=replace(train, seed=0)
        )
        denoiser = build_denoiser(recipe, dataset.spec).to(dtype)
        return _trainer(denoiser, make_objective(recipe.objective, denoiser), dataset, train, folder)
    dataset = images() if kind == "unet" else vectors()
    unet = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, attention=(-1,), heads=2)
    network = build_network(unet if kind == "unet" else MLPOptions(width=16, depth=2), dataset.spec)
    denoiser = NetworkDenoiser(network, GaussianProcess(make_schedule("cosine")), "v", spec=dataset.spec).to(dtype)
    objective = make_objective(DenoisingOptions(times="importance" if kind == "importance" else "uniform"), denoiser)
    return _trainer(denoiser, objective, InDoubles(dataset) if dtype == torch.float64 else dataset, train, folder)


def _trainer(denoiser: Any, objective: Any, dataset: Any, train: TrainOptions, folder: Path) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(denoiser, objective, dataset, train, folder)


def losses_of(trainer: Trainer) -> list[float]:
    """Train, and return the loss of every step as it was computed; the log rounds to float32."""
    seen: list[float] = []
    add = trainer.state.window.add

    def listen(loss: torch.Tensor, *rest: Any) -> None:
        seen.append(float(loss))
        add(loss, *rest)

    trainer.state.window.add = listen  # type: ignore[method-assign]
    trainer.run()
    return seen


def run_scenario(folder: Path, name: str) -> list[float]:
    """Train what a name says: KIND, then words from "float64", "shard", "plateau", "more" (go on to 20 steps more)."""
    kind, *words = name.split("-")
    dtype = torch.float64 if "float64" in words else torch.float32
    options: dict[str, Any] = dict(BY_LOSS) if "plateau" in words else {}
    options |= {"steps": 70} if "more" in words else {"steps": 20} if kind == "unet" else {}
    place = folder / "-".join(word for word in name.split("-") if word != "more")
    return losses_of(make_trainer(place, kind, dtype, shard="shard" in words, **options))


def main(folder: str, *names: str) -> None:
    for name in names:
        losses = run_scenario(Path(folder), name)
        if os.environ.get("RANK", "0") == "0":
            Path(folder, f"{name}.json").write_text(json.dumps(losses))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody leaves while another still talks to it
        leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

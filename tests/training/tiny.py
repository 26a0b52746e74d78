"""A training run of seconds, for the trainer's tests; also a script, so that a run can be killed.

python tiny.py FOLDER KIND STEPS [die-at-step N | die-in-checkpoint N | sleep]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from undiffuse.data import TensorDataset
from undiffuse.denoisers import NetworkDenoiser
from undiffuse.events import Listener, silent
from undiffuse.networks import MLPOptions, UNetOptions, build_network
from undiffuse.process import GaussianProcess, make_schedule
from undiffuse.spec import DataSpec
from undiffuse.training import checkpoints
from undiffuse.training.build import make_objective
from undiffuse.training.options import DenoisingOptions, TrainOptions
from undiffuse.training.trainer import Trainer


def vectors(n: int = 50) -> TensorDataset:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(
        data=x, spec=DataSpec(kind="vector", shape=(2,), classes=("a", "b")), labels=(x[:, 0] > 0).long()
    )


def images(n: int = 50) -> TensorDataset:
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorDataset(data=x, spec=DataSpec(kind="image", shape=(1, 4, 4)))


def tiny_trainer(folder: Path, kind: str, steps: int, listener: Listener = silent, **options: Any) -> Trainer:
    """KIND is "mlp" (labels, stratified uniform times), "importance" (adaptive times), "dropout" (U-Net), or "watched".

    The last one is an MLP trained by Muon, with snapshots and held-out losses.
    """
    dataset = images() if kind == "dropout" else vectors()
    if kind == "dropout":
        network = build_network(
            UNetOptions(channels=8, multipliers=(1,), blocks=1, attention=(), dropout=0.2), dataset.spec
        )
    else:
        network = build_network(MLPOptions(width=16, depth=1), dataset.spec)
    denoiser = NetworkDenoiser(network, GaussianProcess(make_schedule("cosine")), "v", spec=dataset.spec)
    objective = make_objective(DenoisingOptions(times="importance" if kind == "importance" else "uniform"), denoiser)
    defaults: dict[str, Any] = {"batch_size": 16, "warmup": 5, "log_every": 7, "checkpoint_every": 10, "lr": 1e-2}
    if kind == "watched":
        defaults |= {"optimizer": "muon", "snapshot_every": 7, "validate_every": 9, "validate_items": 24}
    held_out = vectors(20) if kind == "watched" else None
    folder.mkdir(parents=True, exist_ok=True)
    train = TrainOptions(steps=steps, **{**defaults, **options})
    return Trainer(denoiser, objective, dataset, train, folder, listener=listener, held_out=held_out)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, kind: str, steps: str, how: str = "", at: str = "0") -> None:
    trainer = tiny_trainer(Path(folder), kind, int(steps))
    step, sync = trainer.step, checkpoints._sync

    def dying_step() -> None:
        step()
        if how == "die-at-step" and trainer.state.step == int(at):
            die()
        if how == "sleep":
            print("step", flush=True)
            time.sleep(0.05)

    def dying_sync(path: Path) -> None:
        if how == "die-in-checkpoint" and trainer.state.step == int(at):
            (path.parent / "state.json").unlink(missing_ok=True)
            die()
        sync(path)

    trainer.step = dying_step  # type: ignore[method-assign]
    checkpoints._sync = dying_sync
    outcome = trainer.run()
    print("finished" if outcome.finished else "stopped", outcome.step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A small network trained on crops of scans: the prior that has to beat a Gaussian of the same crops."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from undiffuse.data.dataset import TensorDataset
from undiffuse.metrics.calibration import spread_ratio
from undiffuse.metrics.restoration import psnr
from undiffuse.models.model import Model
from undiffuse.operators.base import LinearOperator
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.run import restore
from undiffuse.training.run import train

MMPS_SAMPLES, MMPS_STEPS = 8, 30
_STEPS = 1000


@dataclass(frozen=True)
class Answer:
    """What MMPS makes of scans with one prior.

    Args:
        decibels: PSNR of the mean of its samples, all items as one volume.
        spread: Variance of its samples over their squared error; 1 is calibrated.
    """

    decibels: float
    spread: float


def trained_on(crops: Tensor, spec: DataSpec, seed: int, quick: bool) -> Model:
    """Return a small U-Net trained on crops (N, *shape), model units."""
    steps = 20 if quick else _STEPS
    keys = [
        "model.channels=32",
        "model.multipliers=[1,2]",
        "model.blocks=1",
        f"train.steps={steps}",
        "train.batch_size=32",
        "train.lr=2e-3",
        f"train.warmup={min(100, steps // 2)}",
        f"train.seed={seed}",
        "train.preview_every=0",
        "data.holdout=0",
    ]
    data = TensorDataset(data=spec.from_model(crops).float(), spec=spec)
    with tempfile.TemporaryDirectory() as folder:
        return train(data, "image", out=Path(folder) / "run", overrides=keys).model


def restored(model: Model, y: Tensor, operator: LinearOperator, noise_std: float, truth: Tensor, seed: int) -> Answer:
    """Restore measurements (B, ...) by MMPS with a prior, and judge them against the truth (B, *shape)."""
    drawn = restore(model, y, operator, "mmps", noise_std=noise_std, samples=MMPS_SAMPLES, steps=MMPS_STEPS, seed=seed)
    return Answer(volume_psnr(drawn.mean.double(), truth), spread_ratio(drawn.samples.double(), truth))


def volume_psnr(x: Tensor, truth: Tensor) -> float:
    """Return the PSNR of all items as one volume, in dB."""
    return float(psnr(x.reshape(1, -1), truth.reshape(1, -1)))

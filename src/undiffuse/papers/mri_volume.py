"""Accelerated MR scans of a real volume: the simplest prior there is, a Gaussian of its own small crops, and a network.

The volume comes with nibabel (`example4d.nii.gz`, of one subject). Every third slice is held out; neighbouring slices
are alike, so the figures say how the method works, and nothing about other people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import LinearOperator
from undiffuse.operators.parse import parse_operator
from undiffuse.papers.mri_prior import MMPS_SAMPLES, MMPS_STEPS, restored, trained_on, volume_psnr
from undiffuse.papers.restoring import number
from undiffuse.papers.study import Part
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.report.measures import Measure
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.exact import dense

_SIDE, _STRIDE, _NOISE, _SHRINK = 24, 4, 0.02, 0.02
_FEW = 16  # crops that are restored by samples
_GAINS = {2: 2.0, 4: 5.0}  # dB over the zero-filled picture, by acceleration
_SPEC = DataSpec(kind="image", shape=(1, _SIDE, _SIDE), range=(0.0, 1.0))
_COLUMNS = (
    "acceleration",
    "zero-filled, dB",
    "exact posterior mean, dB",
    "z²",
    "|error| v deviation",
    "some crops: exact mean, dB",
    "mmps, Gaussian, dB",
    "mmps, network, dB",
    "spread, Gaussian",
    "spread, network",
)


def scans(seed: int, quick: bool) -> Part:
    """Accelerations 2 and 4 of random Cartesian columns, in closed form, and by MMPS with two priors."""
    text = (
        f"Crops of {_SIDE} x {_SIDE} pixels of a real volume, noise {_NOISE} in model units, random Cartesian columns. "
        "The simplest prior is a Gaussian fitted on crops of two thirds of the slices, so its posterior is known: the "
        "mean is the bar that a trained prior has to clear. z² is the squared error over the predicted variance, 1 "
        "where the prior is right; beside it the correlation of the map of mean errors with that of predicted "
        f"deviations. Then {_FEW} of the crops, restored by MMPS ({MMPS_SAMPLES} samples in {MMPS_STEPS} steps, whose "
        "mean is judged) with the Gaussian and with a small U-Net trained on the same crops; spread is the variance of "
        "the samples over the squared error, 1 where they are calibrated. PSNR is that of all crops as one volume. "
        "Training and test slices are of one subject."
    )
    path = find_volume()
    if path is None:
        return Part(title="An accelerated scan", text=text + " Not computed: nibabel is not installed.")
    train, test = crops(path)
    test = test[:: 40 if quick else 2]
    mean, cov = fit(train)
    prior = GaussianDenoiser(mean, cov, GaussianProcess(make_schedule("vp")), spec=_SPEC)
    network = trained_on(train, _SPEC, seed, quick)
    rows, measures = [], []
    for acceleration, asked in _GAINS.items():
        found = scan(prior, network, test, acceleration, seed, 2 if quick else _FEW)
        rows.append((str(acceleration), *(number(value) for value in found.values())))
        gain = found["exact"] - found["zero-filled"]
        measures += [
            Measure(f"acceleration {acceleration}: gain over zero-filled", gain, "dB", asked, "higher"),
            Measure(f"acceleration {acceleration}: z²", found["z"], "", 1.2),
            Measure(f"acceleration {acceleration}: errors v deviations", found["correlation"], "", 0.5, "higher"),
            Measure(f"acceleration {acceleration}: exact - mmps", found["few"] - found["mmps"], "dB"),
            Measure(
                f"acceleration {acceleration}: trained prior over the Gaussian, both by mmps",
                found["network"] - found["mmps"],
                "dB",
                None if quick else 0.0,
                "higher",
                note="of the same subject",
            ),
        ]
    return Part(
        title="An accelerated scan",
        text=text,
        columns=_COLUMNS,
        rows=rows,
        numeric=range(len(_COLUMNS)),
        measures=tuple(measures),
    )


def scan(
    prior: GaussianDenoiser, network: Model, test: Tensor, acceleration: int, seed: int, few: int
) -> dict[str, float]:
    """Return the figures of one acceleration in the order of the table; `few` crops are restored by MMPS."""
    words = f"mri:pattern=gaussian1d,acceleration={acceleration}"
    operator = parse_operator(words, _SPEC, seed=seed)
    assert isinstance(operator, LinearOperator)
    y = operator(test)
    z = KeyedNoise(seed, range(len(test))).normal("measure", 0, tuple(y.shape[1:]), torch.float64)
    y = y + _NOISE * operator.measured(z)
    answer, variance = gaussian_answer(prior, operator, y)
    error = (answer - test).abs()
    both = torch.stack([error.mean(0).flatten(), variance.sqrt().flatten()])
    some = torch.linspace(0, len(test) - 1, few).long()  # of all slices held out
    drawn = {
        name: restored(model, y[some], operator, _NOISE, test[some], seed)
        for name, model in {"gaussian": Model(prior, _SPEC), "network": network}.items()
    }
    return {
        "zero-filled": volume_psnr(operator.adjoint(y), test),
        "exact": volume_psnr(answer, test),
        "z": float((error.square() / variance).mean()),
        "correlation": float(torch.corrcoef(both)[0, 1]),
        "few": volume_psnr(answer[some], test[some]),
        "mmps": drawn["gaussian"].decibels,
        "network": drawn["network"].decibels,
        "spread": drawn["gaussian"].spread,
        "network's spread": drawn["network"].spread,
    }


def gaussian_answer(prior: GaussianDenoiser, operator: LinearOperator, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact posterior's mean (B, *shape) and variance (*shape), one gain for all items.

    `exact_posterior` computes one for each item, which for 1152 numbers of hundreds of items would take gigabytes.
    """
    mean, cov = prior.moments()
    matrix = dense(operator)
    cross = cov @ matrix.T
    total = matrix @ cross + _NOISE**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(total, cross.T).T
    answer = mean + (y.flatten(1) - matrix @ mean) @ gain.T
    variance = (cov - gain @ cross.T).diagonal().clamp(min=1e-12)
    return answer.reshape(-1, *operator.in_shape), variance.reshape(operator.in_shape)


def crops(path: Path) -> tuple[Tensor, Tensor]:
    """Return crops (N, 1, 24, 24) in model units for the fit, and from the slices held out."""
    import nibabel

    image: Any = nibabel.load(path)
    volume = torch.as_tensor(image.get_fdata()[..., 0])  # (128, 96, 24)
    slices = volume.permute(2, 0, 1) / volume.max() * 2 - 1
    held_out = torch.arange(len(slices)) % 3 == 2
    return _cut(slices[~held_out], _STRIDE), _cut(slices[held_out], 2 * _STRIDE)


def fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (*shape) and covariance (D, D) of crops, shrunk a little towards a multiple of I."""
    cov = x.flatten(1).T.cov()
    eye = torch.eye(len(cov), dtype=cov.dtype)
    return x.mean(0), (1 - _SHRINK) * cov + _SHRINK * cov.diagonal().mean() * eye


def find_volume() -> Path | None:
    """Return nibabel's example volume; None where nibabel is not installed."""
    try:
        import nibabel
    except ImportError:
        return None
    path = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    return path if path.is_file() else None


def _cut(slices: Tensor, stride: int) -> Tensor:
    """Return the crops that show something, (N, 1, 24, 24)."""
    sizes: Sequence[int] = (_SIDE, _SIDE)
    windows = slices.unfold(1, sizes[0], stride).unfold(2, sizes[1], stride)
    flat = windows.reshape(-1, 1, *sizes)
    return flat[flat.mean((1, 2, 3)) > -0.9].contiguous()

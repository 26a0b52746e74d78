"""Averages of any width after the run, from snapshots of the averages that ran beside it.

`ema/step-NNNNNNNN.safetensors` holds the averages after a step, `ema0/NAME` and `ema1/NAME`; their widths and the step
are in the file's metadata. Each file is written whole or not at all, and before the checkpoint of its step, so that a
run that resumes finds all of them up to its step; later ones are of steps it will make again, and are removed.

Source: Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from undiffuse.errors import CheckpointError
from undiffuse.files import write_whole
from undiffuse.training.checkpoints import disk_errors
from undiffuse.training.ema import Combination, Profile, combine_profiles

if TYPE_CHECKING:
    from undiffuse.models import Model

SNAPSHOTS = "ema"  # their place in a run's folder
GOOD_FIT = 0.1
"""Misfit above which the snapshots lie too far apart for a width; at it, errors are some 1e-3 of what is learned."""

_PREFIX = "step-"


@dataclass(frozen=True)
class Snapshot:
    """A file of averages: where it is, after which step, the widths of `ema0`, `ema1`, ..., and when they began."""

    path: Path
    step: int
    widths: tuple[float, ...]
    begun: int = 0

    def profile(self, width: float) -> Profile:
        """Return the profile of an average of a width after this step."""
        return Profile(self.step - self.begun, width)


def write_snapshot(
    folder: Path,
    step: int,
    averages: list[dict[str, Tensor]],
    widths: tuple[float, ...],
    dtype: torch.dtype,
    begun: int = 0,
) -> None:
    """Write the averages after `step`, parameters by name, which began after `begun` steps, below the run's `folder`.

    Raises:
        TrainingError: The disk is full or not writable.
    """
    from safetensors.torch import save_file

    named = {f"ema{i}/{name}": part for i, average in enumerate(averages) for name, part in average.items()}
    tensors = {name: part.detach().to(dtype).contiguous() for name, part in named.items()}
    # One entry, for the order of several in a file is by chance.
    facts = {"undiffuse": json.dumps({"step": step, "widths": widths, "begun": begun})}
    store = folder / SNAPSHOTS
    with disk_errors(f"snapshot of step {step}", folder):
        store.mkdir(exist_ok=True)
        write_whole(store / f"{_PREFIX}{step:08d}.safetensors", lambda part: save_file(tensors, part, metadata=facts))


def drop_snapshots(folder: Path, after: int) -> None:
    """Remove the snapshots of steps beyond `after`, and what was half-written."""
    store = folder / SNAPSHOTS
    for leftover in store.glob(f".{_PREFIX}*.part"):
        leftover.unlink(missing_ok=True)
    for path in store.glob(f"{_PREFIX}*.safetensors"):
        if _step_of(path) > after:
            path.unlink(missing_ok=True)


def snapshots_in(folder: Path) -> list[Snapshot]:
    """Return the snapshots of a run whose averages began when those of its last one did, oldest first.

    Raises:
        CheckpointError: There is none, or one is damaged.
    """
    found = [_read_facts(path) for path in sorted((folder / SNAPSHOTS).glob(f"{_PREFIX}*.safetensors"), key=_step_of)]
    if not found:
        raise CheckpointError(
            f"{folder} holds no snapshots of averages (ema/step-*.safetensors); train with train.snapshot_every=N, "
            f"such as a fiftieth of the steps."
        )
    return [snapshot for snapshot in found if snapshot.begun == found[-1].begun]


def combination_for(snapshots: list[Snapshot], width: float) -> Combination:
    """Return the coefficients of all averages of all snapshots, oldest first, for `width` after the last one.

    Raises:
        ValueError: The width is out of range.
    """
    profiles = [snapshot.profile(own) for snapshot in snapshots for own in snapshot.widths]
    return combine_profiles(profiles, snapshots[-1].profile(width))


def reconstruct_ema(run_folder: str | Path, width: float) -> Model:
    """Return the model of a run with its weights averaged over another width, up to the last snapshot.

    The sum over snapshots is float64. Buffers, which have no average, are those of the run's model.

    Args:
        run_folder: A run with `train.snapshot_every` above 0.
        width: Relative width of the average, in (0, 0.288); see `undiffuse.training.ema`.

    Raises:
        CheckpointError: No model, no snapshots, or damaged ones.
        ValueError: The width is out of range.
    """
    from undiffuse.models import load

    folder = Path(run_folder)
    snapshots = snapshots_in(folder)
    found = combination_for(snapshots, width)
    model = load(folder)
    _fill(model.module, _combine(snapshots, found), folder)
    model.info |= {"step": snapshots[-1].step, "ema": width, "ema_misfit": found.misfit}
    return model


def _combine(snapshots: list[Snapshot], found: Combination) -> dict[str, Tensor]:
    """Return the sum of all averages by their coefficients, float64."""
    shares = iter(found.coefficients.tolist())
    total: dict[str, Tensor] = {}
    for snapshot in snapshots:
        tensors = _read(snapshot.path)
        for number in range(len(snapshot.widths)):
            share, prefix = next(shares), f"ema{number}/"
            for key, tensor in tensors.items():
                if key.startswith(prefix):
                    name = key.removeprefix(prefix)
                    part = tensor.double().mul_(share)
                    total[name] = total[name].add_(part) if name in total else part
    return total


@torch.no_grad()
def _fill(denoiser: torch.nn.Module, averages: dict[str, Tensor], folder: Path) -> None:
    own = dict(denoiser.named_parameters())
    for name, tensor in averages.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(
                f"the snapshots in {folder / SNAPSHOTS} are of another network than its model ({name}); remove them "
                f"and train again."
            )
        own[name].copy_(tensor)


def _read_facts(path: Path) -> Snapshot:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["undiffuse"])
        return Snapshot(path, facts["step"], tuple(facts["widths"]), facts.get("begun", 0))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the snapshot {path} cannot be read ({error}); remove it.") from error


def _read(path: Path) -> dict[str, Tensor]:
    from undiffuse.models.folder import read_tensors

    return read_tensors(path)


def _step_of(path: Path) -> int:
    digits = path.stem.removeprefix(_PREFIX)
    return int(digits) if digits.isdigit() else -1

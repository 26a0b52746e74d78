"""The held-out loss of a run at several widths of its average, to choose one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from undiffuse.data import Dataset
from undiffuse.distillation.mmd_options import MMDOptions
from undiffuse.distillation.options import FlowMapOptions
from undiffuse.errors import DataError
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.models import Model
from undiffuse.training.build import make_objective
from undiffuse.training.degrade import make_transforms
from undiffuse.training.folder import write_text
from undiffuse.training.latents import encode_data
from undiffuse.training.posthoc import SNAPSHOTS, combination_for, reconstruct_ema, snapshots_in
from undiffuse.training.recipe import Recipe
from undiffuse.training.run import choose, hold_out
from undiffuse.training.validation import Validation

WIDTHS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.15, 0.20, 0.25)
"""Widths that a sweep compares by default."""

SWEEP = f"{SNAPSHOTS}/sweep.json"  # its place in a run's folder
_TASK = "sweep"


@dataclass(frozen=True)
class WidthLoss:
    """Held-out loss of the average of a width, and how far the average is from that width; see `Combination`."""

    width: float
    loss: float
    misfit: float


def sweep_ema(
    run_folder: str | Path,
    widths: Sequence[float] = WIDTHS,
    *,
    items: int = 2048,
    device: torch.device | str = "cpu",
    listener: Listener = silent,
) -> list[WidthLoss]:
    """Measure the held-out loss at several widths, on the same draws, and write `ema/sweep.json`.

    Args:
        run_folder: A run with snapshots, whose data can still be read.
        widths: Relative widths, each in (0, 0.288).
        items: Number of draws of item, noise level and noise.
        device: Where to compute.
        listener: Hears about progress.

    Raises:
        CheckpointError: No model or no snapshots.
        DataError: The run held nothing out, or its data are gone.
        ValueError: A width is out of range.
    """
    folder = Path(run_folder)
    snapshots = snapshots_in(folder)
    misfits = [combination_for(snapshots, width).misfit for width in widths]  # first: it refuses bad widths
    recipe, dataset = choose(None, folder / "recipe.yaml", [])
    measure = _measure(recipe, dataset, reconstruct_ema(folder, widths[0]), items, torch.device(device))
    listener(Started(_TASK, len(widths), "width"))
    rows = []
    for width, misfit in zip(widths, misfits, strict=True):
        denoiser = reconstruct_ema(folder, width).to(device).module
        rows.append(WidthLoss(width, measure(denoiser)["loss"], misfit))
        listener(Advanced(_TASK, len(rows)))
    facts = {"step": snapshots[-1].step, "items": items, "rows": [asdict(row) for row in rows]}
    write_text(folder / SWEEP, json.dumps(facts, indent=1) + "\n")
    listener(Finished(_TASK))
    return rows


def _measure(recipe: Recipe, dataset: Dataset, model: Model, items: int, device: torch.device) -> Validation:
    held_out = hold_out(recipe, dataset)[1]
    if held_out is None:
        raise DataError("this run held no data out (data.holdout=0), so there is nothing to compare widths on.")
    transforms = make_transforms(recipe.data, held_out.spec, model.codec)
    if model.codec is not None and transforms.codec is None:
        held_out = encode_data(model.codec, held_out, device, silent)
    if isinstance(recipe.objective, MMDOptions):
        raise DataError("objective=mmd has no loss on held-out items, so there is nothing to compare widths by.")
    if isinstance(recipe.objective, FlowMapOptions):
        raise DataError(
            f"the loss of objective={recipe.objective.kind} depends on what the run has learned beside its model, such "
            f"as targets and rounds, so it does not compare widths; draw samples of each and undiffuse evaluate them."
        )
    objective = make_objective(recipe.objective, model.module, recipe.train.steps)
    return Validation(objective.to(device), held_out, items=items, device=device, transforms=transforms)

"""What a run is about to do, in lines for people."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from undiffuse.data import Dataset
from undiffuse.errors import ConfigError
from undiffuse.spec import DataSpec
from undiffuse.training.memory import Footprint, data_bytes, footprint
from undiffuse.training.recipe import Recipe
from undiffuse.words import human_bytes


@dataclass(frozen=True)
class Plan:
    """Lines for people, and the figures in them."""

    lines: tuple[str, ...]
    footprint: Footprint


def plan(
    recipe: Recipe, dataset: Dataset, held_out: int = 0, processes: int = 1, latent: DataSpec | None = None
) -> Plan:
    """Return the plan of a run: what was seen, network, objective, steps, memory.

    Args:
        recipe: Resolved recipe.
        dataset: The training part.
        held_out: Number of items held out.
        processes: Data-parallel processes.
        latent: What the denoiser works on, where that is not the data.

    Raises:
        ConfigError: The network does not fit the data.
    """
    try:
        need = footprint(recipe, latent or dataset.spec, processes, told=latent is not None)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    train = recipe.train
    held = human_bytes(data_bytes(dataset))
    passes = _passes(train.steps * train.batch_size, dataset)
    lines = (
        *(f"data     {line}" for line in dataset.summary()),
        *([f"held out {held_out} items"] if held_out else []),
        *([f"codec    {recipe.codec.kind}, to latents of {latent_words(latent)}"] if latent else []),
        *(_scale(recipe) if latent else []),
        *_augmentation(recipe),
        f"network  {recipe.model.kind}, {need.parameters:,} parameters",
        f"process  {_process(recipe)}, objective {recipe.objective.kind}",
        f"steps    {train.steps:,} of {train.batch_size} items ({passes}), rate {train.lr:g}",
        f"memory   about {human_bytes(need.bytes)} beside {held} of data; {torch.get_num_threads()} thread(s)",
    )
    return Plan(lines, need)


def _scale(recipe: Recipe) -> list[str]:
    """Warn of a deviation that is not that of latents, such as the one a recipe has for pictures."""
    std = getattr(recipe.process, "data_std", 1.0)
    said = f"warning: latents have about unit variance and process.data_std is {std:g}; set process.data_std=1"
    return [] if std == 1 else [said]


def latent_words(latent: DataSpec) -> str:
    """Return the shape of latents in words."""
    sizes = " x ".join(map(str, latent.grid or latent.shape))
    return f"{sizes} numbers of {latent.categories} code vectors" if latent.is_discrete else sizes


def _augmentation(recipe: Recipe) -> list[str]:
    names = ", ".join(recipe.data.augmentations)
    moved = [f"augment  {names}: each with probability {recipe.data.augment:g}, told to the network"]
    spoilt = [f"degrade  {recipe.data.degrade}: given to the network"]
    return [*(moved if recipe.data.augment else []), *(spoilt if recipe.data.degrade else [])]


def _passes(items: int, dataset: Dataset) -> str:
    if getattr(dataset, "endless", False):
        return "of a stream of unknown length"
    return f"{items / max(1, len(dataset)):.3g} passes over the data"


def _process(recipe: Recipe) -> str:
    process = recipe.process
    if process.kind == "gaussian":
        return f"{process.schedule} schedule, predicts {process.prediction}"
    return f"{process.corruption} tokens, {process.keep} schedule"

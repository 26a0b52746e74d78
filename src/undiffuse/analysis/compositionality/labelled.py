"""Classification as a task: labelled pictures, among whose classes is chosen; and what takes them out of the domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.analysis.compositionality.task import Item, Task
from undiffuse.noise import KeyedNoise
from undiffuse.spec import DataSpec


def labelled_task(data: Tensor, labels: Tensor, classes: Sequence[str], name: str = "classes") -> Task:
    """Return the task of naming the class of each item.

    Args:
        data: Items (n, *shape) in data units.
        labels: Their classes, int64 (n,).
        classes: Names of the classes, as the model knows them.
        name: Of the task.

    Raises:
        ValueError: Fewer than two classes, or labels that do not fit.
    """
    if len(labels) != len(data):
        raise ValueError(f"{len(data)} items and {len(labels)} labels; give one for each.")
    if len(classes) < 2:
        raise ValueError(f"classes={list(classes)}: a choice needs two or more.")
    items = tuple(
        Item(images=(row,), texts=tuple(classes), answer=int(label)) for row, label in enumerate(labels.tolist())
    )
    return Task(name=name, items=items, group="object", data=data)


def _level(x: Tensor) -> Tensor:
    """Return the darkest value of each item, (B, 1, 1, 1): its ground."""
    return x.flatten(1).amin(1)[:, None, None, None]


def _shifted(x: Tensor, seed: int) -> Tensor:
    """Move each picture by one pixel, to the left, right, top or bottom by chance; what comes in is ground."""
    sides = (KeyedNoise(seed, range(len(x))).uniform("augment", 0, ())[:, None, None, None] * 4).floor()
    moved = torch.zeros_like(x)
    for number, shift in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        rolled = F.pad(x - _level(x), (1, 1, 1, 1))[
            ..., 1 - shift[0] : x.shape[-2] + 1 - shift[0], 1 - shift[1] : x.shape[-1] + 1 - shift[1]
        ]
        moved = torch.where(sides.to(x) == number, rolled + _level(x), moved)
    return moved


def _blurred(x: Tensor, seed: int) -> Tensor:
    """Take the mean of 3 x 3 pixels; beyond the border is ground."""
    return F.avg_pool2d(F.pad(x - _level(x), (1, 1, 1, 1)), 3, stride=1) + _level(x)


def _noisy(x: Tensor, seed: int) -> Tensor:
    return x + 0.5 * KeyedNoise(seed, range(len(x)), x.device).normal("augment", 1, tuple(x.shape[1:]), x.dtype)


DOMAINS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "shifted by a pixel": _shifted,
    "half contrast": lambda x, seed: (x + 1) / 2 - 1,
    "noise 0.5": _noisy,
    "3 x 3 blur": _blurred,
    "rotated by 90 degrees": lambda x, seed: x.rot90(1, (-2, -1)),
    "inverted": lambda x, seed: -x,
}
"""Name -> what is done to pictures (B, C, H, W) in model units, and a seed."""


def moved_task(task: Task, spec: DataSpec, domain: str, seed: int = 0) -> Task:
    """Return a task with its pictures taken to another domain; see `DOMAINS`.

    Raises:
        ValueError: An unknown domain, or a task whose pictures are not in memory.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain {domain!r} is unknown; choose {', '.join(DOMAINS)}.")
    if task.data is None or spec.range is None:
        raise ValueError(f"the pictures of {task.name} are not in memory with a known range; give a labelled task.")
    low, high = spec.range
    moved = DOMAINS[domain](spec.to_model(task.data), seed)
    # Not `from_model`, which clips: noise may leave the range.
    return replace(task, name=f"{task.name}, {domain}", data=(moved + 1) * (0.5 * (high - low)) + low)

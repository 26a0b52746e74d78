"""The pictures of a task as items of a model: read, cut out and brought to its units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.analysis.compositionality.task import Picture, Task
from undiffuse.errors import DataError
from undiffuse.images.fit import Resize
from undiffuse.images.units import picture_item
from undiffuse.spec import DataSpec


def load_pictures(task: Task, images: Sequence[Picture | int], spec: DataSpec, resize: Resize = "crop") -> Tensor:
    """Return pictures of a task in data units (n, *spec.shape).

    Args:
        task: Whose pictures they are.
        images: Which.
        spec: What the model takes.
        resize: How pictures of another size are made to fit: "crop", "pad" or "stretch".

    Raises:
        DataError: A picture is missing or damaged, or an array of another shape, which the message names.
    """
    return torch.stack([_load(task, image, spec, resize) for image in images])


def _load(task: Task, image: Picture | int, spec: DataSpec, resize: Resize) -> Tensor:
    if isinstance(image, int):
        assert task.data is not None
        return _checked(task.data[image].cpu(), f"picture {image} of {task.name}", spec)
    path = Path(image.file) if task.folder is None else task.folder / image.file
    if not path.is_file():
        raise DataError(f"task {task.name} names {path}, which is not there.")
    if path.suffix == ".npy":
        try:
            values = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise DataError(f"{path} cannot be read as an array of numbers; write it anew.") from error
        return _checked(values, str(path), spec)
    if spec.kind != "image":
        raise DataError(f"{path} is a picture, and the model makes {spec.kind} data {spec.shape}; give .npy files.")
    return picture_item(path, spec, resize, image.box)


def _checked(values: Tensor, name: str, spec: DataSpec) -> Tensor:
    if tuple(values.shape) != tuple(spec.shape):
        raise DataError(f"{name} has shape {tuple(values.shape)}; the model takes {tuple(spec.shape)}.")
    return values.long() if spec.is_discrete else values.float()

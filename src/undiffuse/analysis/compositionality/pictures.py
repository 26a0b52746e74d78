"""The pictures of a task as items of a model: read, cut out and brought to its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.analysis.compositionality.task import Picture, Task
from undiffuse.errors import DataError
from undiffuse.images.fit import Resize, fit
from undiffuse.images.read import load_picture, to_array
from undiffuse.spec import DataSpec

_CHANNELS = {1: "grey", 3: "rgb", 4: "rgba"}


def load_pictures(task: Task, images: Sequence[Picture | int], spec: DataSpec, resize: Resize | None = None) -> Tensor:
    """Return pictures of a task in data units (n, *spec.shape).

    Args:
        task: Whose pictures they are.
        images: Which.
        spec: What the model takes.
        resize: How pictures of another size are made to fit: "crop", "pad" or "stretch"; None: they are refused.

    Raises:
        DataError: A picture is missing, damaged, or of another size, which the message names.
    """
    return torch.stack([_load(task, image, spec, resize) for image in images])


def _load(task: Task, image: Picture | int, spec: DataSpec, resize: Resize | None) -> Tensor:
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
    return _decode(path, image, spec, resize)


def _decode(path: Path, image: Picture, spec: DataSpec, resize: Resize | None) -> Tensor:
    """Return a picture (C, H, W) in data units."""
    channels = _CHANNELS.get(spec.channels)
    if spec.kind != "image" or channels is None:
        raise DataError(f"{path} is a picture, and the model makes {spec.kind} data {spec.shape}; give .npy files.")
    height, width = spec.shape[1:]
    with path.open("rb") as file:
        found = load_picture(file, str(path), channels)  # type: ignore[arg-type]
    if image.box is not None:
        found = found.crop(image.box)
    if found.size != (width, height):
        if resize is None:
            raise DataError(
                f"{path} has {found.width} x {found.height} pixels and the model takes {width} x {height}; "
                "say how it shall fit: resize crop, pad or stretch."
            )
        found = fit(found, height, width, resize)
    pixels = torch.from_numpy(np.array(to_array(found, channels))).permute(2, 0, 1)  # type: ignore[arg-type]
    stored = replace(spec, range=(0.0, 255.0), mean=(), std=())
    return spec.from_model(stored.to_model(pixels.float()[None]))[0]


def _checked(values: Tensor, name: str, spec: DataSpec) -> Tensor:
    if tuple(values.shape) != tuple(spec.shape):
        raise DataError(f"{name} has shape {tuple(values.shape)}; the model takes {tuple(spec.shape)}.")
    return values.long() if spec.is_discrete else values.float()

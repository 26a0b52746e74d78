"""Samples as files: what a person can open, with what makes them again beside or inside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from undiffuse.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.spec import DataSpec

_MOST_IN_GRID = 400
_BETWEEN_TEXTS = "\n\n----\n\n"


@dataclass(frozen=True)
class Saved:
    """The file to look at first, and all of them."""

    main: Path
    files: list[Path]


def save_samples(samples: Tensor, spec: DataSpec, folder: Path, made_by: dict[str, Any]) -> Saved:
    """Write samples in data units (N, *shape) into `folder`; names carry the seed and the number.

    Args:
        samples: Images become PNG files and a grid of the first 400, token ids texts, all else one .npy file.
        spec: What they are.
        folder: Where to; made if missing.
        made_by: What makes them again, with "n" and "seed".

    Raises:
        OSError: The folder or a file cannot be written; files under their final names are whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"seed{made_by['seed']}"
    if spec.kind == "image":
        return _save_images(samples, spec, folder, stem, made_by)
    described = folder / f"samples-{stem}.json"
    write_whole(described, lambda file: file.write_text(json.dumps(made_by, indent=1), encoding="utf-8"))
    main = _save_texts(samples, spec, folder, stem) if spec.is_discrete else _save_array(samples, folder, stem)
    return Saved(main, [main, described])


def _save_images(samples: Tensor, spec: DataSpec, folder: Path, stem: str, made_by: dict[str, Any]) -> Saved:
    from undiffuse.images import image_grid, write_image

    bounds = spec.range or (float(samples.min()), float(samples.max()) + 1e-9)
    width = max(5, len(str(len(samples) - 1)))
    files = [folder / f"{stem}-{number:0{width}d}.png" for number in range(len(samples))]
    labels = (made_by["cond"] or {}).get("label")
    for number, path in enumerate(files):
        pixels = image_grid(samples[number : number + 1], pad=0, scale=1, bounds=bounds)
        own = {"number": number} | ({"label": labels[number]} if labels else {})
        write_image(path, pixels, made_by | {"cond": None} | own if labels else made_by | own)
    grid = folder / f"grid-{stem}-n{len(samples)}.png"
    write_image(grid, image_grid(samples[:_MOST_IN_GRID], bounds=bounds), made_by)
    return Saved(grid, [grid, *files])


def _save_texts(samples: Tensor, spec: DataSpec, folder: Path, stem: str) -> Path:
    from undiffuse.data import decode_text

    path = folder / f"samples-{stem}-n{len(samples)}.txt"
    texts = _BETWEEN_TEXTS.join(decode_text(row, spec) for row in samples.cpu())
    write_whole(path, lambda file: file.write_bytes(f"{texts}\n".encode()))
    return path


def _save_array(samples: Tensor, folder: Path, stem: str) -> Path:
    path = folder / f"samples-{stem}-n{len(samples)}.npy"
    write_whole(path, lambda file: _write_array(file, samples.cpu().numpy()))
    return path


def _write_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, numpy would append its own suffix
        np.save(file, array)

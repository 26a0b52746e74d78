"""Samples as files: what a person can open, with what makes them again beside or inside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from undiffuse.cli.conditions import of_sample
from undiffuse.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.spec import DataSpec

_MOST_IN_GRID = 400
_MOST_MOVING = 64  # videos in a moving grid
_BETWEEN_TEXTS = "\n\n----\n\n"


@dataclass(frozen=True)
class Saved:
    """The file to look at first, and all of them."""

    main: Path
    files: list[Path]


def save_samples(
    samples: Tensor, spec: DataSpec, folder: Path, made_by: dict[str, Any], movie: str | None = None
) -> Saved:
    """Write samples in data units (N, *shape) into `folder`; names carry the seed and the number.

    Args:
        samples: Images become PNG files and a grid of the first 400, tokens texts (ids of an array also that), all else
            one .npy file; beside it videos become moving pictures, volumes .nii.gz files (where nibabel is installed)
            and slices, signals with a rate .wav files, and plots.
        spec: What they are.
        folder: Where to; made if missing.
        made_by: What makes them again, with "n" and "seed".
        movie: Format of videos: "gif" (also by None), "mp4", or "png" for strips of their frames.

    Raises:
        ValueError: `movie` is given for data that are no videos, or unknown.
        OSError: The folder or a file cannot be written; files under their final names are whole.
    """
    from undiffuse.data.token_arrays import has_ids

    check_format(movie, spec)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"seed{made_by['seed']}"
    if spec.kind == "image":
        return _save_images(samples, spec, folder, stem, made_by)
    described = folder / f"samples-{stem}.json"
    write_whole(described, lambda file: file.write_text(json.dumps(made_by, indent=1), encoding="utf-8"))
    files = [_save_texts(samples, spec, folder, stem)] if spec.is_discrete else []
    if not spec.is_discrete or has_ids(spec):
        files.insert(0, _save_array(samples.unflatten(1, spec.grid) if spec.grid else samples, folder, stem))
    files = [*_save_views(samples, spec, folder, stem, made_by, movie), *files, described]
    return Saved(files[0], files)


def check_format(movie: str | None, spec: DataSpec) -> None:
    """Refuse a format of videos that is unknown, or of no use for the data.

    Raises:
        ValueError: Says which formats there are.
    """
    if movie is None:
        return
    if spec.kind != "video":
        raise ValueError(f"--format {movie} is for videos; this model makes {spec.noun}. Leave it out.")
    if movie not in ("gif", "mp4", "png"):
        raise ValueError(f"--format {movie!r} is unknown; use gif, mp4 or png.")


def _save_views(
    samples: Tensor, spec: DataSpec, folder: Path, stem: str, made_by: dict[str, Any], movie: str | None
) -> list[Path]:
    """Write what can be opened beside the array; the file to look at first comes first."""
    if spec.kind == "video":
        return _save_movies(samples, spec, folder, stem, made_by, movie or "gif")
    if spec.kind == "volume":
        return _save_volumes(samples, spec, folder, stem, made_by)
    return _save_signals(samples, spec, folder, stem, made_by) if spec.kind == "signal" else []


def _save_movies(
    samples: Tensor, spec: DataSpec, folder: Path, stem: str, made_by: dict[str, Any], movie: str
) -> list[Path]:
    from undiffuse.images import film_strips, image_grid, movie_grid, write_image, write_movie

    bounds = _bounds(samples, spec)
    grid = folder / f"grid-{stem}-n{len(samples)}.{movie}"
    files = _numbered(folder, stem, len(samples), movie)
    if movie == "png":
        write_image(grid, film_strips(samples, bounds), made_by)
        for path, video in zip(files, samples, strict=True):
            write_image(path, image_grid(video, columns=len(video), pad=0, scale=1, bounds=bounds), made_by)
        return [grid, *files]
    write_movie(grid, movie_grid(samples[:_MOST_MOVING], bounds), spec.rate)
    for path, video in zip(files, samples, strict=True):
        frames = [image_grid(frame[None], pad=0, scale=1, bounds=bounds) for frame in video]
        write_movie(path, np.stack(frames), spec.rate)
    return [grid, *files]


def _save_volumes(samples: Tensor, spec: DataSpec, folder: Path, stem: str, made_by: dict[str, Any]) -> list[Path]:
    from importlib.util import find_spec

    from undiffuse.data.volumes import write_nifti
    from undiffuse.images import slices, write_image

    picture = folder / f"slices-{stem}-n{len(samples)}.png"
    write_image(picture, slices(samples, _bounds(samples, spec)), made_by)
    if find_spec("nibabel") is None:
        return [picture]
    files = _numbered(folder, stem, len(samples), "nii.gz")
    for path, volume in zip(files, samples, strict=True):
        write_nifti(path, volume.cpu().numpy())
    return [picture, *files]


def _save_signals(samples: Tensor, spec: DataSpec, folder: Path, stem: str, made_by: dict[str, Any]) -> list[Path]:
    from undiffuse.data.signals import write_wav
    from undiffuse.images import curves, write_image

    picture = folder / f"plot-{stem}-n{len(samples)}.png"
    write_image(picture, curves(samples, spec.range), made_by)
    if not spec.rate or spec.range != (-1.0, 1.0):
        return [picture]
    files = _numbered(folder, stem, len(samples), "wav")
    for path, signal in zip(files, samples.cpu().numpy(), strict=True):
        write_whole(path, partial(write_wav, values=signal, rate=spec.rate))
    return [picture, *files]


def _numbered(folder: Path, stem: str, count: int, suffix: str) -> list[Path]:
    width = max(5, len(str(count - 1)))
    return [folder / f"{stem}-{number:0{width}d}.{suffix}" for number in range(count)]


def _bounds(samples: Tensor, spec: DataSpec) -> tuple[float, float]:
    return spec.range or (float(samples.min()), float(samples.max()) + 1e-9)


def _save_images(samples: Tensor, spec: DataSpec, folder: Path, stem: str, made_by: dict[str, Any]) -> Saved:
    from undiffuse.images import image_grid, write_image

    bounds = _bounds(samples, spec)
    files = _numbered(folder, stem, len(samples), "png")
    for number, path in enumerate(files):
        pixels = image_grid(samples[number : number + 1], pad=0, scale=1, bounds=bounds)
        own = of_sample(made_by["cond"], number, spec)
        label = {"label": own.pop("label")} if "label" in own else {}
        write_image(path, pixels, made_by | {"number": number, "cond": own or None} | label)
    grid = folder / f"grid-{stem}-n{len(samples)}.png"
    write_image(grid, image_grid(samples[:_MOST_IN_GRID], bounds=bounds), made_by)
    return Saved(grid, [grid, *files])


def _save_texts(samples: Tensor, spec: DataSpec, folder: Path, stem: str) -> Path:
    from undiffuse.data import decode_text, write_rows

    if spec.columns:
        table = folder / f"samples-{stem}-n{len(samples)}.csv"
        write_whole(table, lambda file: write_rows(file, samples.cpu(), spec))
        return table
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

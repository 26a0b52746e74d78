"""Data that need no file of the user's: digits, also moving, points, signals, kernels of blurs, a little prose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import resources

import numpy as np

from undiffuse.data.arrays import make_array_dataset
from undiffuse.data.dataset import IndexedDataset, TensorDataset
from undiffuse.data.listing import list_photographs
from undiffuse.data.options import DataOptions
from undiffuse.data.pictures import open_pictures
from undiffuse.data.synthetic import limited, load_digits, open_kernels, open_moving_digits, open_waves
from undiffuse.data.text import TextDataset, open_text
from undiffuse.spec import DataSpec

_POINTS = 20_000
_DIGITS_HELD_OUT = 400  # of 1797, as the figures of the documentation are measured


def open_embedded(source: str, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset | TextDataset:
    """Return the data set of a name in `EMBEDDED`.

    Raises:
        DataError: An option has no use for it, or it does not fit the model.
    """
    return EMBEDDED[source](options, spec)


def mixture3(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw points (N, 2) of three round Gaussians: weights .3 .4 .3, deviations .3 .5 .4."""
    means = np.array([(-1.0, 0.5), (1.0, 0.0), (0.3, -1.2)])
    component = rng.choice(3, size=count, p=(0.3, 0.4, 0.3))
    return means[component] + np.array((0.3, 0.5, 0.4))[component, None] * rng.standard_normal((count, 2))


def moons(count: int, rng: np.random.Generator, noise: float = 0.05) -> np.ndarray:
    """Draw points (N, 2) of two interleaved half circles of radius 1, with Gaussian noise."""
    angle = rng.uniform(0.0, math.pi, count)
    upper = rng.random(count) < 0.5
    x = np.where(upper, np.cos(angle), 1.0 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack((x, y), axis=1) + noise * rng.standard_normal((count, 2))


def _open_digits(options: DataOptions, spec: DataSpec | None) -> TensorDataset:
    """Return 1797 scanned digits (1, 8, 8) of 0..16."""
    options.refuse_others("the digits", ("flip",))
    images, labels = load_digits()
    rows = limited(len(images), options)
    chosen = [labels[row] for row in rows]
    digits = make_array_dataset(
        images[rows, None], "image", "digits", chosen, spec, bounds=(0.0, 16.0), flip=options.flip
    )
    return digits if options.limit else replace(digits, default_holdout=float(_DIGITS_HELD_OUT))


def _points(name: str, draw: Callable[[int, np.random.Generator], np.ndarray]) -> Callable[..., TensorDataset]:
    def open_points(options: DataOptions, spec: DataSpec | None) -> TensorDataset:
        options.refuse_others(name, ())
        points = draw(options.limit or _POINTS, np.random.Generator(np.random.PCG64(0)))
        return make_array_dataset(points.astype(np.float32), "vector", name, spec=spec)

    return open_points


def _open_prose(options: DataOptions, spec: DataSpec | None) -> TextDataset:
    """Return a few pages of plain English about rivers, weather and sand, written for this library."""
    with resources.as_file(resources.files("undiffuse.data") / "builtin" / "prose.txt") as path:
        return open_text(path, options, spec)


def _open_photographs(options: DataOptions, spec: DataSpec | None) -> IndexedDataset:
    """Return the photographs of scikit-image, a handful of different sizes, where it is installed."""
    return open_pictures(list_photographs(), options, spec)


EMBEDDED: dict[str, Callable[[DataOptions, DataSpec | None], IndexedDataset | TextDataset]] = {
    "digits": _open_digits,
    "moons": _points("moons", moons),
    "mixture3": _points("mixture3", mixture3),
    "prose": _open_prose,
    "photographs": _open_photographs,
    "video-digits": open_moving_digits,
    "waves": open_waves,
    "kernels": open_kernels,
}

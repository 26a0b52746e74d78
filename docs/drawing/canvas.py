"""What the pictures of the documentation share: colours, panels of pixels, plots, and how a figure is saved."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import undiffuse as ud
from undiffuse.images import image_grid

INK, GREY, FAINT = "#1f2328", "#8c959f", "#d8dee4"
COLOURS = {"blue": "#3056d3", "red": "#d1453b", "green": "#1a7f5a", "amber": "#b7791f", "violet": "#8250df"}
PIXEL, PAD = 4, 4  # side of an enlarged pixel of a digit; paper between digits
TILE = 8 * PIXEL + PAD
_LARGEST = 60_000  # bytes of a picture


class Drawn(NamedTuple):
    """A figure, and the numbers in it."""

    figure: Figure
    numbers: dict[str, Any]


def class_rows(model: ud.Model, columns: int, scale: float, **sampler: Any) -> np.ndarray:
    """A grid with one row per class, uint8 (H, W, 1)."""
    labels = [label for label in range(len(model.spec.classes)) for _ in range(columns)]
    images = model.sample(len(labels), seed=0, cond={"label": labels}, guidance=scale, **sampler)
    return ink_on_paper(images, columns, model.spec.range or (-1.0, 1.0))


def ink_on_paper(images: Tensor, columns: int, bounds: tuple[float, float], pixel: int = PIXEL) -> np.ndarray:
    """Lay images (N, 1, 8, 8) out in rows, dark on white, uint8 (H, W, 1): strokes touch the edges of these images."""
    return 255 - image_grid(images, columns, pad=PAD, scale=pixel, bounds=bounds, background=0)


def picture_panels(panels: list[np.ndarray], titles: list[str], rows: tuple[str, ...]) -> Figure:
    """Pictures side by side under their titles, with a label per row; every pixel of theirs is one of the figure's."""
    height, width = panels[0].shape[:2]
    left, top, gap = 34, 18 + 16 * (1 + max(title.count("\n") for title in titles)), 22
    figure = pixel_figure(left + len(panels) * (width + gap), top + height + 6)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        x = left + number * (width + gap)
        paste(figure, panel, x, 6)
        write(figure, title, x + width / 2, height + 12, va="bottom", ha="center")
    for row, name in enumerate(rows):
        write(figure, name, left - 12, 6 + height - (row + 0.5) * TILE, va="center", ha="right")
    return figure


def stacked_panels(panels: list[np.ndarray], titles: list[str], columns: list[str]) -> Figure:
    """Pictures under each other, with a time per column above the first, where there are any."""
    height, width = panels[0].shape[:2]
    block, left = height + 34, 40
    figure = pixel_figure(width + left + 10, len(panels) * block + 26)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        bottom = (len(panels) - 1 - number) * block + 6
        paste(figure, panel, left, bottom)
        write(figure, title, left + 2, bottom + height + 6, va="bottom", ha="left")
    above = len(panels) * block + 4
    if columns:
        write(figure, "t =", left - 6, above, va="bottom", ha="right")
    for column, name in enumerate(columns):
        write(figure, name, left + (column + 0.5) * width / len(columns), above, va="bottom", ha="center")
    return figure


def scatter(axes: Axes, points: Tensor, colour: str, title: str, frame: Tensor) -> None:
    """Points in the square where `frame` has points, axes left out."""
    low, high = frame.amin(0), frame.amax(0)
    middle, half = 0.5 * (low + high), 0.54 * float((high - low).max())
    axes.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
    axes.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
    axes.scatter(points[:, 0], points[:, 1], s=1.2, color=colour, linewidths=0, alpha=0.6)
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_aspect("equal")
    axes.set_axis_off()


def pixel_figure(width: int, height: int) -> Figure:
    """An empty figure of whole pixels."""
    return plt.figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")


def paste(figure: Figure, pixels: np.ndarray, x: int, y: int) -> None:
    """Put uint8 pixels (H, W, 1) into a figure, unscaled, the lower left corner at (x, y)."""
    grey = pixels[..., 0] / 255.0
    figure.figimage(np.repeat(grey[..., None], 3, axis=2), x, y, origin="upper")


def write(figure: Figure, text: str, x: float, y: float, **alignment: Any) -> None:
    """Write at a place given in pixels."""
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, y / height, text, fontsize=9, color=INK, linespacing=1.4, **alignment)


def plot_figure(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, sizes in inches."""
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": GREY, "xtick.color": INK, "ytick.color": INK})
    figure, axes = plt.subplots(1, count, figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    found = list(np.atleast_1d(axes))
    for one in found:
        one.spines[["top", "right"]].set_visible(False)
        one.xaxis.label.set_color(INK)
        one.yaxis.label.set_color(INK)
    return figure, found


def save(figure: Figure, path: Path) -> int:
    """Write a PNG of few colours and return its size in bytes.

    Raises:
        ValueError: The picture is larger than a page should carry.
    """
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi)
    plt.close(figure)
    picture = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    size = path.stat().st_size
    if size > _LARGEST:
        raise ValueError(f"{path} has {size} bytes; at most {_LARGEST} are wanted: draw less of it.")
    return size

"""Pictures of measurements and of restoration."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from drawing.canvas import Drawn, ink_on_paper, pixel_figure, stacked_panels, write

import undiffuse as ud
from undiffuse.images import image_grid
from undiffuse.papers.restoring import digits_bench
from undiffuse.report.restore_bench import spread_figure


def draw_operators() -> Drawn:
    """One photograph of scikit-learn under every operator that gives a picture."""
    from sklearn.datasets import load_sample_image

    from undiffuse.operators import OPERATORS, parse_operator
    from undiffuse.operators.view import pictures_of

    side, wide, tall, columns = 64, 108, 88, 6
    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()[60:380, 190:510]).permute(2, 0, 1)[None] / 127.5 - 1
    x = torch.nn.functional.interpolate(photo, size=(side, side), mode="area")
    asked = {"blur:motion": "blur:motion,15", "mri": "mri:radial", "ct": "ct:60", "lowlight": "lowlight:0.1"}
    left_out = ("mask", "blur:kernel", "scale", "average-frames", "cs:hadamard", "cs:dct", "cs:gaussian")
    tiles = {"the photograph": x[0]}
    for name in (name for name in OPERATORS if name not in left_out):
        item = x.mean(1, keepdim=True) if name in ("mri", "ct", "phase-retrieval") else x
        made = parse_operator(asked.get(name, name), tuple(item.shape[1:]))
        tiles[name] = pictures_of(made, made(item)[0])[-1]
    rows = -(-len(tiles) // columns)
    figure = pixel_figure(columns * wide, rows * tall)
    for number, (name, picture) in enumerate(tiles.items()):
        across, up = number % columns * wide + 4, (rows - 1 - number // columns) * tall
        scale = max(1, side // picture.shape[-1])
        pixels = image_grid(picture[None].float(), pad=0, scale=scale, bounds=(-1.0, 1.0))
        colours = np.broadcast_to(pixels if pixels.ndim == 3 else pixels[..., None], (*pixels.shape[:2], 3))
        off = max(0, (len(colours) - side) // 2)
        figure.figimage(colours[off : off + side, off : off + side], across, up + 16, origin="upper")
        write(figure, name, across, up + 3)
    return Drawn(figure, {"operators": len(tiles) - 1})


_METHODS = {"mmps": 50, "pigdm": 50, "ddrm": 50, "diffpir": 50, "dps": 50, "repaint": 30, "red-diff-quality": 200}


def draw_spread() -> Drawn:
    """PSNR of one sample against the spread, digits with half of the pixels missing and their exact prior."""
    bench = digits_bench(quick=False, seed=0)
    trial = bench.trial("inpaint50", 0.05)
    rows = [bench.exact(trial), *(bench.row(trial, name, name, steps) for name, steps in _METHODS.items())]
    figure = spread_figure(rows)
    assert figure is not None
    figure.set_facecolor("white")
    return Drawn(figure, {row.method: [row.psnr, row.exact_spread, row.energy] for row in rows})


def draw_restored() -> Drawn:
    """Digits, what was measured of them, a sample, the mean of eight, and their standard deviation; and RED-diff's."""
    bench = digits_bench(quick=False, seed=0)
    bench = dataclasses.replace(bench, clean=bench.clean[:10])
    trial = bench.trial("inpaint50", 0.05)
    how: dict[str, Any] = {"noise_std": 0.05, "samples": 8, "batch_size": 80}
    found = ud.restore(bench.model, trial.y, trial.operator, "mmps", steps=50, **how)
    sharp = ud.restore(bench.model, trial.y, trial.operator, "red-diff-quality", steps=200, **how)
    widest = float(found.std.max())
    rows = {
        "the truth": trial.clean,
        "what was measured": torch.where(trial.operator.singulars() > 0, trial.y, -1.0),  # type: ignore[attr-defined]
        "mmps: one sample": found.samples[0],
        "mmps: mean of eight": found.mean,
        "mmps: standard deviation": 2 * found.std / widest - 1,
        "red-diff-quality: one answer": sharp.samples[0],
        "red-diff-quality: standard deviation, same scale": 2 * sharp.std / widest - 1,
    }
    panels = [ink_on_paper(x.float(), 10, (-1.0, 1.0)) for x in rows.values()]
    return Drawn(stacked_panels(panels, list(rows), []), {"largest standard deviation": widest})


def draw_photograph() -> Drawn:
    """A part of a photograph larger than the model, scratched, blurred and noisy, restored tile by tile."""
    from undiffuse.images import photograph, read_image
    from undiffuse.metrics.restoration import psnr
    from undiffuse.operators import Mask, gaussian_blur

    side, wide, tall = 96, 150, 128
    pixels = torch.from_numpy(read_image(photograph("chelsea"), "rgb")).permute(2, 0, 1)[None] / 127.5 - 1
    x = torch.nn.functional.interpolate(pixels[..., 40:232, 70:262], size=(side, side), mode="area")
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    scratches = ((rows + 2 * columns) % 31 > 2) & ((3 * rows - columns) % 47 > 2)
    shape = tuple(x.shape[1:])
    problems = {
        "scratched": Mask(shape, scratches[None].float()),
        "blurred": gaussian_blur(shape, sigma=1.5),
    }
    model, noise = ud.load("cifar10"), 0.02
    figure, numbers = pixel_figure(4 * wide, len(problems) * tall), {}
    for number, (name, operator) in enumerate(problems.items()):
        y = operator(x) + noise * torch.randn(shape, generator=torch.Generator().manual_seed(number))
        y = y * scratches if name == "scratched" else y
        found = ud.restore(model, y, operator, "mmps", noise_std=noise, samples=4, steps=20)
        numbers[name] = {"given": float(psnr(y, x)), "restored": float(psnr(found.mean, x)), "nfe": found.nfe}
        shown = torch.where(scratches, y, -1.0) if name == "scratched" else y
        spread = found.std.mean(1, keepdim=True).expand_as(x)
        panels = {
            "the photograph": x,
            f"{name}, {numbers[name]['given']:.1f} dB": shown,
            f"restored, {numbers[name]['restored']:.1f} dB": found.mean,
            "standard deviation": 2 * spread / spread.max() - 1,
        }
        bottom = (len(problems) - 1 - number) * tall
        for column, (title, picture) in enumerate(panels.items()):
            drawn = image_grid(picture.float(), pad=0, scale=1, bounds=(-1.0, 1.0))
            figure.figimage(drawn, column * wide + 8, bottom + 22, origin="upper")
            write(figure, title, column * wide + 8, bottom + 6)
    return Drawn(figure, numbers)

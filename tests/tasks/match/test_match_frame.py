"""Coordinates: one convention, kept through padding, scaling and cells; and pictures of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.errors import DataError
from undiffuse.tasks.match.frame import Frame, check_points, read_mask, read_picture, read_points

SIZES = [(30, 50), (50, 30), (31, 31), (7, 23)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", [(8, 8), (15, 15), (60, 60)])
def test_a_point_comes_back_within_its_cell(size: tuple[int, int], grid: tuple[int, int]):
    frame = Frame.around(size)
    side = max(size)
    assert (frame.rows, frame.columns) == (side, side)
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform(-0.5, np.array([size[1], size[0]]) - 0.5, (200, 2)))
    cells = frame.cells(points, grid)
    back = frame.centres(grid)[cells]
    assert float((back - points).norm(dim=1).max()) <= side / grid[0] / 2 * 2**0.5 + 1e-9
    assert bool(frame.inside(grid)[cells].all())
    every = frame.centres(grid)
    assert bool((every >= -0.5).all())
    assert bool((every <= torch.tensor([size[1], size[0]]) - 0.5).all())  # of cells in the padding, too


@pytest.mark.parametrize("size", SIZES)
def test_centres_of_pixels_are_whole_numbers_and_survive_the_padding(size: tuple[int, int]):
    frame = Frame.around(size)
    grid = (frame.rows, frame.columns)  # one cell for each pixel of the canvas
    whole = torch.tensor([[0, 0], [size[1] - 1, size[0] - 1], [2, 5]], dtype=torch.float64)
    torch.testing.assert_close(frame.centres(grid)[frame.cells(whole, grid)], whole, atol=1e-6, rtol=0)
    assert int(frame.inside(grid).sum()) == size[0] * size[1]


def test_the_canvas_shows_the_picture_where_the_coordinates_say():
    pixels = torch.full((1, 20, 40), -0.5)
    pixels[0, 6, 31] = 1.0
    frame = Frame.around((20, 40))
    for scale in (1, 2):
        canvas = frame.canvas(pixels, (40 * scale, 40 * scale))
        brightest = int(canvas[0].argmax())
        cell = int(frame.cells(torch.tensor([[31.0, 6.0]], dtype=torch.float64), (40, 40)))
        assert (brightest // (40 * scale) // scale, brightest % (40 * scale) // scale) == divmod(cell, 40)
    torch.testing.assert_close(frame.crop(frame.canvas(pixels, (40, 40))), pixels)
    assert float(frame.canvas(pixels, (40, 40))[0, 0].max()) == -1.0  # black padding


def test_a_canvas_of_other_proportions_holds_the_picture():
    frame = Frame.around((30, 30), ratio=0.5)
    assert (frame.rows, frame.columns) == (30, 60)
    assert (frame.top, frame.left) == (0, 15)


def test_points_outside_are_listed():
    with pytest.raises(ValueError, match=r"2 of 3 points lie outside it.png of 10 x 8 pixels: number 2 \(10, 0\)"):
        check_points([[0, 0], [10, 0], [3, -1]], (8, 10), "it.png")
    with pytest.raises(ValueError, match="NaN"):
        check_points([[0, float("nan")]], (8, 10))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        check_points([], (8, 10))


def test_pictures_of_every_mode_and_kind(tmp_path: Path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    for mode, channels in (("RGB", 3), ("L", 1), ("1", 1), ("P", 3), ("CMYK", 3), ("RGBA", 3)):
        image = Image.fromarray(colours).convert(mode)
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        image.save(path)
        picture = read_picture(path)
        assert tuple(picture.pixels.shape) == (channels, 6, 9)
        assert tuple(picture.channels(1).shape) == (1, 6, 9)
        assert tuple(picture.channels(3).shape) == (3, 6, 9)
    torch.testing.assert_close(read_picture(colours).pixels, read_picture(tmp_path / "RGB.png").pixels)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        read_picture(tmp_path / "bad.png")
    with pytest.raises(ValueError, match=r"from 0 to 16; expected \[-1, 1\]"):
        read_picture(torch.tensor([[[0.0, 16.0]]]), "the source")
    with pytest.raises(ValueError, match="expected a file"):
        read_picture(np.zeros((4, 4)))


def test_masks_and_lists_of_points(tmp_path: Path):
    mask = torch.zeros(4, 6)
    with pytest.raises(ValueError, match="empty"):
        read_mask(mask, (4, 6))
    mask[1, 2] = 1
    with pytest.raises(ValueError, match="same size"):
        read_mask(mask, (6, 4))
    assert int(read_mask(mask, (4, 6)).sum()) == 1
    table = tmp_path / "points.csv"
    table.write_text("name,y,x\nnose,2,1\neye,4.5,3\n")
    points, names = read_points(table)
    assert points.tolist() == [[1, 2], [3, 4.5]]
    assert names == ("nose", "eye")
    table.write_text("1,2\n\n3,4\n")
    assert read_points(table)[0].tolist() == [[1, 2], [3, 4]]
    assert read_points(table)[1] == ("1", "2")
    table.write_text("1,2\n3,four\n")
    with pytest.raises(DataError, match=r"line 2 of .*3,four"):
        read_points(table)
    table.write_text("")
    with pytest.raises(DataError, match="no points"):
        read_points(table)

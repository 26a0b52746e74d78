"""Pictures of what is no picture: strips, moving grids, slices, curves."""

from __future__ import annotations

import numpy as np
import torch

from undiffuse.images import curves, film_strips, image_grid, movie_grid, slices

BOUNDS = (0.0, 255.0)


def ramp(*shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape) % 256


def test_a_strip_is_the_grid_of_its_frames():
    videos = ramp(3, 5, 1, 8, 8)
    assert np.array_equal(film_strips(videos, BOUNDS), image_grid(videos.flatten(0, 1), columns=5, bounds=BOUNDS))
    long = film_strips(ramp(2, 100, 1, 8, 8), BOUNDS)
    first_and_last = ramp(2, 100, 1, 8, 8)[:, [0, 99]]
    scale = image_grid(first_and_last[:1, 0], pad=0, bounds=BOUNDS).shape[0]
    tile = long[2 : 2 + scale, -2 - scale : -2]
    assert np.array_equal(tile, image_grid(first_and_last[:1, 1], pad=0, bounds=BOUNDS)), "the last frame comes last"


def test_a_moving_grid_has_a_grid_for_each_frame():
    videos = ramp(4, 3, 3, 8, 8)
    frames = movie_grid(videos, BOUNDS)
    assert frames.dtype == np.uint8
    for number in range(3):
        assert np.array_equal(frames[number], image_grid(videos[:, number], bounds=BOUNDS))


def test_slices_show_the_top_of_a_volume_above():
    volumes = ramp(2, 1, 4, 6, 8)
    expected = volumes.flip(-2).transpose(1, 2).flatten(0, 1)
    assert np.array_equal(slices(volumes, BOUNDS), image_grid(expected, columns=4, bounds=BOUNDS))


def test_curves_rise_where_the_signal_does():
    picture = curves(torch.linspace(-1, 1, 200).view(1, 1, -1), (-1.0, 1.0))
    blue = (picture == (31, 119, 180)).all(-1)
    rows = [float(np.nonzero(blue[:, column])[0].mean()) for column in (20, 240, 460)]
    assert rows[0] > rows[1] > rows[2]
    assert abs(rows[1] - picture.shape[0] / 2) <= 2


def test_curves_of_many_channels_constants_and_nan_are_drawn():
    signals = torch.zeros(20, 6, 30)
    signals[0, 0, 3] = float("nan")
    picture = curves(signals)
    assert picture.shape[2] == 3
    assert (picture != 255).any()
    assert curves(torch.zeros(1, 1, 1)).any()

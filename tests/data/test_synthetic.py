"""Moving digits, waves and kernels: what they are follows from their making."""

from __future__ import annotations

import numpy as np
import torch

from undiffuse.data import DataOptions, open_data
from undiffuse.data.synthetic import bounce


def test_a_ball_bounces_at_both_ends() -> None:
    assert bounce(np.arange(-3, 12), 4).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]


def test_every_frame_holds_the_whole_digit() -> None:
    clips, digits = open_data("video-digits"), open_data("digits")
    assert clips.spec.shape == (8, 1, 16, 16) and len(clips) == len(digits) == 1797
    rows = torch.tensor([0, 5, 1796])
    batch, still = clips.batch(rows), digits.batch(rows)
    assert torch.equal(batch["cond"]["label"], still["cond"]["label"])
    ink = (batch["x"] + 1).sum((2, 3, 4))
    torch.testing.assert_close(ink, (still["x"] + 1).sum((1, 2, 3))[:, None].expand(-1, 8))


def test_digits_move() -> None:
    x = open_data("video-digits").batch(torch.arange(50))["x"]
    assert bool((x[:, 1:] != x[:, :-1]).flatten(2).any(-1).all())


def test_waves_are_bounded_and_have_their_shapes() -> None:
    waves = open_data("waves")
    batch = waves.batch(torch.arange(len(waves)))
    x, label = batch["x"], batch["cond"]["label"]
    assert waves.spec.classes == ("sine", "square", "sawtooth", "chirp") and float(x.abs().max()) <= 1
    square = x[label == waves.spec.classes.index("square")].abs().flatten(1)
    assert float((square.amax(1) - square.amin(1)).max()) < 1e-6


def test_a_limit_takes_a_fixed_choice() -> None:
    few, again = (open_data("waves", DataOptions(limit=5)).batch(torch.arange(5))["x"] for _ in range(2))
    assert len(few) == 5 and torch.equal(few, again)


def test_kernels_are_pictures_with_a_white_pixel() -> None:
    few = open_data("kernels", DataOptions(size=5, limit=300))
    x = few.batch(torch.arange(300))["x"]
    assert few.spec.shape == (1, 5, 5) and few.spec.range == (0.0, 1.0)
    torch.testing.assert_close(x.flatten(1).amax(1), torch.ones(300))
    assert float(x.min()) >= -1
    assert open_data("kernels", DataOptions(limit=3), few.spec).spec.shape == (1, 5, 5)

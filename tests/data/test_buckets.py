"""Buckets: the plan, the pictures in it, and an order that loses none and mixes no shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import DataOptions, open_data, split
from undiffuse.data.buckets import candidate_sizes, cut_away, plan_buckets
from undiffuse.errors import DataError
from undiffuse.training.order import make_order

SIZES = [(16, 24), (24, 16), (20, 20)]
OPTIONS = DataOptions(buckets=True, size=16, bucket_step=4)


def pictures(folder: Path, count: int = 24) -> Path:
    """Pictures whose red level is their number; folders a and b."""
    for number in range(count):
        height, width = SIZES[number % 3]
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        pixels[..., 0] = 10 * number
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


# -- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "step"), [(64, 8), (32, 4), (256, 64), (512, 64), (16, 8), (8, 8)])
def test_sizes_have_the_area_and_come_in_pairs(side: int, step: int):
    sizes = candidate_sizes(side, step)
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert (width, height) in sizes
        assert abs(height * width / side**2 - 1) <= 1 / 3
        assert max(height, width) <= 4 * min(height, width)


def test_a_size_below_the_step_is_refused():
    with pytest.raises(DataError, match=r"data\.size=6 is below data\.bucket_step=8"):
        candidate_sizes(6, 8)


def test_every_picture_goes_to_the_nearest_proportions():
    rng = np.random.default_rng(0)
    found = [(int(h), int(w)) for h, w in rng.integers(20, 200, (300, 2))]
    plan = plan_buckets(found, 64, 8, sizes=candidate_sizes(64, 8))
    sizes = np.array(plan.sizes, dtype=float)
    wanted = np.array([h / w for h, w in found])
    distance = np.abs(np.log(wanted[:, None]) - np.log(sizes[:, 0] / sizes[:, 1]))
    best = distance.min(1)
    assert np.allclose(distance[np.arange(300), list(plan.bucket)], best)


def test_sizes_with_few_pictures_are_given_up_and_none_is_lost():
    found = [(100, 100)] * 98 + [(300, 100), (150, 100)]
    plan = plan_buckets(found, 64, 8)
    assert plan.sizes == ((64, 64),)
    assert plan.bucket == (0,) * 100
    many = plan_buckets([(100, 100)] * 90 + [(300, 100)] * 10, 64, 8)
    assert len(many.sizes) == 2
    assert many.bucket.count(0) == 10  # tallest first
    assert len(many.lines()) == 3
    assert "10 picture(s)" in many.lines()[1]


def test_the_share_cut_away_is_that_of_the_crop():
    assert cut_away((16, 24), (16, 24)) == 0.0
    assert cut_away((32, 24), (16, 24)) == pytest.approx(0.5)  # half of the height
    assert cut_away((16, 48), (16, 24)) == pytest.approx(0.5)
    plan = plan_buckets([(20, 20), (20, 10)], 16, 4, sizes=[(16, 16)])
    assert plan.cut == (pytest.approx(0.25),)


# -- the data set ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_each_picture_comes_in_the_shape_of_its_bucket(tmp_path: Path, lazy: bool):
    dataset = open_data(str(pictures(tmp_path)), DataOptions(**{**vars(OPTIONS), "lazy": lazy}))
    assert dataset.spec.shape == (3, 16, 16)
    assert dataset.spec.sizes == ((20, 12), (16, 16), (12, 20))
    assert dataset.spec.classes == ("a", "b")
    groups = dataset.groups()
    names = sorted(range(24), key=lambda number: ("ab"[number % 2], number))
    for position, number in enumerate(names):
        item = dataset.batch(torch.tensor([position]))
        height, width = SIZES[number % 3]
        expected = {(16, 24): (12, 20), (24, 16): (20, 12), (20, 20): (16, 16)}[height, width]
        assert tuple(item["x"].shape[2:]) == expected == dataset.spec.sizes[groups[position]]
        red = (item["x"][0, 0] + 1) * 127.5
        assert float((red - 10 * number).abs().max()) < 1e-3
        assert int(item["cond"]["label"]) == number % 2
    assert any("3 bucket(s)" in line for line in dataset.summary())


def test_lazy_and_in_memory_agree_and_flips_double(tmp_path: Path):
    path = str(pictures(tmp_path))
    held, read = (
        open_data(path, DataOptions(**{**vars(OPTIONS), "lazy": lazy, "flip": True})) for lazy in (False, True)
    )
    assert len(held) == len(read) == 48
    assert torch.equal(held.groups(), read.groups())
    assert torch.equal(held.groups(), held.groups()[:24].repeat(2))
    for group in range(3):
        positions = (held.groups() == group).nonzero()[:, 0]
        first, second = held.batch(positions), read.batch(positions)
        assert torch.equal(first["x"], second["x"])
        assert torch.equal(first["index"], second["index"])
        assert len(first["index"].unique()) == len(positions)


def test_a_batch_of_two_buckets_is_refused(tmp_path: Path):
    dataset = open_data(str(pictures(tmp_path)), OPTIONS)
    with pytest.raises(ValueError, match="items of one batch are of one bucket"):
        dataset.batch(torch.arange(3))


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_an_epoch_loses_no_picture_and_mixes_no_shapes(tmp_path: Path, batch_size: int):
    training, held_out = split(open_data(str(pictures(tmp_path)), OPTIONS), 3)
    order = make_order(training, seed=0, batch_size=batch_size)
    for epoch in range(3):
        seen: list[int] = []
        shapes = set()
        for step in range(order.batches * epoch, order.batches * (epoch + 1)):
            batch = training.batch(order.positions(step * batch_size + torch.arange(batch_size)))
            assert len(batch["x"]) == batch_size
            shapes.add(tuple(batch["x"].shape[2:]))
            seen += batch["index"].tolist()
        ids = {int(training.batch(torch.tensor([p]))["index"]) for p in range(len(training))}
        assert set(seen) == ids
        assert len(ids) == 21
        assert shapes <= set(training.spec.sizes)
        counts = torch.bincount(training.groups())
        assert len(seen) == int((-(-counts // batch_size)).sum()) * batch_size
    assert not ids & {int(held_out.batch(torch.tensor([p]))["index"]) for p in range(3)}


def test_unreadable_pictures_are_left_out(tmp_path: Path):
    pictures(tmp_path)
    whole = (tmp_path / "a" / "00.png").read_bytes()
    (tmp_path / "a" / "00.png").write_bytes(whole[: len(whole) - 30])  # the head is whole
    options = {**vars(OPTIONS), "max_bad": 0.1}
    for lazy in (False, True):
        dataset = open_data(str(tmp_path), DataOptions(**{**options, "lazy": lazy}))
        for group in range(3):
            positions = (dataset.groups() == group).nonzero()[:, 0]
            assert dataset.batch(positions)["x"].shape[2:] == dataset.spec.sizes[group]
        found = [*dataset.problems, *(dataset.found_late() if lazy else [])]
        assert [problem.path for problem in found] == ["a/00.png"]
        assert len(dataset) == (24 if lazy else 23)


def test_a_model_of_buckets_takes_all_pictures_in_its_square(tmp_path: Path):
    path = str(pictures(tmp_path))
    spec = open_data(path, OPTIONS).spec
    dataset = open_data(path, OPTIONS, spec=spec)
    assert dataset.batch(torch.arange(24))["x"].shape == (24, 3, 16, 16)


def test_pairs_are_refused(tmp_path: Path):
    for folder in ("input", "target"):
        pictures(tmp_path / folder, 4)
    with pytest.raises(DataError, match="not pairs"):
        open_data(str(tmp_path), OPTIONS)

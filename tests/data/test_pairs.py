"""Pairs of pictures: matched by name, cut and mirrored alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.data.files import pixels, save
from undiffuse.data import DataOptions, open_data, split
from undiffuse.errors import DataError


def pair_folders(root: Path, given: str = "input", wanted: str = "target", count: int = 4) -> Path:
    """The given picture is the negative of the wanted one, in another format."""
    for i in range(count):
        clean = pixels(10, 14, seed=i)
        save(root / wanted / f"{i}.png", clean)
        save(root / given / f"{i}.bmp", 255 - clean)
    return root


def check_negatives(dataset, count: int) -> None:
    batch = dataset.batch(torch.arange(len(dataset)))
    assert batch["x"].shape == batch["cond"]["source"].shape
    assert len(batch["x"]) == count
    torch.testing.assert_close(batch["cond"]["source"], -batch["x"])  # also after the same crop and mirror


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("names", [("input", "target"), ("Before", "after"), ("lr", "hr")])
def test_two_folders_are_pairs(tmp_path: Path, names: tuple[str, str], lazy: bool):
    dataset = open_data(str(pair_folders(tmp_path, *names)), DataOptions(size=6, flip=True, lazy=lazy))
    assert dataset.spec.cond["source"].kind == "map" and dataset.spec.cond["source"].width == 3
    assert dataset.spec.classes == ()
    check_negatives(dataset, 8)
    training, held_out = split(dataset, 1)
    check_negatives(training, 6)
    check_negatives(held_out, 1)
    check_negatives(training.to("cpu"), 6)


def test_a_folder_of_partners_is_matched_by_name(tmp_path: Path):
    root = pair_folders(tmp_path)
    save(root / "target" / "alone.png", pixels(10, 14))
    dataset = open_data(str(root / "target"), DataOptions(pair=str(root / "input"), size=6))
    check_negatives(dataset, 4)
    assert any("1 picture(s) without a partner" in line for line in dataset.summary())


def test_pairs_can_be_refused_and_two_classes_are_none(tmp_path: Path):
    dataset = open_data(str(pair_folders(tmp_path)), DataOptions(pair="none"))
    assert dataset.spec.classes == ("input", "target") and len(dataset) == 8
    assert open_data(str(pair_folders(tmp_path / "b", "cats", "dogs"))).spec.classes == ("cats", "dogs")


def test_a_grey_partner_keeps_its_channel(tmp_path: Path):
    for i in range(3):
        save(tmp_path / "clean" / f"{i}.png", pixels(8, 8, seed=i))
        save(tmp_path / "noisy" / f"{i}.png", pixels(8, 8, 1, seed=i))
    batch = open_data(str(tmp_path)).batch(torch.arange(3))
    assert batch["x"].shape == (3, 3, 8, 8) and batch["cond"]["source"].shape == (3, 1, 8, 8)


def test_a_broken_partner_counts_as_unreadable(tmp_path: Path):
    root = pair_folders(tmp_path)
    (root / "input" / "2.bmp").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 of 4 file"):
        open_data(str(root))
    dataset = open_data(str(root), DataOptions(max_bad=0.3, size=6))
    check_negatives(dataset, 3)
    assert [problem.path for problem in dataset.problems] == ["2.png"]


def test_pairs_that_cannot_be_matched_are_refused(tmp_path: Path):
    save(tmp_path / "input" / "a.png", pixels(8, 8))
    save(tmp_path / "target" / "b.png", pixels(8, 8))
    with pytest.raises(DataError, match=r"no picture of target .* has one of the same name"):
        open_data(str(tmp_path))
    with pytest.raises(DataError, match="there is no folder"):
        open_data(str(tmp_path / "target"), DataOptions(pair="nowhere"))


def test_an_empty_folder_of_given_pictures_is_not_passed_over(tmp_path: Path):
    pair_folders(tmp_path)
    for path in (tmp_path / "input").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"'input' without pictures beside 'target'"):
        open_data(str(tmp_path))
    assert len(open_data(str(tmp_path), DataOptions(pair="none")))

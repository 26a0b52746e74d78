"""Dispatch, built-in sets, options, splits, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undiffuse.data import DataOptions, TensorDataset, open_data, split
from undiffuse.data.memory import free_bytes, require_memory
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec


def labelled(counts: list[int]) -> TensorDataset:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    spec = DataSpec(kind="vector", shape=(1,), classes=tuple(map(str, range(len(counts)))))
    return TensorDataset(data=torch.arange(len(labels)).float()[:, None], labels=labels, spec=spec)


def indices(dataset) -> torch.Tensor:
    return dataset.batch(torch.arange(len(dataset)))["index"]


def test_the_digits_are_what_scikit_learn_ships():
    from sklearn.datasets import load_digits

    digits = open_data("digits")
    assert digits.spec == DataSpec(kind="image", shape=(1, 8, 8), range=(0, 16), classes=tuple("0123456789"))
    batch = digits.batch(torch.arange(len(digits)))
    loaded = load_digits()
    np.testing.assert_allclose(digits.spec.from_model(batch["x"])[:, 0], loaded.images, atol=1e-5)
    np.testing.assert_array_equal(batch["cond"]["label"], loaded.target)
    assert digits.summary()[0] == "1797 images of 8 x 8 pixels, grey, values 0 to 16"


def test_400_digits_are_held_out_unless_asked_otherwise():
    train, held_out = split(open_data("digits"))
    assert (len(train), len(held_out)) == (1397, 400)
    assert [len(part) for part in split(open_data("digits"), 0.1)] == [1617, 180]


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), share=st.floats(0.05, 0.6), seed=st.integers(0, 9))
def test_a_split_is_exact_proportional_disjoint_and_repeatable(counts, share, seed):
    dataset = labelled(counts)
    part = round(sum(counts) * share)
    if part in (0, sum(counts)):
        return
    train, held_out = split(dataset, share, seed)
    assert len(held_out) == part
    assert sorted([*indices(train).tolist(), *indices(held_out).tolist()]) == list(range(sum(counts)))
    held_counts = torch.bincount(held_out.class_labels(), minlength=len(counts))
    for count, held in zip(counts, held_counts.tolist(), strict=True):
        assert abs(held - count * part / sum(counts)) < 1
    assert torch.equal(indices(split(dataset, share, seed)[1]), indices(held_out))


def test_another_seed_holds_out_other_items():
    dataset = labelled([100])
    assert not torch.equal(indices(split(dataset, 0.2, 0)[1]), indices(split(dataset, 0.2, 1)[1]))


def test_a_split_of_a_split_keeps_the_stable_index():
    train, _ = split(labelled([30, 30]), 0.5)
    again, rest = split(train, 0.5)
    for part in (again, rest):
        batch = part.batch(torch.arange(len(part)))
        assert torch.equal(batch["x"][:, 0].long(), batch["index"])


def test_moving_to_a_device_keeps_items_labels_and_indices():
    _, held_out = split(labelled([5, 7]), 0.5)
    there = held_out.to("meta")
    assert there.data.shape == (6, 1)
    assert there.rows is None
    assert there.ids.shape == there.labels.shape == (6,)
    assert held_out.to("cpu") is held_out


def test_impossible_splits_are_refused():
    for holdout, match in ((12, "leaves none of 12"), (0.01, "too few")):
        with pytest.raises(DataError, match=match):
            split(labelled([5, 7]), holdout)
    with pytest.raises(ValueError, match="negative"):
        split(labelled([5, 7]), -0.1)


@pytest.mark.parametrize(
    ("name", "mean", "spread"),
    [
        # mixture3: sum w m, and sqrt(sum w (m^2 + s^2) - mean^2); moons: symmetric about (0.5, 0.25)
        ("mixture3", (0.19, -0.21), (0.9305, 0.7987)),
        ("moons", (0.5, 0.25), (0.8675, 0.4967)),
    ],
)
def test_built_in_points_have_the_moments_of_their_law(name, mean, spread):
    dataset = open_data(name)
    assert isinstance(dataset, TensorDataset)
    assert len(dataset) == 20_000
    # 5 standard errors: false alarm below 1e-6 per figure
    error = 5 * max(spread) / 20_000**0.5
    np.testing.assert_allclose(dataset.spec.mean, mean, atol=error)
    np.testing.assert_allclose(dataset.spec.std, spread, atol=error)
    assert torch.equal(dataset.data, open_data(name).data)
    assert len(open_data(name, DataOptions(limit=100))) == 100


def test_digits_for_another_model_are_refused():
    with pytest.raises(DataError, match="shape"):
        open_data("digits", spec=DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255)))


@pytest.mark.parametrize(
    ("source", "match"),
    [("", "no data were named"), ("digit", "did you mean digits"), ("gone/x", "there is no gone/x")],
)
def test_what_is_not_there_is_named_with_what_is_expected(source: str, match: str):
    with pytest.raises(DataError, match=match) as caught:
        open_data(source)
    assert "expected digits, moons" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_neighbour_is_suggested(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"did you mean .*/photos"):
        open_data(str(tmp_path / "photo"))


def test_a_folder_named_like_a_built_in_set_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert any("write ./digits" in line for line in open_data("digits").summary())
    with pytest.raises(DataError, match="is empty"):
        open_data("./digits")


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("x" * 200)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a\.txt may not be read \(Permission denied\)"):
        open_data(str(path))


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"limit": -1}, {"length": 0}, {"max_bad": 1.5}, {"holdout": -0.1}, {"holdout": 2.5}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"data.{next(iter(options))}"):
        DataOptions(**options)


@pytest.mark.parametrize("source", ["digits", "moons", "prose"])
def test_options_without_a_use_are_refused_not_ignored(source: str):
    with pytest.raises(DataError, match=r"data\.size=9 has no use"):
        open_data(source, DataOptions(size=9))


def test_free_memory_is_known_and_its_limit_kept():
    free = free_bytes()
    assert free is not None and 0 < free < 1 << 50
    require_memory(free // 2, "this", "nothing to do")
    with pytest.raises(DataError, match=r"this needs about .*B of memory, but of .*B free only 80% .*; buy more"):
        require_memory(2 * free, "this", "buy more")


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "now").write_text("3000\n")
    monkeypatch.setattr("undiffuse.data.memory._GROUP_LIMIT", tmp_path / "max")
    monkeypatch.setattr("undiffuse.data.memory._GROUP_USED", tmp_path / "now")
    assert free_bytes() == 2000
    (tmp_path / "max").write_text("max\n")
    assert free_bytes() != 2000


def test_options_do_not_import_torch():
    code = "import sys, undiffuse.data.options; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0

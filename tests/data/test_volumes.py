"""Volumes: orientation, size, units, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import DataOptions, open_data
from undiffuse.data.resample import axis_weights, fit_volume
from undiffuse.data.volumes import read_volume, write_nifti
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

VOLUME = DataOptions(layout="volume")


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100.0, 30.0, shape).astype(np.float32)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


# -- orientation ----------------------------------------------------------------------------------


def test_axes_are_superior_anterior_right(tmp_path: Path):
    voxels = values(4, 5, 6)
    read = read_volume(save(tmp_path / "a.nii", voxels), "a")
    assert np.array_equal(read, voxels.transpose(2, 1, 0)[None])


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_every_orientation_reads_as_the_same_body(
    tmp_path: Path, axes: tuple[int, int, int], signs: tuple[int, int, int]
):
    """The body in RAS, stored with its axes permuted and turned around as the affine says."""
    body = values(4, 5, 6)
    stored = body.transpose(axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for place, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, place] = sign
        if sign < 0:
            stored = np.flip(stored, place)
    path = save(tmp_path / "a.nii.gz", np.ascontiguousarray(stored), affine)
    assert np.array_equal(read_volume(path, "a"), body.transpose(2, 1, 0)[None])
    dataset = open_data(str(path))
    assert dataset.spec.shape == (1, 6, 5, 4)
    turned = any("turned to right, anterior, superior" in line for line in dataset.summary())
    assert turned == ((axes, signs) != ((0, 1, 2), (1, 1, 1)))


def test_what_is_written_is_read(tmp_path: Path):
    pytest.importorskip("nibabel")
    volume = values(1, 4, 5, 6)
    write_nifti(tmp_path / "a.nii.gz", volume)
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz", "a"), volume)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


# -- size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("have", "want"), [(8, 4), (4, 8), (7, 5), (5, 7), (6, 6), (3, 1)])
def test_resampling_keeps_constants_and_straight_lines(have: int, want: int):
    weights = axis_weights(have, want, 0.0, have)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    centres = (np.arange(want) + 0.5) * have / want - 0.5
    support = max(1.0, have / want)
    inner = (centres - support >= -1) & (centres + support <= have)
    # A triangle on whole-number places sums a line exactly where its width divides them; else within a tenth of a cell.
    tolerance = 1e-5 if have % want == 0 or want >= have else 0.1
    np.testing.assert_allclose((weights @ np.arange(have))[inner], centres[inner], atol=tolerance)
    if have == want:
        np.testing.assert_allclose(weights, np.eye(have), atol=1e-7)


def test_resampling_agrees_with_pillow():
    picture = np.random.default_rng(0).normal(size=(9, 13)).astype(np.float32)
    resized = Image.fromarray(picture).resize((5, 4), Image.Resampling.BILINEAR)
    got = fit_volume(picture[None, None], (1, 4, 5), "stretch")[0, 0]
    np.testing.assert_allclose(got, np.asarray(resized), atol=1e-5)


def test_crop_pad_and_stretch():
    volume = np.zeros((1, 8, 4, 4), dtype=np.float32)
    volume[:, 2:6] = 1.0
    crop, pad, stretch = (fit_volume(volume, (4, 4, 4), policy) for policy in ("crop", "pad", "stretch"))
    assert (crop == 1.0).all()  # the middle half
    assert pad[0, :, 0].max() == 0.0  # two columns kept, in the middle
    assert pad[0, 1:3, 1:3, 1:3].min() > 0.8
    assert stretch[0, :, 0, 0].tolist() == stretch[0, ::-1, 0, 0].tolist()
    assert 0.0 < float(stretch.mean()) < 1.0


# -- units ----------------------------------------------------------------------------------------


def test_values_are_standardised_unless_a_window_is_given(tmp_path: Path):
    for number in range(5):
        np.save(tmp_path / f"{number}.npy", values(4, 5, 6, seed=number))
    plain = open_data(str(tmp_path), VOLUME)
    x = plain.batch(torch.arange(5))["x"]
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(unbiased=False), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert plain.spec.range is None

    window = open_data(str(tmp_path), DataOptions(layout="volume", window=(80, 120)))
    assert window.spec.range == (80.0, 120.0)
    y = window.spec.from_model(window.batch(torch.arange(5))["x"])
    raw = torch.from_numpy(np.stack([values(1, 4, 5, 6, seed=number) for number in range(5)]))
    torch.testing.assert_close(y, raw.clamp(80, 120), atol=1e-4, rtol=0)

    percent = open_data(str(tmp_path), DataOptions(layout="volume", percentiles=(5, 95)))
    np.testing.assert_allclose(percent.spec.range, np.percentile(raw.numpy(), (5, 95)), rtol=1e-5)


def test_a_model_decides_size_and_units(tmp_path: Path):
    np.save(tmp_path / "a.npy", values(4, 6, 8))
    spec = DataSpec(kind="volume", shape=(1, 4, 4, 4), range=(0.0, 200.0))
    dataset = open_data(str(tmp_path), VOLUME, spec=spec)
    x = dataset.batch(torch.tensor([0]))["x"]
    assert x.shape == (1, 1, 4, 4, 4)
    assert float(x.abs().max()) <= 1.0
    assert dataset.spec is spec


@pytest.mark.parametrize("lazy", [False, True])
def test_folders_are_classes_and_sizes_are_made_one(tmp_path: Path, lazy: bool):
    for number in range(6):
        path = tmp_path / ("well", "ill")[number % 2] / f"{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, values(4 + number % 3, 5, 6, seed=number))
    dataset = open_data(str(tmp_path), DataOptions(layout="volume", size=4, lazy=lazy))
    assert dataset.spec.classes == ("ill", "well")
    batch = dataset.batch(torch.arange(6))
    assert batch["x"].shape == (6, 1, 4, 4, 4)
    assert batch["cond"]["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert any("3 size(s)" in line for line in dataset.summary())


# -- what cannot be used --------------------------------------------------------------------------


def test_bad_files_are_counted_and_named(tmp_path: Path):
    nibabel = pytest.importorskip("nibabel")
    for number in range(12):
        save(tmp_path / f"{number}.nii.gz", values(4, 5, 6, seed=number))
    hole = values(4, 5, 6)
    hole[0, 0, :2] = np.nan
    save(tmp_path / "hole.nii", hole)
    save(tmp_path / "time.nii", values(4, 5, 6, 3))
    whole = (tmp_path / "0.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "words.nii").write_text("this is no volume")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", values(4, 5))
    dataset = open_data(str(tmp_path), DataOptions(max_bad=0.4))
    assert len(dataset) == 12
    reasons = {problem.path: problem.reason for problem in dataset.problems}
    assert set(reasons) == {
        "hole.nii", "time.nii", "cut.nii.gz", "empty.nii", "words.nii", "objects.npy", "flat.npy",
    }  # fmt: skip
    assert reasons["hole.nii"] == "2 of 120 values are NaN or infinite"
    assert reasons["time.nii"] == "it has shape (4, 5, 6, 3); expected one volume of 3 axes"
    assert all("\n" not in reason and reason for reason in reasons.values())
    assert reasons["empty.nii"] == "the file is empty"
    assert reasons["words.nii"].startswith("it is no NIfTI file, or damaged")
    with pytest.raises(DataError, match=r"6 of 19 file\(s\)"):
        open_data(str(tmp_path))
    assert nibabel is not None


def test_oblong_voxels_are_reported(tmp_path: Path):
    save(tmp_path / "a.nii", values(4, 5, 6), np.diag([1.0, 1.0, 2.5, 1.0]))
    assert any("first 1 x 1 x 2.5 mm" in line for line in open_data(str(tmp_path)).summary())


def test_without_nibabel_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "a.nii", values(4, 5, 6))
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(DataError, match=r"nibabel: pip install 'undiffuse\[data\]'"):
        open_data(str(tmp_path))

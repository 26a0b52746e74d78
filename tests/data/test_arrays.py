"""Arrays: shapes, units, labels, and everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.data import DataOptions, TensorDataset, open_data
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec


def opened(source: Path, spec: DataSpec | None = None, **options) -> TensorDataset:
    dataset = open_data(str(source), DataOptions(**options), spec)
    assert isinstance(dataset, TensorDataset)
    return dataset


def everything(dataset) -> dict:
    return dataset.batch(torch.arange(len(dataset)))


def stored(tmp_path: Path, array: np.ndarray) -> Path:
    np.save(tmp_path / "a.npy", array)
    return tmp_path / "a.npy"


@pytest.mark.parametrize(
    ("shape", "layout", "kind", "item"),
    [
        ((9,), "auto", "vector", (1,)),
        ((9, 5), "auto", "vector", (5,)),
        ((9, 3, 20), "auto", "signal", (3, 20)),
        ((9, 16, 20), "auto", "image", (1, 16, 20)),
        ((9, 16, 20), "signal", "signal", (16, 20)),
        ((9, 20), "signal", "signal", (1, 20)),
        ((9, 8, 6, 3), "auto", "image", (3, 8, 6)),
        ((9, 3, 8, 6), "auto", "image", (3, 8, 6)),
        ((9, 16, 8, 8), "auto", "image", (16, 8, 8)),
        ((9, 5, 3, 8, 6), "auto", "video", (5, 3, 8, 6)),
        ((9, 5, 8, 6), "video", "video", (5, 1, 8, 6)),
        ((9, 2, 7, 8, 6), "auto", "volume", (2, 7, 8, 6)),
        ((9, 7, 8, 6), "volume", "volume", (1, 7, 8, 6)),
    ],
)
def test_the_shape_says_what_the_axes_mean(tmp_path: Path, shape, layout, kind, item):
    array = np.random.default_rng(0).standard_normal(shape)
    dataset = opened(stored(tmp_path, array), layout=layout)
    assert (dataset.spec.kind, dataset.spec.shape) == (kind, item)
    x = everything(dataset)["x"]
    assert x.shape == (9, *item)
    back = dataset.spec.from_model(x).reshape(9, -1).sort(1).values
    np.testing.assert_allclose(back, np.sort(array.reshape(9, -1), axis=1), atol=1e-5)


def test_channels_last_are_moved_not_reshaped(tmp_path: Path):
    array = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    dataset = opened(stored(tmp_path, array))
    assert dataset.data.dtype == torch.uint8
    np.testing.assert_array_equal(dataset.data, array.transpose(0, 3, 1, 2))


def test_vectors_are_standardised_per_feature(tmp_path: Path):
    array = np.random.default_rng(0).normal((100, -3, 5), (20, 0.1, 0), (500, 3))
    dataset = opened(stored(tmp_path, array))
    x = everything(dataset)["x"]
    # float32 holds 100 +- 20 to about 1e-5; the constant feature is only centred
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(0, correction=0), (1, 1, 0), atol=1e-4)
    np.testing.assert_allclose(dataset.spec.mean, array.mean(0), rtol=1e-5)
    assert any("1 feature(s) never vary" in line for line in dataset.summary())


def test_signals_are_standardised_per_channel(tmp_path: Path):
    array = np.random.default_rng(0).normal(0, 1, (50, 2, 30)) * np.array([[5.0], [0.5]]) + 3
    x = everything(opened(stored(tmp_path, array)))["x"]
    np.testing.assert_allclose(x.std((0, 2), correction=0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        (np.array([3, 200], np.uint8), (0, 255)),
        (np.array([0.0, 254.6]), (0, 255)),
        (np.array([3, 200], np.uint16), (0, 65535)),
        (np.array([False, True]), (0, 1)),
        (np.array([0.1, 0.9]), (0, 1)),
        (np.array([-0.1, 0.9]), (-1, 1)),
        (np.array([-3.0, 16.0]), (-3, 16)),
        (np.array([7.0, 7.0]), (7, 8)),
    ],
)
def test_the_range_of_images_is_read_off_the_values(tmp_path: Path, values, bounds):
    array = np.resize(values, (3, 8, 8))
    dataset = opened(stored(tmp_path, array))
    assert dataset.spec.range == bounds
    x = everything(dataset)["x"]
    assert x.abs().max() <= 1
    np.testing.assert_allclose(dataset.spec.from_model(x)[:, 0], array, atol=(bounds[1] - bounds[0]) * 3e-7)


@pytest.mark.parametrize("key", ["labels", "y", "label"])
def test_labels_of_an_npz_are_classes(tmp_path: Path, key: str):
    np.savez(tmp_path / "a.npz", data=np.zeros((4, 2)), **{key: np.array([10, 2, 10, 2])})
    dataset = opened(tmp_path / "a.npz")
    assert dataset.spec.classes == ("2", "10")
    assert everything(dataset)["cond"]["label"].tolist() == [1, 0, 1, 0]


def test_the_data_of_an_npz_are_found_or_asked_for(tmp_path: Path):
    np.savez(tmp_path / "a.npz", one=np.zeros((4, 2)), two=np.zeros((4, 3)), names=np.array(list("abba")))
    with pytest.raises(DataError, match=r"one, two, names.*data\.key"):
        opened(tmp_path / "a.npz")
    dataset = opened(tmp_path / "a.npz", key="two", label="names")
    assert dataset.spec.shape == (3,)
    assert dataset.spec.classes == ("a", "b")
    for wrong in ({"key": "three"}, {"key": "one", "label": "three"}):
        with pytest.raises(DataError, match="'three'; it holds"):
            opened(tmp_path / "a.npz", **wrong)


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.array([0.5, 1, 2, 3]), np.array([0, np.nan, 1, 1])])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, labels):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=labels)
    with pytest.raises(DataError, match="labels"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_with_a_header_and_a_label_column(tmp_path: Path, mark: str):
    rows = ["a,label,b", "1,cat,2.5", "-3e1,dog,4", "", " 5 ,cat, 6"]
    (tmp_path / "a.csv").write_text("\n".join(rows).replace(",", mark))
    dataset = opened(tmp_path / "a.csv")
    np.testing.assert_array_equal(dataset.data, [[1, 2.5], [-30, 4], [5, 6]])
    assert dataset.spec.classes == ("cat", "dog")
    assert everything(dataset)["cond"]["label"].tolist() == [0, 1, 0]


def test_a_csv_without_a_header(tmp_path: Path):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    np.testing.assert_array_equal(opened(tmp_path / "a.csv").data, [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="no row of column names"):
        opened(tmp_path / "a.csv", label="x")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        ("a,b\n", "without items"),
        ("a,b\n1,2\n3\n", "1 cells in line 3 but 2"),
        ("a,b\n1,2\n3,four\n", "'four' in line 3, column b"),
        ("a,b\n1,2\n3,\n,nan\n", r"3 value\(s\).*row 1, column b"),
        ("label\nx\n", "no columns of numbers"),
        ("label,a\n,1\n", "no class in line 2"),
        ("a,b\n1,1e300\n", "float32"),
    ],
)
def test_a_broken_csv_is_named_with_its_place(tmp_path: Path, text: str, match: str):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        opened(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


def test_a_csv_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe1\x00,\x002\x00")
    with pytest.raises(DataError, match="UTF-8"):
        opened(tmp_path / "a.csv")


def test_nan_and_infinity_are_counted_and_the_first_named(tmp_path: Path):
    array = np.zeros((6, 4))
    array[3, 2], array[5, 0] = np.nan, np.inf
    with pytest.raises(DataError, match=r"2 value\(s\).*row 3, column 2"):
        opened(stored(tmp_path, array))
    images = np.zeros((6, 8, 8))
    images[2, 7, 1] = np.nan
    with pytest.raises(DataError, match=r"1 value\(s\).*row 2, column 7, 1"):
        opened(stored(tmp_path, images))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array(3.0), "without items"),
        (np.zeros((0, 2)), "without items"),
        (np.zeros((4, 0)), "empty axis"),
        (np.array(["a", "b"]), "expected numbers"),
        (np.zeros((2, 2), complex), "expected numbers"),
        (np.zeros((2,) * 6), "no reading"),
        (np.zeros((2, 9, 9, 9, 9)), "no reading"),
    ],
)
def test_arrays_that_are_no_data_are_refused(tmp_path: Path, array, match):
    with pytest.raises(DataError, match=match):
        opened(stored(tmp_path, array))


def test_a_layout_that_does_not_fit_the_shape_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="image items have 3 axes"):
        opened(stored(tmp_path, np.zeros((4, 2))), layout="image")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr'", b"PK\x03\x04broken"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the array") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_under_the_wrong_name_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"name the file \.npz"):
        opened(tmp_path / "a.npy")


def test_truncated_arrays_are_refused(tmp_path: Path):
    path = stored(tmp_path, np.zeros((100, 10)))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot read the array"):
        opened(path)


def test_pickled_objects_are_never_loaded(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    objects = np.array([Bomb(), 1], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match="objects"):
            opened(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_arrays_opened_for_a_model_are_checked_against_it(tmp_path: Path):
    spec = DataSpec(kind="vector", shape=(2,), mean=(1.0, 2.0), std=(2.0, 4.0), classes=("a", "b"))
    dataset = opened(stored(tmp_path, np.array([[3.0, 6.0]])), spec)
    assert dataset.spec == spec
    assert everything(dataset)["x"].tolist() == [[1.0, 1.0]]
    with pytest.raises(DataError, match="3 columns but the model expects 2"):
        opened(stored(tmp_path, np.zeros((4, 3))), spec)
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.array(["b", "c"]))
    with pytest.raises(DataError, match="first 'c'"):
        opened(tmp_path / "a.npz", spec)
    image = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 16))
    assert len(opened(stored(tmp_path, np.full((3, 8, 8), 16)), image)) == 3
    with pytest.raises(DataError, match="values from 17 to 17"):
        opened(stored(tmp_path, np.full((3, 8, 8), 17)), image)
    with pytest.raises(DataError, match="shape"):
        opened(stored(tmp_path, np.zeros((3, 9, 8))), image)
    with pytest.raises(DataError, match="trained on data of kind 'tokens'"):
        opened(stored(tmp_path, np.zeros((3, 8))), DataSpec(kind="tokens", shape=(8,), vocabulary=("a",)))


def test_the_limit_keeps_values_and_labels_together(tmp_path: Path):
    labels = np.arange(40) % 4
    np.savez(tmp_path / "a.npz", x=labels[:, None] * np.ones((1, 2)), y=labels)
    dataset = opened(tmp_path / "a.npz", limit=12)
    assert len(dataset) == 12
    assert torch.equal(dataset.data[:, 0].long(), dataset.labels)


def test_more_than_the_free_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.savez(tmp_path / "a.npz", x=np.zeros((100, 100)))
    (tmp_path / "a.csv").write_text("1,2\n" * 1000)
    stored(tmp_path, np.zeros((100, 100)))
    monkeypatch.setattr("undiffuse.data.memory.free_bytes", lambda: 10_000)
    for name in ("a.npy", "a.npz", "a.csv"):
        with pytest.raises(DataError, match="of memory"):
            opened(tmp_path / name)


def test_vectors_cannot_be_mirrored(tmp_path: Path):
    with pytest.raises(DataError, match="flip"):
        opened(stored(tmp_path, np.zeros((4, 2))), flip=True)

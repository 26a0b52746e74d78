"""Folders, archives and single files of pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.files import BROKEN, deep_colour_png, encoded, make_zip, pixels, save, write_broken
from undiffuse.data import DataOptions, TensorDataset, open_data, split
from undiffuse.data.listing import folder_classes
from undiffuse.errors import DataError
from undiffuse.images import photograph, read_image
from undiffuse.images.photographs import PHOTOGRAPHS
from undiffuse.spec import DataSpec


def opened(source: Path, spec: DataSpec | None = None, **options) -> TensorDataset:
    dataset = open_data(str(source), DataOptions(**options), spec)
    assert isinstance(dataset, TensorDataset)
    return dataset


def everything(dataset) -> dict:
    return dataset.batch(torch.arange(len(dataset)))


def fill(folder: Path, count: int, side: int = 8, channels: int = 3) -> Path:
    for i in range(count):
        save(folder / f"{i:03}.png", pixels(side, side, channels, seed=i))
    return folder


def test_pixels_arrive_in_model_units_in_the_order_of_names(tmp_path: Path):
    fill(tmp_path, 3)
    dataset = opened(tmp_path)
    assert dataset.spec == DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255))
    assert dataset.data.dtype == torch.uint8
    batch = dataset.batch(torch.tensor([2, 0]))
    expected = np.stack([pixels(8, 8, seed=i).transpose(2, 0, 1) for i in (2, 0)]) / 127.5 - 1
    np.testing.assert_allclose(batch["x"], expected, atol=1e-6)
    assert batch["x"].dtype == torch.float32
    assert batch["cond"] == {}
    assert batch["index"].tolist() == [2, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_become_labels(tmp_path: Path, packed: bool):
    names = ["set/dog/old/1.png", "set/cat/1.png", "set/cat/2.png"]
    if packed:
        source = make_zip(tmp_path / "a.zip", {name: encoded(pixels(8, 8)) for name in names} | {"set/": b""})
    else:
        source = tmp_path
        for name in names:
            save(tmp_path / name, pixels(8, 8))
    dataset = opened(source)
    assert dataset.spec.classes == ("cat", "dog")
    assert everything(dataset)["cond"]["label"].tolist() == [0, 0, 1]
    assert "2 classes: cat (2), dog (1)" in dataset.summary()


def test_pictures_beside_folders_have_no_labels_and_it_is_said(tmp_path: Path):
    save(tmp_path / "a.png", pixels(8, 8))
    save(tmp_path / "cat" / "b.png", pixels(8, 8))
    dataset = opened(tmp_path)
    assert dataset.labels is None
    assert any("not taken for classes" in line for line in dataset.summary())


def test_a_shared_folder_is_a_class_only_where_the_model_knows_it():
    names = ["photos/cat/1.png", "photos/cat/2.png"]
    assert folder_classes(names) is None
    assert folder_classes(names, known=("cat", "dog")) == ["cat", "cat"]


def test_hidden_files_are_skipped_and_other_files_counted(tmp_path: Path):
    fill(tmp_path, 2)
    save(tmp_path / ".hidden.png", pixels(3, 3))
    save(tmp_path / ".cache" / "x.png", pixels(3, 3))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    dataset = opened(tmp_path)
    assert len(dataset) == 2
    assert "1 other file(s) passed over: notes.txt" in dataset.summary()


def test_linked_folders_are_followed(tmp_path: Path):
    fill(tmp_path / "elsewhere", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    assert len(opened(tmp_path / "data")) == 2


def test_unreadable_files_are_listed_and_the_others_kept(tmp_path: Path):
    fill(tmp_path / "a", 5)
    fill(tmp_path / "b", 5)
    write_broken(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = opened(tmp_path, max_bad=0.5)
    assert len(dataset) == 10
    assert sorted(problem.path for problem in dataset.problems) == sorted(f"a/{name}" for name in BROKEN)
    assert all(problem.reason for problem in dataset.problems)
    batch = everything(dataset)
    assert batch["cond"]["label"].tolist() == [0] * 5 + [1] * 5
    np.testing.assert_allclose(batch["x"][7], pixels(8, 8, seed=2).transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert f"{len(BROKEN)} file(s) could not be read" in dataset.summary()[-1]


def test_too_many_unreadable_files_are_an_error_with_five_reasons(tmp_path: Path):
    fill(tmp_path, 30)
    for i in range(7):
        (tmp_path / f"bad{i}.jpg").write_bytes(BROKEN["words.jpg"])
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    message = str(caught.value)
    assert "7 of 37" in message
    assert "data.max_bad" in message
    assert message.count("not a picture") == 5
    assert "and 2 more" in message
    assert "\n" not in message


def test_damage_found_while_decoding_counts_too(tmp_path: Path):
    fill(tmp_path, 3, side=64)
    write_broken(tmp_path, "truncated.jpg")  # its head is fine
    with pytest.raises(DataError, match=r"1 of 4 .* truncated\.jpg: .*truncated"):
        opened(tmp_path)
    assert len(opened(tmp_path, max_bad=0.25)) == 3


def test_nothing_readable_is_an_error_whatever_is_tolerated(tmp_path: Path):
    write_broken(tmp_path)
    with pytest.raises(DataError, match=f"none of the {len(BROKEN)}"):
        opened(tmp_path, max_bad=1.0)


def test_mixed_sizes_are_brought_to_the_median_and_it_is_said(tmp_path: Path):
    for i, (height, width) in enumerate([(10, 20), (20, 30), (40, 30)]):
        save(tmp_path / f"{i}.png", pixels(height, width))
    dataset = opened(tmp_path)
    assert dataset.spec.shape == (3, 20, 20)
    text = "\n".join(dataset.summary())
    assert "3 size(s), sides of 10 to 40 pixels; brought to 20 x 20" in text
    assert "1 picture(s) are smaller" in text


def test_one_small_size_is_kept_and_a_large_one_reduced_to_64(tmp_path: Path):
    save(tmp_path / "a" / "x.png", pixels(12, 20))
    save(tmp_path / "b" / "x.jpg", pixels(300, 200))
    assert opened(tmp_path / "a").spec.shape == (3, 12, 20)
    large = opened(tmp_path / "b")
    assert large.spec.shape == (3, 64, 64)
    assert any("data.size changes it" in line for line in large.summary())
    assert opened(tmp_path / "b", size=96).spec.shape == (3, 96, 96)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4),
    policy=st.sampled_from(["crop", "pad", "stretch"]),
    channels=st.sampled_from(["grey", "rgb", "rgba"]),
    size=st.none() | st.integers(1, 20),
)
def test_every_mix_of_sizes_gives_one_shape(tmp_path_factory, sizes, policy, channels, size):
    folder = tmp_path_factory.mktemp("mix")
    for i, (height, width) in enumerate(sizes):
        save(folder / f"{i}.png", pixels(height, width, seed=i))
    dataset = opened(folder, resize=policy, channels=channels, size=size)
    x = everything(dataset)["x"]
    assert x.shape == (len(sizes), *dataset.spec.shape)
    assert dataset.spec.channels == {"grey": 1, "rgb": 3, "rgba": 4}[channels]
    assert size is None or dataset.spec.shape[1:] == (size, size)
    assert x.abs().max() <= 1


def test_channels_follow_the_data(tmp_path: Path):
    fill(tmp_path / "grey", 2, channels=1)
    assert opened(tmp_path / "grey").spec.channels == 1
    fill(tmp_path / "mixed", 2, channels=1)
    save(tmp_path / "mixed" / "z.png", pixels(8, 8, 4))
    mixed = opened(tmp_path / "mixed")
    assert mixed.spec.channels == 3
    assert any("transparency were laid over white" in line for line in mixed.summary())
    assert opened(tmp_path / "mixed", channels="rgba").spec.channels == 4
    assert any("turned grey" in line for line in opened(tmp_path / "mixed", channels="grey").summary())


def test_16_bit_pictures_keep_their_precision_beside_8_bit_ones(tmp_path: Path):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    save(tmp_path / "a.png", levels)
    save(tmp_path / "b.png", pixels(8, 8, 1))
    dataset = opened(tmp_path)
    x = everything(dataset)["x"]
    np.testing.assert_allclose(x[0, 0], levels / 32767.5 - 1, atol=1e-6)
    np.testing.assert_allclose(x[1, 0], pixels(8, 8, 1) / 127.5 - 1, atol=1e-6)


def test_16_bit_colour_read_with_8_bits_is_said(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(deep_colour_png())
    assert "1 colour picture(s) of 16 bits per channel were read with 8" in opened(tmp_path).summary()


def test_one_picture_is_allowed_with_a_warning_but_not_split(tmp_path: Path):
    path = save(tmp_path / "a.png", pixels(8, 8))
    for source in (path, tmp_path):
        dataset = opened(source)
        assert len(dataset) == 1
        assert any("single item" in line for line in dataset.summary())
        with pytest.raises(DataError, match=r"data\.holdout=0"):
            split(dataset)
        assert [len(part) for part in split(dataset, 0)] == [1, 0]


def test_the_limit_takes_a_fixed_choice_across_classes(tmp_path: Path):
    for name in ("a", "b"):
        fill(tmp_path / name, 20)
    first, second = opened(tmp_path, limit=10), opened(tmp_path, limit=10)
    assert len(first) == 10
    assert torch.equal(first.data, second.data)
    assert 0 < everything(first)["cond"]["label"].sum() < 10


def test_mirror_images_double_the_training_part_only(tmp_path: Path):
    fill(tmp_path, 10)
    train, held_out = split(opened(tmp_path, flip=True), 0.2)
    assert (len(train), len(held_out)) == (16, 2)
    x = everything(train)["x"]
    assert torch.equal(x[8:], x[:8].flip(-1))
    assert len(everything(train)["index"].unique()) == 16
    assert torch.equal(train.batch(torch.tensor([9, 2]))["x"], x[[9, 2]])


def test_pictures_opened_for_a_model_take_its_shape_and_classes(tmp_path: Path):
    fill(tmp_path / "dog", 2, side=30)
    spec = DataSpec(kind="image", shape=(1, 8, 6), range=(0, 16), classes=("cat", "dog"))
    dataset = opened(tmp_path, spec)
    assert dataset.spec == spec
    batch = everything(dataset)
    assert batch["x"].shape == (2, 1, 8, 6)
    assert batch["x"].abs().max() <= 1
    assert batch["cond"]["label"].tolist() == [1, 1]


def test_unknown_classes_and_foreign_kinds_are_refused(tmp_path: Path):
    fill(tmp_path / "cat", 1)
    fill(tmp_path / "dogs", 1)
    spec = DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255), classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"first 'dogs'.*Did you mean 'dog'"):
        opened(tmp_path, spec)
    with pytest.raises(DataError, match="trained on vector data"):
        opened(tmp_path, DataSpec(kind="vector", shape=(2,)))


def test_labels_are_dropped_for_a_model_without_classes_and_it_is_said(tmp_path: Path):
    fill(tmp_path / "cat", 1)
    fill(tmp_path / "dog", 1)
    dataset = opened(tmp_path, DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255)))
    assert dataset.labels is None
    assert any("no classes" in line for line in dataset.summary())


@pytest.mark.parametrize("name", ["../out.png", "/abs.png", "a/../../out.png", "C:\\out.png", "..\\out.png"])
def test_an_archive_that_leads_out_of_itself_is_refused(tmp_path: Path, name: str):
    path = make_zip(tmp_path / "a.zip", {"ok.png": encoded(pixels(4, 4)), name: encoded(pixels(4, 4))})
    with pytest.raises(DataError, match="leads out of it"):
        opened(path)


def test_damaged_and_empty_archives_are_errors(tmp_path: Path):
    (tmp_path / "words.zip").write_text("not a zip")
    with pytest.raises(DataError, match="not a readable zip"):
        opened(tmp_path / "words.zip")
    with pytest.raises(DataError, match="is empty"):
        opened(make_zip(tmp_path / "empty.zip", {}))
    with pytest.raises(DataError, match="no pictures"):
        opened(make_zip(tmp_path / "text.zip", {"a.txt": b"x", "__MACOSX/._a.png": b"x"}))


def test_a_damaged_member_is_one_problem(tmp_path: Path):
    members = {f"{i}.png": encoded(pixels(8, 8, seed=i)) for i in range(4)}
    path = make_zip(tmp_path / "a.zip", members)
    content = bytearray(path.read_bytes())
    content[content.find(members["2.png"]) + 50] ^= 255  # the checksum no longer fits
    path.write_bytes(content)
    dataset = opened(path, max_bad=0.5)
    assert len(dataset) == 3
    assert [problem.path for problem in dataset.problems] == ["2.png"]


def test_empty_folders_and_folders_without_pictures_are_errors(tmp_path: Path):
    with pytest.raises(DataError, match=r"is empty; expected pictures"):
        opened(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds 1 file\(s\) but no pictures \(a\.txt\)"):
        opened(tmp_path)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("undiffuse.data.listing.os.scandir", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        opened(tmp_path)


def test_more_than_the_free_memory_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, 3, side=100)
    monkeypatch.setattr("undiffuse.data.memory.free_bytes", lambda: 100_000)
    monkeypatch.setattr("undiffuse.data.picture_source.load_picture", None)  # decoding would fail with TypeError
    with pytest.raises(DataError, match=r"kB of memory, but of 100 kB free .*data\.size.*data\.limit"):
        opened(tmp_path, size=100, lazy=False)


def test_many_threads_decode_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(40):
        save(tmp_path / f"{i:02}.jpg", pixels(160, 160, seed=i))
    several = opened(tmp_path, size=16)
    monkeypatch.setattr("undiffuse.data.pictures.workers_for", lambda headers: 1)
    assert torch.equal(several.data, opened(tmp_path, size=16).data)


def test_options_for_other_kinds_of_data_are_refused(tmp_path: Path):
    fill(tmp_path, 2)
    with pytest.raises(DataError, match=r"data\.length=7 has no use for pictures"):
        opened(tmp_path, length=7)


def test_the_photographs_of_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    found = open_data("photographs", DataOptions(size=300, channels="rgb", resize="stretch", holdout=0))
    assert len(found) == len(PHOTOGRAPHS) and found.spec.shape == (3, 300, 300)
    cat = read_image(photograph("chelsea"))
    np.testing.assert_array_equal(cat, skimage.chelsea())
    assert cat.shape == (300, 451, 3)


def test_photographs_without_scikit_image_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undiffuse.images.photographs.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-image"):
        open_data("photographs")

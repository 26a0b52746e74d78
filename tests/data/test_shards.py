"""webdataset shards: samples by name, read by place."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from tests.data.files import encoded, pixels, write_shards, write_tar
from undiffuse.data import DataOptions, open_data
from undiffuse.data.lazy import LazyDataset
from undiffuse.data.shards import expand, split_name
from undiffuse.errors import DataError


@pytest.mark.parametrize("lazy", [False, True])
def test_samples_have_pictures_classes_captions_and_fields(tmp_path: Path, lazy: bool):
    dataset = open_data(write_shards(tmp_path), DataOptions(lazy=lazy))
    assert isinstance(dataset, LazyDataset) == lazy
    assert len(dataset) == 30 and dataset.spec.classes == ("0", "1", "2")
    batch = dataset.batch(torch.tensor([0, 17]))
    for row, number in enumerate((0, 17)):
        expected = torch.from_numpy(pixels(8, 8, seed=number)).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(batch["x"][row], expected.float())
    assert batch["cond"]["label"].tolist() == [0, 1]
    assert bytes(batch["cond"]["caption"][1].tolist()) == b"picture 17"
    size = dataset.spec.cond["size"]
    torch.testing.assert_close(batch["cond"]["size"][:, 0] * size.std[0] + size.mean[0], torch.tensor([0.5, 7.5]))


def test_a_folder_of_shards_is_read_whole(tmp_path: Path):
    pattern = write_shards(tmp_path)
    folder, named = open_data(str(tmp_path)), open_data(pattern)
    index = torch.arange(30)
    assert torch.equal(folder.batch(index)["x"], named.batch(index)["x"])
    assert len(open_data(str(tmp_path / "part-01.tar"))) == 10


def test_members_of_other_suffixes_can_be_meant(tmp_path: Path):
    members = [
        (f"a/{i}.{suffix}", encoded(pixels(8, 8, seed=i + shift)))
        for i in range(5)
        for suffix, shift in (("input.png", 0), ("target.png", 50))
    ]
    tar = write_tar(tmp_path / "pairs.tar", members)
    dataset = open_data(str(tar), DataOptions(key="target.png", pair="input.png"))
    batch = dataset.batch(torch.tensor([3]))
    assert torch.equal(batch["x"], open_data(str(tar), DataOptions(key="target.png")).batch(torch.tensor([3]))["x"])
    assert torch.equal(
        batch["cond"]["source"], open_data(str(tar), DataOptions(key="input.png")).batch(torch.tensor([3]))["x"]
    )
    with pytest.raises(DataError, match=r"no members .left.png .*\.input\.png, \.target\.png"):
        open_data(str(tar), DataOptions(key="left.png"))


def test_folders_in_shards_are_classes_and_shards_are_not(tmp_path: Path):
    for shard in range(2):
        write_tar(
            tmp_path / f"{shard}.tar",
            [(f"{'ab'[i % 2]}/{i}.png", encoded(pixels(8, 8, seed=i + 9 * shard))) for i in range(4)],
        )
    dataset = open_data(str(tmp_path))
    assert len(dataset) == 8 and dataset.spec.classes == ("a", "b")  # equal names in two shards are two samples


def test_damage_is_counted(tmp_path: Path):
    pattern = write_shards(tmp_path)
    broken = tmp_path / "part-01.tar"
    data = broken.read_bytes()
    picture = data.index(b"\x89PNG", 4000)
    broken.write_bytes(data[: picture + 30] + bytes(40) + data[picture + 70 :])
    dataset = open_data(pattern)
    assert len(dataset) == 29 and len(dataset.problems) == 1
    broken.write_bytes(data[:9000])  # ends in the middle of a member
    dataset = open_data(pattern, DataOptions(max_bad=0.2))
    assert 20 < len(dataset) < 30


def test_an_archive_cut_between_two_members_is_no_whole_one(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", [(f"{i:02}.png", encoded(pixels(8, 8, seed=i))) for i in range(12)])
    with tarfile.open(tar) as archive:
        start = archive.getmembers()[8].offset
    assert not any("warning" in line for line in open_data(str(tar)).summary())
    tar.write_bytes(tar.read_bytes()[:start])
    dataset = open_data(str(tar))
    assert len(dataset) == 8
    assert "warning: the rest of a.tar (unexpected end of data) cannot be read" in dataset.summary()
    with pytest.raises(DataError, match=r"a\.tar cannot be read to its end"):
        open_data(str(tar), DataOptions(stream=True, holdout=2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", b"nothing", "not a readable .tar"),
        ("a.tar.gz", b"\x1f\x8b nothing", "data.stream=true"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path / name))


def test_missing_shards_and_shards_without_pictures_are_refused(tmp_path: Path):
    write_shards(tmp_path, 2)
    with pytest.raises(DataError, match=r"1 of 3 shard\(s\) are not there, first .*part-02.tar"):
        open_data(str(tmp_path / "part-{00..02}.tar"))
    write_tar(tmp_path / "text.tar", [("1.txt", b"text")])
    with pytest.raises(DataError, match=r"no pictures; its members end in \.txt"):
        open_data(str(tmp_path / "text.tar"))


def test_braces_stand_for_numbers_and_words():
    assert expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expand("plain.tar") == ["plain.tar"]


def test_a_sample_is_named_up_to_its_first_dot():
    assert split_name("a/17.left.PNG") == ("a/17", "left.png")
    assert split_name("./b.c/17.png") == ("b.c/17", "png")
    assert split_name("a/.hidden")[0] == ""

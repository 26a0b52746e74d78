"""Data that cannot be used: one line that names them and says what to do."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.command import TINY, Command


def picture(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pictures(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> Path:
    """Write a folder of pictures."""
    for number in range(count):
        picture(folder / f"{number}.png", size, number)
    return folder


def bomb(path: Path) -> Path:
    """Write a PNG file of a few bytes that says it holds 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_an_empty_folder_is_refused(undiffuse: Command, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    assert undiffuse("train", "photos", *TINY).refuses("photos is empty", "expected pictures")


def test_a_missing_folder_is_refused_and_its_neighbour_named(undiffuse: Command, tmp_path: Path):
    pictures(tmp_path / "photos", 1)
    assert undiffuse("train", "./photo", *TINY).refuses("there is no photo", "did you mean photos?")


def test_a_folder_without_pictures_is_refused(undiffuse: Command, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.docx").write_bytes(b"text")
    assert undiffuse("train", "photos", *TINY).refuses("no pictures", "notes.docx", "expected pictures")


@pytest.mark.parametrize(
    "kind",
    ["corrupt", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("truncated", "bomb", "not a picture"))],
)
def test_an_unreadable_picture_among_many_is_counted_and_named(undiffuse: Command, tmp_path: Path, kind: str):
    folder = pictures(tmp_path / "photos", 12)
    bad = folder / "bad.png"
    if kind == "corrupt":
        bad.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    elif kind == "truncated":
        bad.write_bytes((folder / "0.png").read_bytes()[:300])
    elif kind == "bomb":
        bomb(bad)
    else:
        bad.write_text("this is a text")
    answer = undiffuse("train", "photos", *TINY, "data.max_bad=0.2")
    assert answer.code == 0, answer
    assert "warning: 1 file(s) could not be read: bad.png" in answer.out
    assert "Traceback" not in answer.out + answer.err


def test_too_many_unreadable_pictures_are_an_error(undiffuse: Command, tmp_path: Path):
    folder = pictures(tmp_path / "photos", 4)
    for number in range(4):
        (folder / f"bad{number}.png").write_bytes(b"nothing")
    assert undiffuse("train", "photos", *TINY).refuses("4", "bad0.png", "data.max_bad")


def test_one_picture_cannot_be_split_but_can_be_learnt_by_heart(undiffuse: Command, tmp_path: Path):
    picture(tmp_path / "one.png")
    assert undiffuse("train", "one.png", *TINY, "data.holdout=0.1").refuses("1 item", "data.holdout=0")
    answer = undiffuse("train", "one.png", *TINY)
    assert answer.code == 0, answer
    assert "data     warning: a single item" in answer.out and "warning: data" not in answer.out


def test_pictures_of_mixed_sizes_are_brought_to_one_and_that_is_said(undiffuse: Command, tmp_path: Path):
    for number, size in enumerate([(16, 16), (24, 16), (40, 20)] * 4):
        picture(tmp_path / "photos" / f"{number}.png", size, number)
    answer = undiffuse("train", "photos", *TINY)
    assert answer.code == 0, answer
    assert "16 x 16 pixels" in answer.out
    assert "crop" in answer.out


def test_a_zip_that_leads_out_of_itself_is_refused(undiffuse: Command, tmp_path: Path):
    picture(tmp_path / "inside.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "inside.png", "../../outside.png")
    assert undiffuse("train", "photos.zip", *TINY).refuses("../../outside.png", "leads out of it", "Pack it again")
    assert not (tmp_path.parent / "outside.png").exists()


def test_a_file_that_is_no_zip_is_refused(undiffuse: Command, tmp_path: Path):
    (tmp_path / "photos.zip").write_bytes(b"PK nothing")
    assert undiffuse("train", "photos.zip", *TINY).refuses("photos.zip", "zip")


def test_nan_in_an_array_is_refused_with_its_place(undiffuse: Command, tmp_path: Path):
    points = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    points[7, 1] = np.nan
    np.save(tmp_path / "points.npy", points)
    assert undiffuse("train", "points.npy", "train.steps=1").refuses("points.npy", "7")


def test_an_array_of_objects_is_refused_without_unpickling(undiffuse: Command, tmp_path: Path):
    np.save(tmp_path / "points.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert undiffuse("train", "points.npy", "train.steps=1").refuses(
        "points.npy", "Python objects", "expected plain numbers"
    )


def test_text_outside_the_vocabulary_is_refused(undiffuse: Command, text_run: Path, tmp_path: Path):
    (tmp_path / "other.txt").write_text("Ελληνικά " * 200, encoding="utf-8")
    assert undiffuse("evaluate", text_run, "other.txt", "-n", 2, "--out", "x").refuses("other.txt", "vocabulary")
    assert undiffuse("sample", text_run, "--prefix", "Ε", "--out", "x").refuses("Ε", "vocabulary")


def test_an_unknown_suffix_is_refused(undiffuse: Command, tmp_path: Path):
    (tmp_path / "data.xyz").write_bytes(b"1")
    assert undiffuse("train", "data.xyz").refuses("data.xyz", "unknown suffix", "expected")


def test_data_that_do_not_fit_the_model_are_refused(undiffuse: Command, digits_run: Path):
    assert undiffuse("evaluate", digits_run, "moons", "-n", 4, "--out", "x").refuses(
        "moons", "the model expects (1, 8, 8)"
    )

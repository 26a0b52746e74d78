"""SPair-71k, PF-Pascal and TSS, written in miniature as their folders look."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.data.keypoint_pairs import open_pairs, read_flow
from undiffuse.errors import DataError


def picture(path: Path, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def spair(root: Path) -> None:
    for name in ("a", "b"):
        picture(root / "JPEGImages" / "cat" / f"{name}.jpg")
    for number, (src, dst) in enumerate((("a", "b"), ("b", "a"))):
        found = {"category": "cat", "src_imname": f"{src}.jpg", "trg_imname": f"{dst}.jpg"}
        found |= {"src_kps": [[1, 2], [3, 4]], "trg_kps": [[5, 6], [7, 8]], "trg_bndbox": [2, 1, 12, 9]}
        path = root / "PairAnnotation" / "test" / f"{number}-{src}-{dst}:cat.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))


def flow(path: Path, values: np.ndarray) -> None:
    height, width = values.shape[:2]
    path.write_bytes(struct.pack("<fii", 202021.25, width, height) + values.astype("<f4").tobytes())


def tss(root: Path) -> None:
    folder = root / "JODS" / "pair1"
    for number in (1, 2):
        picture(folder / f"image{number}.png", (6, 8))
        values = np.full((6, 8, 2), float(number))
        values[0, 0] = 1e10  # unknown
        flow(folder / f"flow{number}.flo", values)
        mask = np.zeros((6, 8), np.uint8)
        mask[0, :3] = 255
        Image.fromarray(mask).save(folder / f"mask{number}.png")


def test_spair(tmp_path: Path):
    spair(tmp_path / "SPair-71k")
    layout, pairs = open_pairs(tmp_path)  # the folder around it will do
    assert (layout, len(pairs)) == ("spair", 2)
    first = pairs[0]
    assert (first.category, first.src.name, first.dst.name, first.dst_box) == ("cat", "a.jpg", "b.jpg", (2, 1, 12, 9))
    assert first.truth()[1].tolist() == [[5, 6], [7, 8]]
    listed = tmp_path / "SPair-71k" / "Layout" / "large" / "test.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("1-b-a:cat\n")
    assert [pair.src.name for pair in open_pairs(tmp_path / "SPair-71k")[1]] == ["b.jpg"]
    (tmp_path / "SPair-71k" / "PairAnnotation" / "test" / "1-b-a:cat.json").write_text("{}")
    with pytest.raises(DataError, match=r"1-b-a:cat\.json is no annotation"):
        open_pairs(tmp_path)


@pytest.mark.parametrize("annotated", [False, True])
def test_pf_pascal(tmp_path: Path, annotated: bool):
    from scipy.io import savemat

    root = tmp_path / "PF-dataset-PASCAL"
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    ends = "PF-dataset-PASCAL/JPEGImages/a.jpg,PF-dataset-PASCAL/JPEGImages/b.jpg,8"
    if annotated:
        folder = root / "Annotations" / "cat"
        folder.mkdir(parents=True)
        savemat(folder / "a.mat", {"kps": np.array([[1.0, 2], [np.nan, np.nan], [3, 4]])})
        savemat(folder / "b.mat", {"kps": np.array([[5.0, 6], [1, 1], [7, 8]])})
        (root / "test_pairs.csv").write_text(f"source_image,target_image,class\n{ends}\n")
    else:
        text = f"source_image,target_image,class,XA,YA,XB,YB\n{ends},1;3,2;4,5;7,6;8\n"
        (root / "test_pairs_pf_pascal.csv").write_text(text)
    layout, (pair,) = open_pairs(root)
    assert (layout, pair.category) == ("pf-pascal", "cat")
    assert pair.src.is_file()
    assert pair.dst.is_file()
    assert [part.tolist() for part in pair.truth()] == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


def test_tss(tmp_path: Path):
    tss(tmp_path)
    layout, pairs = open_pairs(tmp_path)
    assert (layout, [pair.name for pair in pairs]) == ("tss", ["JODS/pair1 1to2", "JODS/pair1 2to1"])
    points, truth = pairs[1].truth()
    assert points.tolist() == [[1, 0], [2, 0]]  # of the mask's three pixels one has no known flow
    assert truth.tolist() == [[3, 2], [4, 2]]
    path = tmp_path / "JODS" / "pair1" / "flow1.flo"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="damaged"):
        read_flow(path)


def test_a_missing_folder_is_told_how_it_should_look(tmp_path: Path):
    with pytest.raises(DataError, match=r"there is no folder .*SPair-71k/PairAnnotation.*PF-dataset-PASCAL.*TSS"):
        open_pairs(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no pairs of the split 'test'. Expected: tss: TSS_CVPR2016"):
        open_pairs(tmp_path, "tss")
    with pytest.raises(ValueError, match="unknown"):
        open_pairs(tmp_path, "spairs")

"""`undiffuse match` and `undiffuse bench-match`: files, figures, and one line for what cannot be answered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.cli.main import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures a.png (grey, 12 x 12) and b.png (colour, 20 x 14), their masks, and three points."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save("a.png")
    Image.fromarray(rng.integers(0, 256, (14, 20, 3), dtype=np.uint8)).save("b.png")
    for name, size in (("a", (12, 12)), ("b", (14, 20))):
        mask = np.zeros(size, np.uint8)
        mask[2:10, 2:10] = 255
        Image.fromarray(mask).save(f"{name}-mask.png")
    Path("points.csv").write_text("x,y,name\n3,1,nose\n11,11,tail\n")
    Path("broken.png").write_bytes(b"no picture")
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_points_are_found_in_two_pictures_and_drawn(capsys: pytest.CaptureFixture[str]):
    words = ("match", "a.png", "a.png", "b.png", "--points", "points.csv", "--model", "digits")
    more = ("--cond", "label=3", "--t", "0.05", "--t", "0.2", "--layer", "mid", "--layer", "up1.0")
    code, out, err = asked(
        capsys, *words, "--features", "diffusion+patch", "--alpha", "0.3", "--mutual", *more, "--json"
    )
    assert code == 0, err
    own, other = json.loads(out)["matches"]
    assert own["names"] == ["nose", "tail"]
    assert own["mutual"] == [True, True]
    assert own["settings"]["diffusion"]["t"] == [0.05, 0.2]
    assert own["settings"]["diffusion"]["cond"] == {"label": ["3"]}
    assert own["settings"]["weights"] == {"diffusion": 0.3, "patch": 0.7}
    rows = list(csv.reader(Path(other["csv"]).read_text().splitlines()))
    assert rows[1][:3] == ["nose", "3", "1"]
    assert [float(rows[2][3]), float(rows[2][4])] == pytest.approx(other["positions"][1], abs=1e-3)
    assert Image.open(own["png"]).size == (2 * 360 + 24, 360)
    assert json.loads(Path(other["json"]).read_text())["target"] == "b.png"
    assert {Path(item["png"]).name for item in (own, other)} == {"a-matches.png", "b-matches.png"}


def test_flow_and_swap(capsys: pytest.CaptureFixture[str]):
    objects = ("--mask", "a-mask.png", "--target-mask", "b-mask.png")
    code, out, err = asked(
        capsys, "match", "a.png", "b.png", "--dense", "--swap", *objects, "--features", "patch", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    flow = np.load(found["dense"][0]["flow"])
    assert flow.shape == (12, 12, 3)
    x, y = (np.arange(12)[None] + flow[..., 0]).round(), (np.arange(12)[:, None] + flow[..., 1]).round()
    assert ((x >= 2) & (x <= 9) & (y >= 2) & (y <= 9)).all()  # within the target's mask
    swapped, pasted = (np.asarray(Image.open(found["swap"][name])) for name in ("picture", "pasted"))
    assert (swapped == pasted).all()  # without a model nothing is refined
    grey = np.asarray(Image.open("a.png"))
    outside = np.asarray(Image.open("a-mask.png")) == 0
    assert (swapped[outside] == grey[outside][:, None]).all()
    assert (swapped[~outside] != grey[~outside][:, None]).any()


def test_flows_to_pictures_of_one_name_lie_in_files_of_their_own(capsys: pytest.CaptureFixture[str]):
    Path("other").mkdir()
    Path("a.png").rename("other/b.png")
    code, out, err = asked(capsys, "match", "b.png", "b.png", "other/b.png", "--dense", "--features", "patch", "--json")
    assert code == 0, err
    flows = [np.load(found["flow"]) for found in json.loads(out)["dense"]]
    assert np.abs(flows[0][..., :2]).max() < 1e-5
    assert np.abs(flows[1][..., :2]).max() > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png", "b.png"), "--points FILE, --dense"),
        (("a.png", "b.png", "--points", "points.csv"), "need a model; give --model"),
        (("a.png", "b.png", "--points", "points.csv", "--features", "patsch"), "Did you mean 'patch'?"),
        (("broken.png", "b.png", "--dense", "--features", "patch"), "cannot read the picture broken.png"),
        (("a.png", "no.png", "--dense", "--features", "patch"), "no.png: no such file"),
        (("a.png", "b.png", "--points", "none.csv", "--features", "patch"), "cannot read the points none.csv"),
        (("a.png", "b.png", "--dense", "--features", "patch", "--target-mask", "a-mask.png"), "same size"),
        (("a.png", "b.png", "--swap", "--features", "patch"), "needs the objects of both"),
        (("a.png", "b.png", "--dense", "--mask", "a-mask.png", "--features", "patch"), "belong to --swap"),
        (("a.png", "b.png", "--dense", "--ratio", "0.9", "--features", "patch"), "test single points"),
        (("a.png", "b.png", "--dense", "--draws", "4", "--features", "patch"), "read by the feature diffusion alone"),
        (("a.png", "b.png", "--dense", "--alpha", "half", "--features", "patch"), "--alpha 'half' is no number"),
        (("a.png", "b.png", "--dense", "--cond", "a=b", "--features", "patch"), "needs a model that reads it"),
        (("a.png", "b.png", "--dense", "--features", "dino"), "dino needs a network"),
    ],
)
def test_what_cannot_be_answered(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str):
    code, _, err = asked(capsys, "match", *words)
    assert code == 1
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_points_outside_are_listed(capsys: pytest.CaptureFixture[str]):
    Path("points.csv").write_text("3,1\n12,0\n-1,4\n")
    code, _, err = asked(capsys, "match", "a.png", "b.png", "--points", "points.csv", "--features", "patch")
    assert code == 1
    assert "2 of 3 points lie outside a.png of 12 x 12 pixels: number 2 (12, 0), number 3 (-1, 4)" in err


def test_the_bench_reads_a_data_set(capsys: pytest.CaptureFixture[str]):
    folder = Path("SPair-71k")
    (folder / "JPEGImages" / "cat").mkdir(parents=True)
    (folder / "PairAnnotation" / "test").mkdir(parents=True)
    for name in ("a", "b"):
        Image.open("a.png").save(folder / "JPEGImages" / "cat" / f"{name}.png")
    found = {"category": "cat", "src_imname": "a.png", "trg_imname": "b.png", "trg_bndbox": [0, 0, 11, 11]}
    found |= {"src_kps": [[1, 2], [3, 4]], "trg_kps": [[1, 2], [3, 4]]}
    (folder / "PairAnnotation" / "test" / "1-a-b:cat.json").write_text(json.dumps(found))
    code, out, err = asked(
        capsys, "bench-match", "SPair-71k", "--features", "patch", "--features", "patch+position", "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert [(row["features"], row["alpha"]) for row in result["rows"]][:2] == [("patch", 0.1), ("patch+position", 0.1)]
    assert result["rows"][0]["pck"]["value"] == 1.0
    assert result["convention"] == {"size": "bbox", "alphas": [0.1, 0.05, 0.01], "average": "point"}
    assert "errors below alpha times the bbox" in err
    assert Path("bench-match/match.json").is_file()
    code, _, err = asked(capsys, "bench-match", "nowhere", "--features", "patch")
    assert code == 1
    assert "SPair-71k/PairAnnotation/SPLIT" in err
    assert asked(capsys, "bench-match", "SPair-71k")[0] == 1

"""Video, volumes, signals, buckets and augmentation through the command: train, sample, evaluate; and bad input."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.command import Command
from undiffuse.images import write_movie

UNET = ("model.channels=8", "model.multipliers=[1,1]", "model.blocks=1", "model.attention=[]")
TINY = (*UNET, "train.steps=3", "train.batch_size=4", "train.preview_every=3", "train.previews=2")
HELD_OUT = "data.holdout=2"  # comes first, so that a test may ask for more


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def movie(path: Path, frames: int = 8, size: tuple[int, int] = (8, 12), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_movie(path, rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8), rate=10)
    return path


def sound(path: Path, rate: int = 8000, length: int = 200, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(rng(seed).integers(-9000, 9000, length, dtype=np.int16).tobytes())
    return path


def volume(path: Path, hole: bool = False, seed: int = 0) -> Path:
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng(seed).normal(100, 30, (6, 7, 8)).astype(np.float32)
    if hole:
        values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, 2.0, 2.0, 1.0])), path)
    return path


def run_of(undiffuse: Command, *words: object) -> str:
    """Train, and return what was printed."""
    answer = undiffuse("train", words[0], HELD_OUT, *words[1:], *TINY, "--out", "run")
    assert answer.code == 0, answer
    return " ".join(answer.out.split())


def sampled(undiffuse: Command, *words: object) -> list[str]:
    """Sample two, and return the names of the files."""
    answer = undiffuse("sample", "run", "-n", 2, "--steps", 2, "--out", "drawn", "--json", *words)
    assert answer.code == 0, answer
    return sorted(Path(name).name for name in json.loads(answer.out)["files"])


def test_gifs_of_two_classes(undiffuse: Command, tmp_path: Path):
    for number in range(8):
        movie(tmp_path / "clips" / "ab"[number % 2] / f"{number}.gif", seed=number)
    said = run_of(undiffuse, "clips", "data.layout=video", "data.frames=4", "model.temporal=true", "model.heads=2")
    assert "14 videos of 4 x 3 x 8 x 12" in said
    assert "2 classes: a (7), b (7)" in said
    assert {"step-00000003.gif", "step-00000003.png"} <= {path.name for path in Path("run/samples").iterdir()}
    names = sampled(undiffuse, "--label", "b")
    assert {"grid-seed0-n2.gif", "seed0-00000.gif", "seed0-00001.gif", "samples-seed0-n2.npy"} <= set(names)
    with Image.open("drawn/seed0-00000.gif") as drawn:
        assert (drawn.n_frames, drawn.size) == (4, (12, 8))
        assert drawn.info["duration"] == 100
    strips = sampled(undiffuse, "--format", "png")
    assert "seed0-00001.png" in strips
    with Image.open("drawn/seed0-00001.png") as strip:
        assert strip.size == (4 * 12, 8)


def test_mp4_files_and_one_cut_off(undiffuse: Command, tmp_path: Path):
    pytest.importorskip("av")
    for number in range(6):
        movie(tmp_path / "clips" / f"{number}.mp4", 9, seed=number)
    whole = (tmp_path / "clips" / "0.mp4").read_bytes()
    (tmp_path / "clips" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert undiffuse("train", "clips", *TINY, "data.frames=4").refuses("1 of 7 file(s)", "cut.mp4", "data.max_bad")
    said = run_of(undiffuse, "clips", "data.frames=4", "data.max_bad=0.2", "data.augment=0.5")
    assert "10 videos of 4 x 3 x 8 x 12" in said
    assert "warning: 1 file(s) could not be read: cut.mp4: " in said
    names = sampled(undiffuse, "--format", "mp4")
    assert {"grid-seed0-n2.mp4", "seed0-00000.mp4"} <= set(names)
    import av

    with av.open("drawn/seed0-00000.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 4
        assert float(container.streams.video[0].average_rate) == 10.0


def test_folders_of_frames(undiffuse: Command, tmp_path: Path):
    for number in range(4):
        for frame in range(5):
            path = tmp_path / "clips" / "ab"[number % 2] / f"v{number}" / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng(10 * number + frame).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    said = run_of(undiffuse, "clips", "data.layout=video", "data.frames=5")
    assert "2 videos of 5 x 1 x 8 x 8" in said
    assert "2 classes: a (1), b (1)" in said


def test_volumes_and_one_with_a_hole(undiffuse: Command, tmp_path: Path):
    for number in range(8):
        volume(tmp_path / "scans" / f"{number}.nii.gz", seed=number)
    volume(tmp_path / "scans" / "hole.nii", hole=True)
    assert undiffuse("train", "scans", *TINY).refuses("hole.nii: 1 of 336 values are NaN", "data.max_bad")
    said = run_of(undiffuse, "scans", "data.max_bad=0.2", "data.percentiles=[1,99]", "data.holdout=4")
    assert "4 volumes of 1 x 8 x 7 x 6" in said
    assert "turned to right, anterior, superior" in said
    names = sampled(undiffuse)
    assert {"seed0-00000.nii.gz", "slices-seed0-n2.png", "samples-seed0-n2.npy"} <= set(names)
    import nibabel

    assert nibabel.load("drawn/seed0-00000.nii.gz").shape == (6, 7, 8)
    assert Path("run/samples/step-00000003.png").is_file()
    assert undiffuse("evaluate", "run", "-n", 8, "--steps", 2).code == 0


def test_sounds_of_one_rate_and_of_two(undiffuse: Command, tmp_path: Path):
    for number in range(4):
        sound(tmp_path / "sounds" / f"{number}.wav", seed=number)
    said = run_of(undiffuse, "sounds", "data.samples=64")
    assert "windows of 64 points (0.008 s at 8000 Hz) from 4 file(s)" in said
    names = sampled(undiffuse)
    assert {"seed0-00000.wav", "plot-seed0-n2.png", "samples-seed0-n2.npy"} <= set(names)
    with wave.open("drawn/seed0-00000.wav") as drawn:
        assert (drawn.getframerate(), drawn.getnframes(), drawn.getsampwidth()) == (8000, 64, 2)
    assert Path("run/samples/step-00000003.png").is_file()
    sound(tmp_path / "sounds" / "fast.wav", rate=16000)
    refused = undiffuse("train", "sounds", *TINY, "data.samples=64", "--out", "other")
    assert refused.refuses("2 rates: 8000 (4), 16000 (1)", "data.rate")
    assert undiffuse("evaluate", "run", "sounds", "-n", 4).refuses("2 rates", "data.rate")
    assert undiffuse("train", "sounds", *TINY, "data.samples=64", "data.rate=8000", "--out", "other").code == 0


def test_buckets_from_training_to_samples_of_other_sizes(undiffuse: Command, tmp_path: Path):
    for number in range(24):
        height, width = [(16, 24), (24, 16), (20, 20)][number % 3]
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    buckets = ("data.buckets=true", "data.size=16", "data.bucket_step=4")
    said = run_of(undiffuse, "photos", *buckets, "data.augment=0.2", "data.holdout=4")
    assert "3 bucket(s)" in said
    assert "augment xflip, scale, rotate, stretch, translate: each with probability 0.2" in said
    assert "20 x 12: 8 picture(s), 10.0% cut away" in said
    sampled(undiffuse, "--size", "20x12")
    with Image.open("drawn/seed0-00001.png") as drawn:
        assert drawn.size == (12, 20)
    sampled(undiffuse)
    with Image.open("drawn/seed0-00001.png") as drawn:
        assert drawn.size == (16, 16)
    assert undiffuse("sample", "run", "--size", "20x").refuses("--size '20x'", "HxW")
    assert undiffuse("evaluate", "run", "-n", 8, "--steps", 2).code == 0


def test_what_options_do_not_suit_is_refused(undiffuse: Command, tmp_path: Path, digits_run: Path):
    assert undiffuse("sample", digits_run, "--format", "mp4").refuses("--format mp4 is for videos", "image data")
    sound(tmp_path / "a.wav")
    assert undiffuse("train", "a.wav", *TINY, "data.frames=4").refuses("data.frames=4 has no use for signals")
    assert undiffuse("train", "a.wav", *TINY, "data.samples=16", "data.augment=0.1").refuses("data.augment moves")
    assert undiffuse("evaluate", digits_run, "a.wav").refuses("'signal'", "trained on image data")


@pytest.mark.parametrize("name", ["empty.gif", "words.gif"])
def test_a_broken_gif_is_named(undiffuse: Command, tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"this is no picture")
    assert undiffuse("train", name, *TINY, "data.layout=video").refuses(name, "can be read")


def test_a_video_shorter_than_a_clip_is_named(undiffuse: Command, tmp_path: Path):
    movie(tmp_path / "short.gif", frames=3)
    assert undiffuse("train", "short.gif", *TINY, "data.layout=video").refuses("16 frames of a clip", "data.frames")


def test_a_folder_of_numbers_needs_a_layout(undiffuse: Command, tmp_path: Path):
    (tmp_path / "numbers").mkdir()
    np.save(tmp_path / "numbers" / "a.npy", np.zeros((2, 30)))
    assert undiffuse("train", "numbers", *TINY).refuses(".npy files", "data.layout=signal or volume")

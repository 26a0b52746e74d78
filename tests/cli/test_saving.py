"""Samples as files: what is written for each kind of data."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.cli.asking import read_size
from undiffuse.cli.sample import folder_name
from undiffuse.cli.saving import save_samples
from undiffuse.spec import DataSpec

MADE_BY: dict[str, Any] = {"seed": 3, "n": 2, "cond": None}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_videos_play_alone_and_side_by_side(tmp_path: Path):
    spec = DataSpec(kind="video", shape=(3, 1, 8, 10), range=(0.0, 255.0), rate=5.0)
    videos = torch.tensor([0.0, 128.0, 255.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 8, 10)
    saved = save_samples(videos, spec, tmp_path, MADE_BY)
    assert saved.main.name == "grid-seed3-n2.gif"
    assert set(path.name for path in saved.files) == names(tmp_path)
    with Image.open(tmp_path / "seed3-00001.gif") as movie:
        assert (movie.n_frames, movie.size, movie.info["duration"]) == (3, (10, 8), 200)
        shown = []
        for number in range(3):
            movie.seek(number)
            shown.append(np.asarray(movie.convert("L")).mean())
    assert shown == [0.0, 128.0, 255.0]
    assert np.load(tmp_path / "samples-seed3-n2.npy").shape == (2, 3, 1, 8, 10)


def test_videos_as_strips_and_as_mp4(tmp_path: Path):
    spec = DataSpec(kind="video", shape=(3, 3, 7, 9), range=(0.0, 255.0))
    videos = torch.zeros(2, 3, 3, 7, 9)
    save_samples(videos, spec, tmp_path / "png", MADE_BY, "png")
    with Image.open(tmp_path / "png" / "seed3-00000.png") as strip:
        assert strip.size == (27, 7)
    av = pytest.importorskip("av")
    save_samples(videos, spec, tmp_path / "mp4", MADE_BY, "mp4")
    with av.open(str(tmp_path / "mp4" / "seed3-00000.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
        assert container.streams.video[0].width == 10  # even sides: the last column twice


def test_volumes_give_slices_and_nifti(tmp_path: Path):
    spec = DataSpec(kind="volume", shape=(1, 4, 5, 6))
    volumes = torch.randn(2, 1, 4, 5, 6)
    saved = save_samples(volumes, spec, tmp_path, MADE_BY)
    assert saved.main.name == "slices-seed3-n2.png"
    assert "samples-seed3-n2.npy" in names(tmp_path)
    nibabel = pytest.importorskip("nibabel")
    read = np.asarray(nibabel.load(tmp_path / "seed3-00001.nii.gz").dataobj)
    assert np.array_equal(read, volumes[1, 0].numpy().transpose(2, 1, 0))


def test_signals_give_sound_where_they_have_a_rate(tmp_path: Path):
    signals = torch.rand(2, 2, 50) * 2 - 1
    spec = DataSpec(kind="signal", shape=(2, 50), range=(-1.0, 1.0), rate=22050.0)
    saved = save_samples(signals, spec, tmp_path / "sound", MADE_BY)
    assert saved.main.name == "plot-seed3-n2.png"
    with wave.open(str(tmp_path / "sound" / "seed3-00001.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (22050, 2, 50)
        levels = np.frombuffer(file.readframes(50), dtype=np.int16).reshape(50, 2).T
    np.testing.assert_allclose(levels / 32767, signals[1].numpy(), atol=1e-4)
    save_samples(signals, DataSpec(kind="signal", shape=(2, 50)), tmp_path / "series", MADE_BY)
    assert not any(name.endswith(".wav") for name in names(tmp_path / "series"))


def test_a_format_without_use_writes_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="is for videos; this model makes vector data"):
        save_samples(torch.zeros(2, 3), DataSpec(kind="vector", shape=(3,)), tmp_path / "a", MADE_BY, "gif")
    video = DataSpec(kind="video", shape=(1, 1, 4, 4))
    with pytest.raises(ValueError, match="'webm' is unknown; use gif, mp4 or png"):
        save_samples(torch.zeros(2, 1, 1, 4, 4), video, tmp_path / "a", MADE_BY, "webm")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("text", "size"), [("96x64", (96, 64)), ("96", (96, 96)), ("8X16", (8, 16)), ("5×7", (5, 7))])
def test_sizes_are_read(text: str, size: tuple[int, int]):
    assert read_size(text) == size
    assert folder_name(0, [], [], {"size": size}) == f"samples-seed0-size{size[0]}x{size[1]}"


@pytest.mark.parametrize("text", ["axb", "1x2x3", "8x", "-8x8"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ValueError, match="write HxW"):
        read_size(text)

"""Signals: every depth of .wav, windows, rates, and files that cannot be used."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.data import DataOptions, open_data
from undiffuse.data.signals import read_signal, write_wav
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

SIGNAL = DataOptions(layout="signal", samples=50)


def tone(length: int = 200, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Values (C, N) in [-1, 1)."""
    return np.random.default_rng(seed).uniform(-0.99, 0.99, (channels, length))


def save(path: Path, values: np.ndarray, width: int = 2, rate: int = 8000) -> Path:
    """Write a .wav file with the standard library: `width` bytes per sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.floor(values.T * 2 ** (8 * width - 1)).astype(np.int64).ravel()
    raw = b"".join(int(v).to_bytes(4, "little", signed=True)[:width] if width > 1 else bytes([v + 128]) for v in levels)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(values))
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_depth_reads_the_same_sound(tmp_path: Path, width: int, channels: int):
    values = tone(channels=channels)
    signal = read_signal(save(tmp_path / "a.wav", values, width), "a")
    assert signal.rate == 8000.0
    assert signal.values.shape == (channels, 200)
    np.testing.assert_allclose(signal.values, values, atol=2.0 ** (1 - 8 * width) + 1e-7)


def test_what_is_written_is_read(tmp_path: Path):
    values = np.concatenate((tone(channels=2), [[1.5], [-2.0]]), axis=1)
    write_wav(tmp_path / "a.wav", values, 44100.0)
    signal = read_signal(tmp_path / "a.wav", "a")
    assert signal.rate == 44100.0
    np.testing.assert_allclose(signal.values, values.clip(-1, 1), atol=1e-4)


@pytest.mark.parametrize("lazy", [False, True])
def test_windows_hold_the_points_that_their_number_says(tmp_path: Path, lazy: bool):
    first, second = tone(130), tone(70, seed=1)
    save(tmp_path / "a.wav", first)
    save(tmp_path / "b.wav", second)
    dataset = open_data(str(tmp_path), DataOptions(samples=50, overlap=10, lazy=lazy))
    assert (dataset.spec.kind, dataset.spec.shape, dataset.spec.range) == ("signal", (1, 50), (-1.0, 1.0))
    assert dataset.spec.rate == 8000.0
    x = dataset.batch(torch.tensor([3, 0, 2, 1]))["x"].numpy()
    wanted = [second[:, :50], first[:, :50], first[:, 80:130], first[:, 40:90]]
    np.testing.assert_allclose(x, np.stack(wanted), atol=1e-4)


def test_folders_are_classes_and_short_files_are_counted(tmp_path: Path):
    for number in range(4):
        save(tmp_path / "ab"[number % 2] / f"{number}.wav", tone(60 if number else 20, seed=number))
    dataset = open_data(str(tmp_path), DataOptions(samples=50))
    assert dataset.spec.classes == ("a", "b")
    assert dataset.batch(torch.arange(3))["cond"]["label"].tolist() == [0, 1, 1]
    assert any("1 file(s) are shorter than one window" in line and "a/0.wav" in line for line in dataset.summary())


def test_the_length_is_that_of_the_shortest_file_at_most_4096(tmp_path: Path):
    save(tmp_path / "a.wav", tone(300))
    save(tmp_path / "b.wav", tone(200))
    assert open_data(str(tmp_path)).spec.shape == (1, 200)
    assert len(open_data(str(tmp_path))) == 2


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_numbers_without_a_rate_are_standardised(tmp_path: Path, suffix: str):
    values = [tone(120, channels=2, seed=number) * 7 + 3 for number in range(3)]
    for number, signal in enumerate(values):
        if suffix == "npy":
            np.save(tmp_path / f"{number}.npy", signal if number else signal.T)  # either way around
        else:
            np.savetxt(tmp_path / f"{number}.csv", signal.T, delimiter=",", header="left,right", comments="")
    dataset = open_data(str(tmp_path), DataOptions(layout="signal", samples=60))
    assert (len(dataset), dataset.spec.shape, dataset.spec.range, dataset.spec.rate) == (6, (2, 60), None, 0.0)
    x = dataset.batch(torch.arange(6))["x"]
    torch.testing.assert_close(x.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2), unbiased=False), torch.ones(2), atol=1e-5, rtol=0)
    back = dataset.spec.from_model(x)[1]
    torch.testing.assert_close(back, torch.from_numpy(values[0][:, 60:]).float(), atol=1e-5, rtol=1e-5)


def test_mixed_rates_are_refused_or_resampled(tmp_path: Path):
    seconds = np.arange(800) / 8000
    save(tmp_path / "slow.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds)[None])
    seconds = np.arange(1600) / 16000
    save(tmp_path / "fast.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds)[None], rate=16000)
    with pytest.raises(DataError, match=r"2 rates: .*8000 \(1\).*; set data\.rate"):
        open_data(str(tmp_path), DataOptions(samples=800))
    dataset = open_data(str(tmp_path), DataOptions(samples=800, rate=8000))
    fast, slow = dataset.batch(torch.arange(2))["x"]
    torch.testing.assert_close(fast[:, 50:-50], slow[:, 50:-50], atol=5e-3, rtol=0)  # away from the filter's edges
    assert dataset.spec.rate == 8000.0


def test_a_model_refuses_another_rate_and_other_channels(tmp_path: Path):
    save(tmp_path / "a.wav", tone(), rate=16000)
    spec = DataSpec(kind="signal", shape=(1, 50), range=(-1.0, 1.0), rate=8000.0)
    with pytest.raises(DataError, match=r"16000 points per second but the model's 8000; set data\.rate=8000"):
        open_data(str(tmp_path), spec=spec)
    assert open_data(str(tmp_path), DataOptions(rate=8000), spec=spec).batch(torch.tensor([0]))["x"].shape == (1, 1, 50)
    stereo = DataSpec(kind="signal", shape=(2, 50), range=(-1.0, 1.0), rate=16000.0)
    with pytest.raises(DataError, match=r"it has 1 channel\(s\) where 2 are expected"):
        open_data(str(tmp_path), spec=stereo)


def test_values_beyond_the_range_are_clipped_and_counted(tmp_path: Path):
    from scipy.io import wavfile

    values = tone(100)[0].astype(np.float32)
    values[[3, 40]] = (1.7, -2.0)
    wavfile.write(tmp_path / "a.wav", 8000, values)
    dataset = open_data(str(tmp_path), DataOptions(samples=100))
    x = dataset.batch(torch.tensor([0]))["x"][0, 0]
    assert (float(x[3]), float(x[40])) == (1.0, -1.0)
    assert any("2 value(s) beyond" in line for line in dataset.summary())


def test_bad_files_are_counted_and_named(tmp_path: Path):
    from scipy.io import wavfile

    for number in range(10):
        save(tmp_path / f"{number}.wav", tone(60, seed=number))
    whole = (tmp_path / "0.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:100])
    (tmp_path / "head.wav").write_bytes(whole[:20])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "words.wav").write_text("this is no sound")
    save(tmp_path / "silent.wav", np.zeros((1, 0)))
    save(tmp_path / "stereo.wav", tone(60, channels=2))
    hole = tone(60)[0].astype(np.float32)
    hole[5] = np.nan
    wavfile.write(tmp_path / "hole.wav", 8000, hole)
    dataset = open_data(str(tmp_path), DataOptions(samples=50, max_bad=0.5))
    assert len(dataset) == 10
    reasons = {problem.path: problem.reason for problem in dataset.problems}
    bad = {"cut.wav", "head.wav", "empty.wav", "words.wav", "silent.wav", "stereo.wav", "hole.wav"}
    assert set(reasons) == bad
    assert reasons["hole.wav"] == "1 of 60 values are NaN or infinite"
    assert all("\n" not in reason and reason for reason in reasons.values())
    with pytest.raises(DataError, match=r"of 17 file\(s\).*data\.max_bad"):
        open_data(str(tmp_path), DataOptions(samples=50))


def test_a_chunk_of_another_kind_is_passed_over(tmp_path: Path):
    """Recorders put their own chunks behind the sound; that is no damage."""
    path = save(tmp_path / "a.wav", tone(60))
    raw = path.read_bytes() + b"note" + struct.pack("<I", 4) + b"abcd"
    path.write_bytes(raw[:4] + struct.pack("<I", len(raw) - 8) + raw[8:])
    assert read_signal(path, "a").values.shape == (1, 60)


def test_kinds_of_files_are_not_mixed(tmp_path: Path):
    save(tmp_path / "a.wav", tone())
    np.save(tmp_path / "b.npy", tone())
    with pytest.raises(DataError, match=r"\.wav files and others"):
        open_data(str(tmp_path), SIGNAL)

"""Clips of videos: which frames they hold, from every kind of file, at once or while training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.data import DataOptions, open_data, split
from undiffuse.data.clips import cut_windows
from undiffuse.errors import DataError
from undiffuse.images import movies, write_movie
from undiffuse.images.movies import MissingReader, read_frames, read_movie_header
from undiffuse.spec import DataSpec

VIDEO = DataOptions(layout="video", frames=4)


def numbered(frames: int, start: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    """Frames (F, H, W, 3) whose grey level is 6 times their number: a codec keeps it within 2."""
    levels = (6 * (start + np.arange(frames))).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def levels(dataset, positions: list[int]) -> torch.Tensor:
    """Return the frame number that each frame of these clips shows, (B, F)."""
    x = dataset.batch(torch.tensor(positions))["x"]
    return ((x.mean((2, 3, 4)) + 1) * 127.5 / 6).round().long()


def frame_folder(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(folder / f"{number}.png")  # 10 sorts before 2 as text


def make(path: Path, kind: str, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "frames":
        frame_folder(path, frames)
    else:
        if kind == "mp4":
            pytest.importorskip("av")
        write_movie(path.with_suffix(f".{kind}"), frames, rate=20)


@pytest.mark.parametrize("kind", ["gif", "mp4", "frames"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_clip_holds_the_frames_that_its_number_says(tmp_path: Path, kind: str, lazy: bool):
    make(tmp_path / "clips" / "a", kind, numbered(14))
    make(tmp_path / "clips" / "b", kind, numbered(11, start=20))
    dataset = open_data(str(tmp_path / "clips"), DataOptions(layout="video", frames=3, stride=2, overlap=1, lazy=lazy))
    # span 5, one every (3 - 1) * 2 = 4: a begins at 0, 4, 8; b at 0, 4
    assert len(dataset) == 5
    wanted = [[0, 2, 4], [4, 6, 8], [8, 10, 12], [20, 22, 24], [24, 26, 28]]
    assert levels(dataset, [3, 0, 4, 2, 1]).tolist() == [wanted[i] for i in (3, 0, 4, 2, 1)]
    assert dataset.spec.kind == "video"
    assert dataset.spec.shape[0] == 3
    assert dataset.spec.rate == (0.0 if kind == "frames" else 10.0)
    assert any("share frames" in line for line in dataset.summary())


@pytest.mark.parametrize(("length", "span", "step"), [(10, 4, 4), (10, 4, 2), (4, 4, 9), (3, 4, 4), (17, 5, 3)])
def test_windows_are_all_that_fit(length: int, span: int, step: int):
    windows = cut_windows([length], span, step)
    expected = [first for first in range(length) if first % step == 0 and first + span <= length]
    assert windows.first.tolist() == expected
    assert windows.short == ((0,) if length < span else ())


def test_folders_are_classes_and_short_videos_are_counted(tmp_path: Path):
    for number in range(3):
        make(tmp_path / "cats" / str(number), "gif", numbered(4))
        make(tmp_path / "dogs" / str(number), "gif", numbered(8 if number else 2))
    dataset = open_data(str(tmp_path), VIDEO)
    assert dataset.spec.classes == ("cats", "dogs")
    assert dataset.batch(torch.arange(7))["cond"]["label"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert any("1 video(s) are shorter than one clip" in line and "dogs/0.gif" in line for line in dataset.summary())
    training, held_out = split(dataset, 2)
    assert (len(training), len(held_out)) == (5, 2)


def test_clips_are_brought_to_size_channels_and_a_model(tmp_path: Path):
    make(tmp_path / "a", "gif", numbered(8, height=10, width=20))
    path = str(tmp_path / "a.gif")
    options = DataOptions(layout="video", frames=4, size=6, channels="grey", flip=True)
    dataset = open_data(path, options)
    assert dataset.spec.shape == (4, 1, 6, 6)
    assert len(dataset) == 4
    flipped = dataset.batch(torch.tensor([0, 2]))["x"]
    assert torch.equal(flipped[0].flip(-1), flipped[1])
    model = DataSpec(kind="video", shape=(2, 3, 4, 4), range=(0.0, 255.0))
    assert open_data(path, VIDEO, spec=model).batch(torch.tensor([3]))["x"].shape == (1, 2, 3, 4, 4)
    with pytest.raises(DataError, match=r"kind 'video' but the model was trained on image data"):
        open_data(path, VIDEO, spec=DataSpec(kind="image", shape=(3, 4, 4), range=(0.0, 255.0)))


def test_a_limit_is_a_fixed_choice_of_clips(tmp_path: Path):
    make(tmp_path / "a", "gif", numbered(40))
    path = str(tmp_path / "a.gif")
    first, again = (open_data(path, DataOptions(layout="video", frames=4, limit=3)) for _ in range(2))
    assert len(first) == 3
    assert torch.equal(first.batch(torch.arange(3))["x"], again.batch(torch.arange(3))["x"])


def test_clips_longer_than_all_videos_are_refused(tmp_path: Path):
    make(tmp_path / "a", "gif", numbered(5))
    with pytest.raises(DataError, match=r"has the 16 frames of a clip \(the longest has 5\); lower data.frames"):
        open_data(str(tmp_path), DataOptions(layout="video"))
    with pytest.raises(DataError, match=r"data\.overlap=4 leaves nothing new"):
        open_data(str(tmp_path), DataOptions(layout="video", frames=4, overlap=4))


def test_a_gif_stays_a_picture_unless_asked(tmp_path: Path):
    make(tmp_path / "a", "gif", numbered(5))
    dataset = open_data(str(tmp_path), DataOptions(channels="rgb"))
    assert dataset.spec.kind == "image"
    assert any("data.layout=video" in line for line in dataset.summary())


# -- files ----------------------------------------------------------------------------------------


def test_a_gif_is_read_as_written(tmp_path: Path):
    frames = np.random.default_rng(0).choice(np.array([0, 80, 160, 240], dtype=np.uint8), (5, 6, 9, 1))
    write_movie(tmp_path / "a.gif", frames, rate=12.5)
    header = read_movie_header(tmp_path / "a.gif", "a.gif")
    assert (header.frames, header.height, header.width, header.rate, header.colour) == (5, 6, 9, 12.5, False)
    read = [np.asarray(f) for f in read_frames(tmp_path / "a.gif", "a.gif", header, range(5), "grey")]
    assert np.array_equal(np.stack(read), frames[..., 0])


def test_frames_are_found_by_seeking_and_without(tmp_path: Path):
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    write_movie(path, numbered(40), rate=25)
    header = read_movie_header(path, "a")
    for numbers in ([0], [39], [7, 8, 30], list(range(40))):
        shown = [round(float(np.asarray(f).mean()) / 6) for f in read_frames(path, "a", header, numbers)]
        assert shown == numbers


def test_frames_come_in_the_order_in_which_they_are_shown(tmp_path: Path):
    """Frames that are predicted from later ones are stored behind these."""
    av = pytest.importorskip("av")
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV writes no such frames")
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        stream.options = {"bf": "3", "x264-params": "b-adapt=0:scenecut=0", "crf": "5"}
        for pixels in numbered(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored), "the file is none of the kind"
    assert levels(open_data(str(path), VIDEO), [0, 1, 2, 3]).flatten().tolist() == list(range(16))


def rewrite(source: Path, target: Path, *options: str) -> None:
    """Copy a video by the ffmpeg program."""
    import subprocess

    program = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    before = [option for option in options if option.startswith(("-display", "90"))]
    after = [option for option in options if option not in before]
    subprocess.run([program, "-loglevel", "error", *before, "-i", str(source), *after, str(target)], check=True)


def marked(frames: int = 6) -> np.ndarray:
    """A bright corner, upper left."""
    pixels = np.zeros((frames, 16, 32, 3), dtype=np.uint8)
    pixels[:, :8, :8] = 255
    return pixels


def test_turned_videos_stand_upright(tmp_path: Path):
    pytest.importorskip("av")
    write_movie(tmp_path / "a.mp4", marked(), rate=10)
    rewrite(tmp_path / "a.mp4", tmp_path / "b.mp4", "-display_rotation", "90", "-c", "copy")
    header = read_movie_header(tmp_path / "b.mp4", "b")
    assert (header.height, header.width, header.turned) == (32, 16, 90)
    frame = np.asarray(next(iter(read_frames(tmp_path / "b.mp4", "b", header, [0]))))
    assert frame[-4, 4].min() > 200  # counter-clockwise: the upper left corner comes down
    assert frame[4, 4].max() < 50


def test_variable_rates_are_reported_and_numbers_hold(tmp_path: Path):
    av = pytest.importorskip("av")
    path = tmp_path / "v.mkv"
    from fractions import Fraction

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate([0, 40, 80, 480, 520, 560, 1200, 1240]):
            frame = av.VideoFrame.from_ndarray(numbered(8)[number], format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    dataset = open_data(str(path), VIDEO)
    assert any("variable frame rate" in line for line in dataset.summary())
    assert levels(dataset, [0, 1]).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_other_reader_gives_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("av")
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    write_movie(path, numbered(12), rate=10)
    want = open_data(str(path), VIDEO).batch(torch.arange(3))["x"]
    monkeypatch.setattr(movies, "_has_av", lambda: False)
    got = open_data(str(path), VIDEO)
    assert (got.spec.rate, len(got)) == (10.0, 3)
    torch.testing.assert_close(got.batch(torch.arange(3))["x"], want, atol=4 / 127.5, rtol=0)  # colour conversions


def test_without_any_reader_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.mp4").write_bytes(b"anything")
    monkeypatch.setattr(movies, "_has_av", lambda: False)
    monkeypatch.setattr(movies, "_has_fallback", lambda: False)
    with pytest.raises(MissingReader, match=r"pip install 'undiffuse\[data\]'"):
        open_data(str(tmp_path / "a.mp4"), VIDEO)
    with pytest.raises(MissingReader, match=r"pip install 'undiffuse\[data\]'"):
        write_movie(tmp_path / "b.mp4", numbered(2))


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0\0\0\x18ftypmp42" + bytes(200)])
@pytest.mark.parametrize("suffix", ["gif", "mp4", "webm", "avi"])
def test_broken_files_are_named_in_one_line(tmp_path: Path, content: bytes, suffix: str):
    if suffix != "gif":
        pytest.importorskip("av")
    (tmp_path / f"bad.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=rf"none of the 1 file.*bad\.{suffix}: ") as caught:
        open_data(str(tmp_path / f"bad.{suffix}"), VIDEO)
    assert "\n" not in str(caught.value)


def test_a_video_that_breaks_in_the_middle_is_left_out_at_once_or_later(tmp_path: Path):
    for number in range(4):
        make(tmp_path / str(number), "gif", numbered(8, start=number))
    cut = (tmp_path / "1.gif").read_bytes()
    (tmp_path / "1.gif").write_bytes(cut[: len(cut) - len(cut) // 8])
    options = DataOptions(layout="video", frames=4, max_bad=0.3)
    for lazy in (False, True):
        dataset = open_data(str(tmp_path), DataOptions(**{**vars(options), "lazy": lazy}))
        x = dataset.batch(torch.arange(len(dataset)))["x"]
        assert x.isfinite().all()
        found = [*dataset.problems, *(dataset.found_late() if lazy else [])]
        assert {problem.path for problem in found} == {"1.gif"}
    with pytest.raises(DataError, match=r"1 of 4 file\(s\).*1\.gif"):
        open_data(str(tmp_path), VIDEO)


def test_movies_of_wrong_pixels_or_name_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected uint8"):
        write_movie(tmp_path / "a.gif", np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        write_movie(tmp_path / "a.webm", numbered(2))
    assert not list(tmp_path.iterdir())


def test_reading_videos_loads_no_video_library_for_gifs(tmp_path: Path):
    make(tmp_path / "a", "gif", numbered(4))
    loaded = set(sys.modules)
    open_data(str(tmp_path / "a.gif"), VIDEO)
    assert "imageio" not in set(sys.modules) - loaded

"""Reading any picture, writing PNG with its recipe, grids."""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.files import BROKEN, deep_colour_png, encoded, pixels, save, write_broken
from undiffuse.errors import DataError
from undiffuse.images import UnreadablePicture, image_grid, read_image, read_recipe, write_image
from undiffuse.images.fit import enlargement, fit
from undiffuse.images.read import load_picture, read_header


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_reads_back_exactly(tmp_path: Path, channels: int):
    array = pixels(5, 7, channels)
    save(tmp_path / "a.png", array)
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array.reshape(5, 7, channels))


def test_16_bit_grey_keeps_its_precision(tmp_path: Path):
    levels = np.array([[0, 1, 257], [300, 40_000, 65_535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        save(tmp_path / name, levels)
        read = read_image(tmp_path / name)
        np.testing.assert_allclose(read[..., 0] * 257, levels, rtol=1e-6)
        assert read.max() == 255.0
    assert read_image(tmp_path / "a.png", channels="rgba").shape == (2, 3, 4)


def test_16_bit_colour_is_read_with_8_bits_and_says_so(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(deep_colour_png())
    assert read_image(tmp_path / "a.png").shape == (4, 4, 3)
    with open(tmp_path / "a.png", "rb") as file:
        assert read_header(file, "a.png").reduced


def test_alpha_is_kept_or_laid_over_the_background(tmp_path: Path):
    array = np.zeros((1, 3, 4), dtype=np.uint8)
    array[0, :, 0] = 200
    array[0, :, 3] = (0, 255, 51)  # transparent, opaque, a fifth
    save(tmp_path / "a.png", array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), array)
    white = read_image(tmp_path / "a.png", channels="rgb")
    np.testing.assert_allclose(white[0], [[255, 255, 255], [200, 0, 0], [244, 204, 204]], atol=1)
    black = read_image(tmp_path / "a.png", channels="rgb", background=0)
    np.testing.assert_allclose(black[0, :, 0], [0, 200, 40], atol=1)


def test_palettes_with_and_without_transparency_become_colours(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), [[[255, 0, 0], [0, 0, 255]]])
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png")[..., 3], [[0, 255]])
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png", channels="rgb"), [[[255, 255, 255], [0, 0, 255]]])


def test_cmyk_and_black_and_white_are_read(tmp_path: Path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg")[0, 0], [255, 0, 0], atol=3)
    Image.new("1", (2, 2), 1).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), np.full((2, 2, 1), 255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, suffix: str):
    upright = pixels(2, 3, 1)
    # What a camera stores for each value of the tag (EXIF 2.3, table 6): the inverse of the display's turn.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(path)[..., 0], upright)
    if suffix != "png":
        with open(path, "rb") as file:
            header = read_header(file, "a")
        assert (header.height, header.width) == (2, 3)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_gives_one_line_with_path_and_reason(tmp_path: Path, name: str):
    write_broken(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    expected = {"empty": "empty", "words": "not a picture", "truncated": "truncated", "bomb": "bomb", "large": "bomb"}
    assert expected.get(name.split(".")[0], "") in message


def test_a_missing_picture_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(UnreadablePicture, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(UnreadablePicture, match="directory"):
        read_image(tmp_path)


def test_floats_without_a_known_range_are_refused(tmp_path: Path):
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"\.npy"):
        read_image(tmp_path / "a.tif")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 700), change=st.integers(0, 699), value=st.integers(0, 255))
def test_no_damage_to_a_file_escapes_as_another_error(cut: int, change: int, value: int):
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        content = bytearray(encoded(pixels(12, 12), kind))
        content[change % len(content)] = value
        try:
            array = read_image(io.BytesIO(bytes(content[: max(1, len(content) - cut)])))
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert np.isfinite(array).all()


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    policy=st.sampled_from(["crop", "pad", "stretch"]),
    mode=st.sampled_from(["L", "RGB", "RGBA", "F"]),
)
def test_every_policy_reaches_the_target_size(size, target, policy, mode):
    picture = fit(Image.new(mode, size), *target, policy)
    assert picture.size == (target[1], target[0])
    assert picture.mode == mode
    assert enlargement(size[1], size[0], target, policy) > 0


def test_policies_keep_what_they_promise():
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255  # the middle third
    image = Image.fromarray(wide)
    assert np.asarray(fit(image, 10, 10, "crop")).min() == 255
    padded = np.asarray(fit(image, 30, 30, "pad"))
    assert padded[:10].max() == padded[20:].max() == 0
    np.testing.assert_array_equal(padded[10:20], wide)
    assert 0.2 < np.asarray(fit(image, 12, 12, "stretch")).mean() / 255 < 0.45


def test_a_large_jpeg_is_decoded_small_but_not_too_small(tmp_path: Path):
    small = load_picture(io.BytesIO(encoded(pixels(800, 1200), "JPEG")), "a", side=50)
    assert 100 <= min(small.size) < 800


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_what_is_written_reads_back_with_its_recipe(tmp_path: Path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    recipe = {"sample": {"solver": "ddim", "steps": 20}, "name": "Größe"}
    path = tmp_path / "new" / "folder" / "a.png"
    write_image(path, array, recipe)
    np.testing.assert_array_equal(read_image(path), array.reshape(4, 6, -1))
    assert read_recipe(path) == recipe
    assert os.listdir(path.parent) == ["a.png"]
    assert json.loads(Image.open(path).text["undiffuse"]) == recipe


def test_the_bytes_written_depend_on_nothing_else(tmp_path: Path):
    array = pixels(8, 8)
    write_image(tmp_path / "a.png", array, {"b": 1, "a": 2})
    write_image(tmp_path / "b.png", array, {"a": 2, "b": 1})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failed_write_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    write_image(path, pixels(4, 4))
    before = path.read_bytes()

    def full(self, target, **options):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_image(path, pixels(4, 4, seed=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_file_in_the_place_of_the_folder_is_an_os_error(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        write_image(tmp_path / "file" / "a.png", pixels(2, 2))


@pytest.mark.parametrize(
    ("name", "array", "recipe", "match"),
    [
        ("a.jpg", pixels(2, 2), None, "png"),
        ("a.png", np.zeros((2, 2)), None, "uint8"),
        ("a.png", np.zeros((2, 2, 2), np.uint8), None, "C = 1, 3 or 4"),
        ("a.png", np.zeros((0, 2), np.uint8), None, "shape"),
        ("a.png", pixels(2, 2), {"a": object()}, "JSON"),
    ],
)
def test_wrong_arguments_to_write_are_refused(tmp_path: Path, name, array, recipe, match):
    with pytest.raises(ValueError, match=match):
        write_image(tmp_path / name, array, recipe)
    assert os.listdir(tmp_path) == []


def test_recipes_of_other_files(tmp_path: Path):
    save(tmp_path / "plain.png", pixels(2, 2))
    assert read_recipe(tmp_path / "plain.png") is None
    (tmp_path / "words.png").write_text("no")
    for name in ("words.png", "gone.png"):
        with pytest.raises(DataError, match=name):
            read_recipe(tmp_path / name)
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("undiffuse", "{broken")
    Image.new("L", (1, 1)).save(tmp_path / "broken.png", pnginfo=info)
    with pytest.raises(DataError, match="JSON"):
        read_recipe(tmp_path / "broken.png")


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 4), (7, 3)])
def test_a_grid_has_the_promised_size_and_channels(channels: int, shown: int):
    grid = image_grid(torch.zeros(5, channels, 8, 6), columns=2, pad=1, scale=3)
    assert grid.shape == (3 * 25 + 1, 2 * 19 + 1, shown)
    assert grid.dtype == np.uint8
    assert grid[0, 0, 0] == 255
    assert grid[1, 1, 0] in (127, 128)


def test_tiles_lie_in_reading_order_at_the_right_levels():
    batch = torch.tensor([-1.0, 0.2, 1.0, 5.0]).view(4, 1, 1, 1)
    grid = image_grid(batch, columns=2, pad=0, scale=1)[..., 0]
    np.testing.assert_array_equal(grid, [[0, 153], [255, 255]])
    data_units = image_grid(np.array([0, 16]).reshape(2, 1, 1, 1), bounds=(0, 16), pad=0, scale=1)
    np.testing.assert_array_equal(data_units[..., 0], [[0, 255]])


def test_tiny_images_are_enlarged_and_large_ones_left():
    assert image_grid(torch.zeros(1, 1, 8, 8), pad=0).shape == (64, 64, 1)
    assert image_grid(torch.zeros(1, 1, 80, 90), pad=0).shape == (80, 90, 1)
    assert image_grid(torch.full((1, 1, 1, 1), float("nan")), pad=0, scale=1).item() == 0


@pytest.mark.parametrize("kwargs", [{"columns": -1}, {"scale": 0}, {"pad": -1}, {"bounds": (1, 1)}])
def test_wrong_arguments_to_the_grid_are_refused(kwargs):
    with pytest.raises(ValueError):
        image_grid(torch.zeros(2, 1, 2, 2), **kwargs)
    for shape in ((0, 1, 2, 2), (1, 2, 2)):
        with pytest.raises(ValueError, match="batch"):
            image_grid(torch.zeros(shape))

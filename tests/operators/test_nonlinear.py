"""Operators that are not linear, against closed forms, symmetries and Pillow."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.operators.cases import normals
from undiffuse import operators as ops
from undiffuse.operators.jpeg import dct_matrix, quantisation_table


def smooth_picture(channels: int, size: int) -> torch.Tensor:
    """Return a picture of waves in [-0.9, 0.9], (1, C, size, size)."""
    rows, columns = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    waves = [(rows / (5 + c)).sin() * (columns / (7 - c)).cos() for c in range(channels)]
    return 0.9 * torch.stack(waves)[None]


def pillow(picture: torch.Tensor, quality: int, subsampling: int) -> torch.Tensor:
    """Return a picture after Pillow's coder and decoder, in [-1, 1]."""
    bytes_ = ((picture[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(bytes_[..., 0] if bytes_.shape[-1] == 1 else bytes_)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    decoded = np.asarray(Image.open(file)).reshape(*bytes_.shape)
    return torch.from_numpy(decoded.copy()).double().permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("quality", [1, 5, 20, 50, 75, 95, 100])
def test_jpeg_tables_are_pillows(quality: int):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization
    for number, name in enumerate(("luma", "chroma")):
        assert quantisation_table(name, quality).flatten().tolist() == list(tables[number])


@pytest.mark.parametrize(("channels", "quality"), [(1, 20), (1, 90), (3, 20), (3, 75)])
def test_jpeg_is_pillows_but_for_rounding_to_bytes(channels: int, quality: int):
    picture = smooth_picture(channels, 32)
    ours = ops.JPEG((channels, 32, 32), quality, subsampling=False)(picture)
    differ = (ours - pillow(picture, quality, 0)).abs() * 127.5
    # Bytes are rounded twice (input and output), colours thrice and then mixed with weights up to 1.8; a coefficient
    # near half a step may go the other way. The loss itself is some 2 (grey) to 6 levels at these qualities.
    assert float(differ.mean()) < (0.95 if channels == 1 else 1.4), float(differ.mean())


def test_jpeg_halves_chroma_and_keeps_odd_sizes():
    grey = smooth_picture(1, 19).expand(1, 3, 19, 19)  # no colour, so nothing to lose by halving it
    kept, halved = (ops.JPEG((3, 19, 19), 30, subsampling=flag)(grey) for flag in (False, True))
    torch.testing.assert_close(kept[..., :16, :16], halved[..., :16, :16], atol=1e-9, rtol=0)
    colour = smooth_picture(3, 32)
    assert float((ops.JPEG((3, 32, 32), 95, subsampling=True)(colour) - colour).abs().max()) > float(
        (ops.JPEG((3, 32, 32), 95, subsampling=False)(colour) - colour).abs().max()
    )


def test_jpeg_is_idempotent_and_its_transform_orthonormal():
    torch.testing.assert_close(dct_matrix(8) @ dct_matrix(8).mT, torch.eye(8).double(), atol=1e-14, rtol=0)
    op = ops.JPEG((1, 16, 16), 40)
    once = op(0.6 * smooth_picture(1, 16))  # within the range, so nothing is clipped
    torch.testing.assert_close(op(once), once, atol=1e-9, rtol=0)


def test_straight_through_passes_gradients():
    for name, through in (("jpeg:50", 1.0), ("quantise:2", 1.0)):
        for flag in ("true", "false"):
            op = ops.parse_operator(f"{name},straight_through={flag}", (1, 8, 8))
            x = (0.3 * smooth_picture(1, 8)).requires_grad_()
            y = op(x)
            assert op.differentiable == (flag == "true")
            if op.differentiable:
                (slope,) = torch.autograd.grad(y.sum(), x)
                torch.testing.assert_close(slope, torch.full_like(x, through), atol=1e-9, rtol=0)


def test_quantising_rounds_to_levels_within_half_a_step():
    x = normals(1, 1, 8, 8).clamp(-1, 1)
    for dither in (False, True):
        y = ops.Quantise((1, 8, 8), 2, dither)(x)
        levels = (y + 1) / 2 * 3
        torch.testing.assert_close(levels, levels.round(), atol=1e-12, rtol=0)
        assert float((y - x).abs().max()) <= (1 / 3 if not dither else 2 / 3) + 1e-12
    grey = torch.full((1, 1, 8, 8), 0.25, dtype=torch.float64)
    assert float((ops.Quantise((1, 8, 8), 1, True)(grey) + 1).mean() / 2) == pytest.approx(0.625, abs=1 / 16)


@pytest.mark.parametrize("text", ["hdr:2", "lowlight:0.2", "dehaze:0.7,air=0.8"])
def test_pointwise_operators_are_undone_where_they_can_be(text: str):
    op = ops.parse_operator(text, (1, 4, 4))
    x = 0.45 * normals(2, 1, 4, 4).clamp(-1, 1)
    torch.testing.assert_close(op.pinv(op(x)), x, atol=1e-12, rtol=0)
    assert float(op(torch.ones(1, 1, 4, 4)).max()) <= 1.0


def test_low_light_has_finite_slopes_at_black():
    x = torch.tensor([-1.0, -1.5, 0.0]).view(1, 1, 1, 3).requires_grad_()
    op = ops.LowLight((1, 1, 3), 0.1)
    (slope,) = torch.autograd.grad(op(x).sum(), x)
    assert bool(torch.isfinite(slope).all()) and float(op(x.detach())[..., 0]) == -1.0


def test_haze_says_the_same_as_a_linear_operator():
    op = ops.haze((3, 4, 4), beta=0.5, depth=normals(4, 4).abs(), air=0.7)
    x = normals(2, 3, 4, 4)
    weights, y = op.as_linear(op(x))
    torch.testing.assert_close(weights(x), y, atol=1e-13, rtol=0)
    many = ops.Haze((3, 4, 4), torch.full((1, 1), 0.5), 0.2 * normals(2, 3, 1, 1, seed=4))  # air of each picture
    assert many.rows == 2
    torch.testing.assert_close(many.take(torch.tensor([1]))(x[1:]), many(x)[1:], atol=0, rtol=0)
    white, through = torch.ones(1, 1, 2, 2), math.exp(-0.5)  # in [0, 1]: I = J tr + air (1 - tr)
    hazy = (ops.haze((1, 2, 2), beta=0.5, air=0.7)(white) + 1) / 2
    torch.testing.assert_close(hazy, torch.full_like(white, through + 0.7 * (1 - through)))


def test_phase_retrieval_keeps_energy_and_has_its_symmetries():
    op = ops.PhaseRetrieval((1, 16, 12))
    x = normals(2, 1, 16, 12)
    y = op(x)
    assert op.out_shape == (1, 24, 18)
    torch.testing.assert_close(y.square().sum(), x.square().sum(), atol=0, rtol=1e-12)
    for other in (-x, x.flip(-1, -2)):
        torch.testing.assert_close(op(other), y, atol=1e-6, rtol=0)
    assert float((op(x.flip(-1)) - y).abs().max()) > 0.1
    assert op.guess(y).shape == x.shape and not op.has_pinv


def test_the_network_blur_keeps_flat_pictures_and_is_not_linear():
    op = ops.network_blur((1, 12, 12), sigma=1.0)
    flat = torch.full((1, 1, 12, 12), 0.3, dtype=torch.float64)
    torch.testing.assert_close(op(flat), flat, atol=1e-12, rtol=0)
    x = normals(1, 1, 12, 12)
    assert float((op(2 * x) - 2 * op(x)).abs().max()) > 1e-3
    assert torch.equal(op(x), ops.network_blur((1, 12, 12), sigma=1.0)(x))
    assert not torch.equal(op(x), ops.network_blur((1, 12, 12), sigma=1.0, seed=1)(x))

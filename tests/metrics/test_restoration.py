from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.metrics import consistency, ms_ssim, nmse, psnr, residual_rms, ssim
from undiffuse.noise import KeyedNoise


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, range(count)).uniform("data", 0, shape) * 2 - 1


def brute_ssim(x: Tensor, y: Tensor, data_range: float) -> float:
    """The published formula, window by window, of one channel (H, W)."""
    size = 11
    line = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(size)], dtype=torch.float64)
    window = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            shared = (window * (a - mean_a) * (b - mean_b)).sum()
            above = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
            values.append(float(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))
    return sum(values) / len(values)


def test_psnr_is_per_item_in_the_units_of_the_range():
    x = images(3, 1, 4, 4)
    shifted = x + torch.tensor([0.1, 0.2, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    found = psnr(shifted, x)
    expected = [20 * math.log10(2 / 0.1), 20 * math.log10(2 / 0.2)]
    torch.testing.assert_close(found[:2], torch.tensor(expected, dtype=torch.float64))
    assert found[2] == math.inf  # x + 0 is x, bit for bit
    torch.testing.assert_close(psnr((shifted + 1) / 2, (x + 1) / 2, data_range=1.0)[:2], found[:2])
    torch.testing.assert_close(nmse(1.1 * x, x), torch.full((3,), 0.01, dtype=torch.float64))


def test_ssim_is_the_published_formula_and_symmetric():
    x, noise = images(2, 3, 14, 17), images(2, 3, 14, 17, seed=1)
    y = 0.7 * x + 0.2 * noise
    expected = [sum(brute_ssim(x[i, c], y[i, c], 2.0) for c in range(3)) / 3 for i in range(2)]
    torch.testing.assert_close(ssim(x, y), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(ssim(y, x), ssim(x, y), atol=1e-14, rtol=0)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ssim(x, y)[:1], ssim(x[:1], y[:1]))  # batches change nothing


def test_ssim_warns_of_items_smaller_than_its_window():
    x = images(2, 1, 8, 8)
    with pytest.warns(UserWarning, match="window of 7"):
        torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_ssim_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x = images(1, 1, 20, 23)
    y = 0.8 * x + 0.1 * images(1, 1, 20, 23, seed=1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    expected = metrics.structural_similarity(x[0, 0].numpy(), y[0, 0].numpy(), **options)
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-6)
    expected = metrics.peak_signal_noise_ratio(x[0, 0].numpy(), y[0, 0].numpy(), data_range=2.0)
    assert float(psnr(x, y)) == pytest.approx(expected, abs=1e-6)


def test_ssim_and_ms_ssim_equal_torchmetrics():
    """torchmetrics reflects the edges, where scikit-image and we leave out the windows that do not fit."""
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    x = images(2, 3, 176, 180)
    y = 0.8 * x + 0.1 * images(2, 3, 176, 180, seed=1)
    single = image.structural_similarity_index_measure
    expected = [float(single(a[None], b[None], data_range=2.0)) for a, b in zip(x, y, strict=True)]
    padded = [torch.nn.functional.pad(image, (5, 5, 5, 5), mode="reflect") for image in (x, y)]
    torch.testing.assert_close(ssim(*padded), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    several = image.multiscale_structural_similarity_index_measure
    assert float(ms_ssim(x, y).mean()) == pytest.approx(float(several(x, y, data_range=2.0)), abs=1e-6)


def test_residuals_of_complex_measurements_count_both_parts():
    y = torch.zeros(2, 1, 4, dtype=torch.complex64)
    measured = y + torch.tensor([0.3 + 0.4j, 0.0]).view(2, 1, 1)
    torch.testing.assert_close(consistency(measured, y), torch.tensor([0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(residual_rms(measured, y)[0].item(), 0.5 / math.sqrt(2.0))
    real = torch.tensor([[3.0, -4.0]])
    assert residual_rms(real, torch.zeros(1, 2)).item() == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: psnr(x, x[:1]), "expected two equal ones"),
        (lambda x: psnr(x, x, data_range=0.0), "must be positive"),
        (lambda x: ssim(x.flatten(1), x.flatten(1)), "no axes"),
        (lambda x: ms_ssim(x, x), "at least 176 pixels"),
        (lambda x: consistency(x, x[:, 0]), "the operator gives"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(images(2, 1, 16, 16))

"""MRI and CT: known transforms, coil maps, masks of the right density, and the level of filtered back-projection."""

from __future__ import annotations

import math

import pytest
import torch

from tests.operators.cases import normals
from undiffuse import operators as ops
from undiffuse.operators import kspace_masks
from undiffuse.operators.ct import low_dose, ram_lak
from undiffuse.operators.mri import MASKS, fourier, inverse_fourier


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 5)])
def test_the_fourier_transform_is_centred_and_orthonormal(size: tuple[int, int]):
    picture = torch.complex(normals(1, *size), normals(1, *size, seed=1))
    kspace = fourier(picture)
    torch.testing.assert_close(inverse_fourier(kspace), picture)
    torch.testing.assert_close(kspace.abs().square().sum(), picture.abs().square().sum())
    flat = fourier(torch.ones(1, *size, dtype=torch.complex128))
    assert int(flat.abs().argmax()) == (size[0] // 2) * size[1] + size[1] // 2
    assert float(flat.abs().max()) == pytest.approx(math.sqrt(size[0] * size[1]))


def test_one_uniform_coil_is_the_single_coil_operator():
    mask = kspace_masks.cartesian(9, 8, acceleration=2)
    one, many = ops.SingleCoilMRI((2, 9, 8), mask), ops.MRI((2, 9, 8), mask)
    x = normals(2, 2, 9, 8)
    torch.testing.assert_close(one(x), many(x))
    torch.testing.assert_close(one.pinv(one(x)), many.pinv(many(x), tol=1e-12))


def test_coil_maps_are_normalised_and_estimated_from_the_centre():
    maps = ops.simulate_coils(6, 32, 32)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(32, 32).double())
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    picture = 1 + torch.exp(-4 * (rows**2 + columns**2)).double()  # smooth, positive and nowhere dark
    x = torch.stack((picture, torch.zeros_like(picture)))[None]
    op = ops.MRI((2, 32, 32), torch.ones(32, 32), maps)
    found = ops.estimate_coils(op(x), 16)
    inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))  # the window rings at the edges
    torch.testing.assert_close(found[inner].abs(), maps[None][inner].abs(), atol=0.06, rtol=0)
    turned = x.clone()
    turned[:, 0], turned[:, 1] = picture * math.cos(0.7), picture * math.sin(0.7)
    phased = ops.with_phase(maps, op(turned), 16)
    real = ops.MRI((1, 32, 32), torch.ones(32, 32), phased)
    apart = (real(picture[None, None]) - op(turned)).norm() / op(turned).norm()
    assert float(apart) < 0.05  # the phase is right but at the edges, where the window rings


@pytest.mark.parametrize("pattern", MASKS)
def test_masks_of_k_space_have_their_density_and_centre(pattern: str):
    op = ops.mri_scan((2, 64, 64), pattern=pattern, acceleration=4, centre=0.08, spokes=16, turns=8, seed=1)
    mask = op.mask
    assert bool(((mask == 0) | (mask == 1)).all()) and float(mask[32, 32]) == 1.0
    share = float(mask.mean())
    if pattern == "random":  # binomial: 5 standard deviations of 59 columns at 0.19
        assert share == pytest.approx(0.25, abs=5 * math.sqrt(59 * 0.19 * 0.81) / 64)
    elif pattern in ("radial", "spiral"):
        assert 0.15 < share < 0.4
    else:
        assert share == pytest.approx(0.25, abs=0.02)
    if pattern in ("random", "equispaced", "gaussian1d"):
        assert bool((mask[:, 30:35] == 1).all()) and bool((mask == mask[:1]).all())


def test_even_angles_of_a_disc_have_chords_and_project_back_at_its_level():
    size, radius = 65, 20.0
    rows, columns = torch.meshgrid(torch.arange(size) - 32.0, torch.arange(size) - 32.0, indexing="ij")
    disc = (rows**2 + columns**2 <= radius**2).double()[None, None]
    op = ops.Radon((1, size, size), torch.arange(90).double() * 2)
    sinogram = op(disc)
    chords = 2 * (radius**2 - (torch.arange(size) - 32.0) ** 2).clamp_min(0).sqrt()
    assert float((sinogram[0, 0] - chords)[:, 20:45].abs().max()) < 2.0  # pixels of the rim
    assert float((sinogram.sum(-1) / disc.sum() - 1).abs().max()) < 1e-2  # every angle sees the same mass
    inside = rows**2 + columns**2 <= 15**2
    for pixel in (1.0, 0.1):
        scan = ops.Radon((1, size, size), torch.arange(90).double() * 2, pixel)
        assert float(scan.pinv(scan(disc))[0, 0][inside].mean()) == pytest.approx(1.0, abs=5e-3)


def test_a_scan_turns_with_the_picture():
    op = ops.Radon((1, 16, 16), torch.tensor([0.0, 90.0]))
    x = normals(1, 1, 16, 16)
    first, second = op(x)[0, 0]
    torch.testing.assert_close(first, x[0, 0].sum(0), atol=1e-12, rtol=0)
    expected = x[0, 0].sum(1)
    ahead, back = (second - expected).abs().max(), (second - expected.flip(0)).abs().max()
    assert min(float(ahead), float(back)) < 1e-12


def test_least_squares_is_the_pseudo_inverse_of_a_small_scan():
    op = ops.ct_scan((1, 8, 8), angles=12)
    y = op(normals(1, 1, 8, 8))
    found = op.least_squares(y, iterations=500, tol=1e-12)
    torch.testing.assert_close(op(found), y, atol=1e-8, rtol=0)
    matrix = torch.stack([op(torch.eye(64).double()[k].view(1, 1, 8, 8)).flatten() for k in range(64)], 1)
    torch.testing.assert_close(found.flatten(), torch.linalg.pinv(matrix, rtol=1e-10) @ y.flatten(), atol=1e-5, rtol=0)


def test_the_ramp_filter_passes_no_constant_and_low_doses_return_line_integrals():
    assert abs(float(ram_lak(4001).sum())) < 1e-4
    integrals = torch.tensor([0.0, 1.0, 30.0])
    counts = (1e4 * (-integrals).exp()).round()
    found = low_dose(integrals, counts, 1e4)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, math.log(1e4)]), atol=1e-3, rtol=0)

"""MRI and CT: known transforms, coil maps, masks of the right density, and the level of filtered back-projection."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.operators.cases import normals
from undiffuse import operators as ops
from undiffuse.noise import KeyedNoise
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


def test_a_scan_is_that_of_each_coil_of_what_it_sees():
    mask = kspace_masks.cartesian(6, 5, pattern="random", acceleration=2.0, centre=0.2)
    x, y = normals(2, 2, 6, 5), normals(2, 3, 2, 6, 5, seed=1)
    for scan in (ops.MRI((2, 6, 5), mask, ops.simulate_coils(3, 6, 5)), ops.SingleCoilMRI((2, 6, 5), mask)):
        each, given = scan.each_coil(), y[:, : scan.out_shape[0]]
        torch.testing.assert_close(each(scan.split(x)), scan(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(scan.combined(scan.split(x)), x, rtol=0, atol=1e-12)
        torch.testing.assert_close(scan.combined(each.adjoint(given)), scan.adjoint(given), rtol=0, atol=1e-12)
        torch.testing.assert_close((each(given) * given).sum(), (given * each.adjoint(given)).sum())


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
    op = ops.Radon((1, size, size), torch.arange(180).double())
    sinogram = op(disc)
    chords = 2 * (radius**2 - (torch.arange(size) - 32.0) ** 2).clamp_min(0).sqrt()
    assert float((sinogram[0, 0] - chords)[:, 20:45].abs().max()) < 2.0  # pixels of the rim
    assert float((sinogram.sum(-1) / disc.sum() - 1).abs().max()) < 1e-2  # every angle sees the same mass
    inside = rows**2 + columns**2 <= 15**2
    for pixel in (1.0, 0.1):
        scan = ops.Radon((1, size, size), torch.arange(180).double(), pixel)
        assert float(scan.pinv(scan(disc))[0, 0][inside].mean()) == pytest.approx(1.0, abs=5e-3)


def test_projections_of_a_smooth_disc_are_its_chords():
    """128 pixels, a rim of one pixel: 1 % of the diameter within 0.9 of the radius, and the mass to 0.5 %."""
    size, radius = 128, 0.3 * 128
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    disc = (radius + 0.5 - (at[:, None] ** 2 + at**2).sqrt()).clamp(0, 1)[None, None]
    sinogram = ops.Radon((1, size, size), torch.tensor([0.0, 17.0, 45.0, 133.0]))(disc)[0, 0]
    inside = at.abs() < 0.9 * radius
    chords = 2 * (radius**2 - at[inside] ** 2).sqrt()
    assert float((sinogram[:, inside] - chords).abs().max()) < 0.01 * 2 * radius
    assert float((sinogram.sum(-1) / disc.sum() - 1).abs().max()) < 5e-3


@pytest.mark.parametrize("size", [16, 15])
def test_a_scan_turns_with_the_picture(size: int):
    """R_a(x) = R_(a + 90)(x turned clockwise), and not counter-clockwise."""
    angles = torch.tensor([0.0, 23.0, 61.0])
    here, ahead = ops.Radon((1, size, size), angles), ops.Radon((1, size, size), angles + 90)
    x = normals(1, 1, size, size)
    torch.testing.assert_close(here(x)[0, 0, 0], x[0, 0].sum(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(here(x), ahead(torch.rot90(x, -1, (-2, -1))), atol=1e-12, rtol=0)
    assert float((here(x) - ahead(torch.rot90(x, 1, (-2, -1)))).abs().max()) > 1


def test_a_window_of_the_filter_keeps_the_level_and_lessens_the_noise():
    size, angles = 33, 180 * torch.arange(60).double() / 60
    at = torch.arange(size, dtype=torch.float64) - 16
    disc = (10.5 - (at[:, None] ** 2 + at**2).sqrt()).clamp(0, 1)[None, None]
    plain, hann = (ops.Radon((1, size, size), angles, window=window) for window in ("ramp", "hann"))
    inside = disc[0, 0] * (at[:, None] ** 2 + at**2 < 7**2) > 0
    assert float(hann.pinv(hann(disc))[0, 0][inside].mean()) == pytest.approx(1.0, abs=1e-2)
    noise = normals(1, 1, 60, size)
    assert float(hann.pinv(noise).std()) < 0.5 * float(plain.pinv(noise).std())


def test_transmission_is_beers_law_and_its_counts_have_the_known_spread():
    """log(photons / counts) has the deviation e^(p / 2) / sqrt(photons): 5 standard errors of 2 000 draws, and 2 %."""
    size, photons = 33, 1e5
    at = torch.arange(size, dtype=torch.float64) - 16
    disc = (10.5 - (at[:, None] ** 2 + at**2).sqrt()).clamp(0, 1)[None, None]
    op = ops.parse_operator("ct-counts:60,attenuation=2", (1, size, size))
    x = 2 * disc - 1
    integrals = 2 * ops.ct_scan((1, size, size), angles=60)(disc)
    torch.testing.assert_close(op(x), 2 * (-integrals).exp() - 1, atol=1e-12, rtol=0)
    inside = at[:, None] ** 2 + at**2 < 7**2
    assert float(op.pinv(op(x))[0, 0][inside].mean()) == pytest.approx(1.0, abs=2e-2)
    clean = op(x)[:, :, :1, 16].expand(1, 1, 2000)
    counts = ops.PoissonNoise(photons).sample(clean, KeyedNoise(0, [0]))
    spread = float(((counts + 1) / 2).log().std())
    known = math.exp(float(integrals[0, 0, 0, 16]) / 2) / photons**0.5
    assert spread == pytest.approx(known, rel=5 / 4000**0.5 + 0.02)
    with pytest.raises(ValueError, match=r"attenuation=0\.0 of ct-counts must be above 0"):
        ops.parse_operator("ct-counts:4,attenuation=0", (1, 8, 8))


def test_angles_are_degrees():
    with pytest.raises(ValueError, match="an angle of 400 is beyond a full turn; the angles of ct are degrees"):
        ops.Radon((1, 8, 8), torch.tensor([0.0, 400.0]))
    with pytest.raises(ValueError, match="window='hamming' of ct is unknown; choose ramp or hann"):
        ops.Radon((1, 8, 8), torch.tensor([0.0]), window="hamming")
    with pytest.warns(UserWarning, match=r"torch\.rad2deg"):
        ops.Radon((1, 8, 8), torch.linspace(0, math.pi, 9))


def test_coils_that_are_measured_in_full_take_nothing_away():
    """A^H A = 1 for 8 normalised coils, and <A x, y> = <x, A^H y>, also for complex numbers."""
    op = ops.mri_scan((2, 7, 8), mask=torch.ones(7, 8), coils=8)
    x, y = normals(2, 2, 7, 8), normals(2, *op.out_shape, seed=1)
    torch.testing.assert_close(op.gram(x), x, atol=1e-12, rtol=0)
    one, other = (torch.view_as_complex(part.movedim(-3, -1).contiguous()) for part in (op(x), y))
    first = (one.conj() * other).sum()
    given, back = (torch.view_as_complex(part.movedim(1, -1).contiguous()) for part in (x, op.adjoint(y)))
    torch.testing.assert_close(first, (given.conj() * back).sum(), atol=1e-10, rtol=0)


def test_masks_and_maps_of_a_scan_come_from_files(tmp_path: Path):
    mask, maps = kspace_masks.cartesian(8, 6, acceleration=2), ops.simulate_coils(3, 8, 6)
    np.save(tmp_path / "mask.npy", mask.numpy())
    np.save(tmp_path / "maps.npy", maps.numpy())
    read = ops.parse_operator(f"mri:measured={tmp_path / 'mask.npy'},maps={tmp_path / 'maps.npy'}", (2, 8, 6))
    x = normals(2, 2, 8, 6)
    assert torch.equal(read(x), ops.MRI((2, 8, 6), mask, maps)(x))
    with pytest.raises(ValueError, match=r"a mask of shape \(8, 6\) does not fit k-space; give \(8, 8\)"):
        ops.parse_operator(f"mri:measured={tmp_path / 'mask.npy'}", (2, 8, 8))
    with pytest.raises(ValueError, match=r"coil maps of shape \(3, 8, 6\) do not fit; give complex \(coils, 8, 8\)"):
        ops.parse_operator(f"mri:maps={tmp_path / 'maps.npy'}", (2, 8, 8))


def test_coils_are_not_estimated_from_what_was_not_measured():
    mask = kspace_masks.cartesian(16, 16, acceleration=4, centre=0.25, pattern="gaussian1d")
    kspace = ops.MRI((2, 16, 16), mask, ops.simulate_coils(3, 16, 16))(normals(1, 2, 16, 16))
    assert ops.estimate_coils(kspace, 4).shape == (1, 3, 16, 16)
    for call in (ops.estimate_coils, lambda k, c: ops.with_phase(ops.simulate_coils(3, 16, 16), k, c)):
        with pytest.raises(ValueError, match=r"0 at \d+ of the 256 points of its centre.*smaller centre than 16"):
            call(kspace, 16)


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

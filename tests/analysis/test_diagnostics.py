"""The residual of the continuity equation and the asymmetry of the Jacobian: 0 for exact posteriors, seen elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, spec_mixture
from undiffuse.analysis import asymmetry, continuity_residual, rademacher
from undiffuse.denoisers.base import Denoiser, Wrapper, unit_probes
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.spec import DataSpec

PROCESS = process_of("vp")


class Linear(Denoiser):
    """D = M x for a given matrix (D, D)."""

    def __init__(self, matrix: Tensor, process: GaussianProcess = PROCESS) -> None:
        super().__init__()
        self.matrix, self.process = matrix, process

    def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
        return Posterior(x @ self.matrix.T)


@pytest.mark.parametrize("name", ["vp", "ve", "cosine", "rf", "edm"])
@pytest.mark.parametrize("per_item", [False, True])
def test_an_exact_posterior_satisfies_the_continuity_equation(name: str, per_item: bool) -> None:
    process = process_of(name)
    mixture, x = spec_mixture(process), normals(4, 2, seed=1)
    t = torch.tensor([0.2, 0.4, 0.5, 0.7], dtype=torch.float64) if per_item else 0.4
    residual = continuity_residual(mixture, x, t)
    sigma = torch.as_tensor(process.schedule.sigma(torch.as_tensor(t, dtype=torch.float64)))
    scale = float((process.schedule.sigma_slope(torch.as_tensor(t, dtype=torch.float64)) / sigma**2).max())
    assert float(residual.abs().max()) < 1e-9 * max(1.0, scale)


def test_an_answer_that_is_off_leaves_a_residual() -> None:
    class Louder(Wrapper):
        def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
            return Posterior(1.1 * super().posterior(x, t, cond).mean)  # type: ignore[arg-type]

    mixture, x = spec_mixture(PROCESS), normals(4, 2, seed=1)
    assert float(continuity_residual(Louder(mixture), x, 0.4).abs().amax(1).min()) > 1e-2


def test_the_residual_with_probes_is_exact_on_average() -> None:
    """Every vector of signs in two dimensions, each once: their mean is the exact trace."""
    mixture, x = spec_mixture(PROCESS), normals(4, 2, seed=1)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:, None].expand(-1, 4, -1)
    residual = continuity_residual(mixture, x, 0.4, probes=signs)
    torch.testing.assert_close(residual, continuity_residual(mixture, x, 0.4), rtol=0, atol=1e-9)


def test_the_continuity_equation_needs_a_gaussian_process() -> None:
    from tests.oracles.masked import joint_denoiser, triple_joint

    with pytest.raises(TypeError, match="Gaussian"):
        continuity_residual(joint_denoiser(triple_joint()), torch.zeros(1, 3), 0.5)


def test_the_asymmetry_of_a_posterior_is_zero_and_of_a_turn_is_one() -> None:
    x = normals(3, 2, seed=1)
    probes = unit_probes(x)
    assert float(asymmetry(spec_mixture(PROCESS), x, 0.4, probes).max()) < 1e-12
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(asymmetry(Linear(turn), x, 0.4, probes), torch.ones(3, dtype=torch.float64))
    assert torch.equal(asymmetry(Linear(0 * turn), x, 0.4, probes), torch.zeros(3, dtype=torch.float64))


def test_the_asymmetry_is_that_of_the_matrix() -> None:
    matrix, x = normals(4, 4, seed=2), normals(2, 4, seed=1)
    expected = (matrix - matrix.T).norm() / (2 * matrix.norm())
    found = asymmetry(Linear(matrix), x, 0.4, unit_probes(x))
    torch.testing.assert_close(found, expected.expand(2))
    estimate = asymmetry(Linear(matrix), x, 0.4, rademacher(KeyedNoise(0, range(2)), 400, (4,), torch.float64))
    torch.testing.assert_close(estimate, found, rtol=0.1, atol=0)


def test_networks_have_both_diagnostics_in_float32() -> None:
    """Also a memory layout for which torch has no forward-mode kernel: grey pictures in float32."""
    network = build_network(
        UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, attention=(-1,)),
        DataSpec(kind="image", shape=(1, 8, 8)),
    )
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    from undiffuse.denoisers.network import NetworkDenoiser

    denoiser, x = NetworkDenoiser(network, PROCESS).eval(), normals(16, 1, 8, 8).float()
    probes = rademacher(KeyedNoise(0, range(16)), 2, (1, 8, 8))
    found = asymmetry(denoiser, x, 0.4, probes)
    assert bool(((found > 0.05) & (found <= 1.0)).all())
    step = 1e-2 * probes[0]
    with torch.no_grad():
        forward = denoiser.jvp(x, 0.4, probes[0])[1]
        difference = (denoiser.mean(x + step, 0.4) - denoiser.mean(x - step, 0.4)) / 2e-2
    torch.testing.assert_close(forward, difference, rtol=0.05, atol=0.05)
    assert bool(continuity_residual(denoiser, x, 0.4, probes=probes).isfinite().all())

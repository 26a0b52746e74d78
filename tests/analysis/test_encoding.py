"""The probability-flow ODE walked both ways (principles, check 11)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, slope, spec_mixture
from undiffuse.analysis import decode_noise, encode_noise
from undiffuse.denoisers.flow_map import GaussianFlowMap
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import PlanError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models.model import Model
from undiffuse.process.grids import make_grid
from undiffuse.sampling.registry import SOLVERS, make_solver
from undiffuse.spec import DataSpec

PROCESS = process_of("vp")


def is_way_back(name: str) -> bool:
    solver = make_solver(name)
    return not (solver.stochastic or solver.discrete or solver.draws_times) and name != "flow-map"


DETERMINISTIC = [name for name in SOLVERS if is_way_back(name)]
ONE_OF_EACH = (
    "ddim",
    "heun",
    "rk4",
    "dpm++2m",
    "dpm++2s",
    "deis-2",
    "unipc",
)  # kinds of rules; the others are slow tests


def data(count: int) -> Tensor:
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return spec_mixture(PROCESS).sample_data(normals(count, 2, seed=3), uniform)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ONE_OF_EACH else pytest.mark.slow) for name in DETERMINISTIC]
)
def test_the_way_there_and_back_ends_where_it_began_at_the_solver_s_order(name: str) -> None:
    """Order by the slope over a doubling of the steps, at least that of the solver less 0.3; a rule of even order is
    often one better, for what its steps up miss its steps down miss with the other sign."""
    mixture, x = spec_mixture(PROCESS), data(8)
    errors, first = [], 64 if make_solver(name).order > 2 else 32  # where the order shows
    for steps in (first, 2 * first):
        z = encode_noise(mixture, x, solver=name, steps=steps)
        errors.append(float((decode_noise(mixture, z, solver=name, steps=steps) - x).abs().max()))
    assert errors[1] < 0.3
    assert slope(errors, 2) > make_solver(name).order - 0.3


def test_the_noise_of_a_gaussian_is_that_of_its_exact_map() -> None:
    root = normals(3, 3, seed=9)
    cov, mean = root @ root.T + 0.1 * torch.eye(3), normals(3, seed=4)
    gaussian, exact = GaussianDenoiser(mean, cov, PROCESS), GaussianFlowMap(mean, cov, PROCESS)
    x = normals(5, 3, seed=1)
    sigma = PROCESS.coefficients(1.0, x)[1]
    expected = exact(x, 1e-3, 1.0) / sigma
    for steps, bound in ((64, 4e-3), (256, 2.5e-4)):  # second order: 16 times less
        torch.testing.assert_close(encode_noise(gaussian, x, steps=steps), expected, rtol=0, atol=bound)
        torch.testing.assert_close(decode_noise(gaussian, expected, steps=steps), x, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["ve", "cosine", "trig", "rf", "edm", "ddpm"])
def test_every_schedule_has_a_way_back(name: str) -> None:
    process = process_of(name)
    gaussian = GaussianDenoiser(torch.zeros(2), 0.5 * torch.eye(2), process)
    x = normals(4, 2, seed=1)
    z = encode_noise(gaussian, x, solver="dpm++2m", steps=128)
    torch.testing.assert_close(decode_noise(gaussian, z, solver="dpm++2m", steps=128), x, rtol=0, atol=5e-3)
    # N(0, c^2 I): the map is a scaling, so noise of unit variance is x / c up to the noise already at t_min.
    torch.testing.assert_close(z, x / 0.5**0.5, rtol=0.02, atol=0.02)


def test_models_encode_data_units_and_give_them_back() -> None:
    spec = DataSpec(kind="vector", shape=(2,), mean=(5.0, -2.0), std=(2.0, 0.5))
    mixture = spec_mixture(PROCESS)
    model = Model(mixture, spec)
    x = data(5).float() * torch.tensor([2.0, 0.5]) + torch.tensor([5.0, -2.0])
    z = encode_noise(model, x, batch_size=2)
    torch.testing.assert_close(z, encode_noise(mixture, data(5), dtype=torch.float32), rtol=0, atol=1e-4)
    torch.testing.assert_close(decode_noise(model, z, batch_size=3), x, rtol=0, atol=2e-3)
    assert z.dtype == torch.float32


def test_conditions_and_guidance_go_both_ways() -> None:
    mixture, x = spec_mixture(PROCESS, torch.tensor([0, 1, 1])), data(4)
    cond = {"label": torch.tensor([0, 1, 1, 0])}
    options = {"cond": cond, "wrap": lambda d: ClassifierFreeGuidance(d, 1.5), "steps": 128}
    z = encode_noise(mixture, x, **options)
    torch.testing.assert_close(decode_noise(mixture, z, **options), x, rtol=0, atol=1e-3)
    assert not torch.allclose(z, encode_noise(mixture, x, steps=128), atol=0.1)


def test_what_cannot_be_walked_back_is_refused() -> None:
    mixture, x = spec_mixture(PROCESS), data(2)
    for solver in ("ddpm", "sde-dpm++2m"):
        with pytest.raises(ValueError, match="draws noise"):
            encode_noise(mixture, x, solver=solver)
    with pytest.raises(PlanError, match="ends at 0"):
        encode_noise(mixture, x, grid=make_grid(PROCESS.schedule, 8))
    rf = process_of("rf")
    with pytest.raises(PlanError, match=r"t_max=0\.999"):
        encode_noise(spec_mixture(rf), x, grid=make_grid(rf.schedule, 8, "t", "t_min"))
    with pytest.raises(PlanError, match=r"\(K\+1,\)"):
        encode_noise(mixture, x, grid=make_grid(PROCESS.schedule, 8, "t", "t_min")[:, None, None].expand(-1, 2, 1))
    with pytest.raises(ValueError, match="flow map"):
        encode_noise(GaussianFlowMap(torch.zeros(2), torch.eye(2), PROCESS), x)
    from tests.oracles.masked import joint_denoiser, triple_joint

    with pytest.raises(ValueError, match="continuous data"):
        encode_noise(joint_denoiser(triple_joint()), x)
    with pytest.raises(ValueError, match="finite normals"):
        decode_noise(mixture, torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="batch_size=0"):
        encode_noise(mixture, x, batch_size=0)
    model = Model(mixture, DataSpec(kind="vector", shape=(2,)))
    with pytest.raises(ValueError, match=r"items of shape \(3,\)"):
        decode_noise(model, normals(2, 3))
    with pytest.raises(ValueError, match=r"items of shape \(3,\)"):
        encode_noise(model, normals(2, 3))

"""Likelihoods by the probability-flow ODE against exact densities (principles, 2.6 and checks 10 and 15)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, slope, spec_mixture
from undiffuse.analysis import Likelihood, flow_log_prob, log_likelihood, rademacher
from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.errors import UndiffuseError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.spec import DataSpec

PROCESS = process_of("vp")


def draws(mixture: MixtureDenoiser, count: int, t: float = 1e-3, cond: object = None) -> Tensor:
    """Draws of p_t, float64 (count, *)."""
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0 = mixture.sample_data(normals(count, *mixture.shape, seed=3), uniform, cond)  # type: ignore[arg-type]
    return mixture.process.corrupt(x0, t, normals(count, *mixture.shape, seed=5))


def worst(found: Likelihood, exact: Tensor) -> float:
    return float((found.log_p - exact).abs().max())


# -- the table of section 5 -------------------------------------------------------------------------


def test_the_errors_of_heun_are_those_of_the_spec_s_table() -> None:
    """Factor 1.5, as the spec asks; order 2 by the slope from 32 to 128 steps."""
    mixture = spec_mixture(PROCESS)
    x = draws(mixture, 64)
    exact, table = mixture.log_prob(x, 1e-3), {16: 2.1e-2, 32: 4.6e-3, 64: 1.0e-3, 128: 2.5e-4}
    how = {"integrator": "heun", "prior": mixture.log_prob}
    errors = [worst(log_likelihood(mixture, x, steps=n, **how), exact) for n in table]  # type: ignore[arg-type]
    for error, asked in zip(errors, table.values(), strict=True):
        assert asked / 1.5 < error < asked * 1.5
    assert slope(errors[1:], 4) == pytest.approx(2, abs=0.25)


@pytest.mark.slow
def test_256_steps_reach_a_thousandth_of_a_nat_and_the_prior_s_error_stays() -> None:
    mixture = spec_mixture(PROCESS)
    x = draws(mixture, 64)
    exact = mixture.log_prob(x, 1e-3)
    assert worst(log_likelihood(mixture, x, integrator="heun", steps=256, prior=mixture.log_prob), exact) < 5.9e-5 * 1.5
    assert 2e-3 < worst(log_likelihood(mixture, x, integrator="heun", steps=256), exact) < 5e-3  # N(0, I) is not p_1


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "cosine", "trig", "edm", "rf"])
def test_a_gaussian_s_likelihood_is_its_density_on_every_schedule(name: str) -> None:
    """By the adaptive integration, which knows nothing of the schedule; tolerance: 1e-7 per step, 100 steps."""
    process = process_of(name)
    root = normals(3, 3, seed=9)
    gaussian = GaussianDenoiser(normals(3, seed=4), root @ root.T + 0.1 * torch.eye(3), process)
    t = process.schedule.t_min
    x = draws(gaussian, 6, t)
    found = log_likelihood(gaussian, x, rtol=1e-7, atol=1e-7, prior=gaussian.log_prob)
    torch.testing.assert_close(found.log_p, gaussian.log_prob(x, t), rtol=0, atol=1e-5)
    assert (found.t_min, found.t_max) == (t, process.schedule.t_max)


@pytest.mark.slow
def test_the_grid_of_a_table_may_follow_its_entries() -> None:
    """Between the entries of a table slopes jump; steps from entry to entry do not notice."""
    process = process_of("ddpm")
    gaussian = GaussianDenoiser(normals(2, seed=4), torch.eye(2) * 0.3, process)
    x = draws(gaussian, 4)
    path = torch.arange(1, 1001, 3, dtype=torch.float64) / 1000
    found = flow_log_prob(gaussian, x, path, prior=gaussian.log_prob)
    torch.testing.assert_close(found.log_p[:, 0], gaussian.log_prob(x, 1e-3), rtol=0, atol=2e-2)


@pytest.mark.slow
def test_a_peer_s_integration_of_our_slopes_agrees() -> None:
    odeint = pytest.importorskip("torchdiffeq").odeint
    from undiffuse.analysis.probability_flow import AugmentedFlow

    mixture = spec_mixture(PROCESS)
    x = draws(mixture, 8)
    flow, times = AugmentedFlow(mixture), torch.tensor([1e-3, 1.0], dtype=torch.float64)
    begun = (x, x.new_zeros(8, 1))
    end, gained = odeint(lambda t, y: flow(y, min(float(t), 1.0)), begun, times, rtol=1e-9, atol=1e-9)
    peer = mixture.log_prob(end[-1], 1.0) + gained[-1, :, 0]
    ours = log_likelihood(mixture, x, rtol=1e-8, atol=1e-8, prior=mixture.log_prob)
    torch.testing.assert_close(ours.log_p, peer, rtol=0, atol=1e-6)
    torch.testing.assert_close(peer, mixture.log_prob(x, 1e-3), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_likelihood_does_not_depend_on_the_schedule_between_equal_ends() -> None:
    """Check 15 for densities: `Reschedule` to another schedule, from and to the same noise levels."""
    source, target = PROCESS, process_of("subvp", beta_max=18.0)
    mixture = spec_mixture(source)
    moved = Reschedule(mixture, target)
    x = draws(mixture, 8)
    level = source.schedule.half_logsnr(torch.tensor([1e-3], dtype=torch.float64))
    start = float(target.schedule.time(level))
    (alpha, sigma), (alpha_new, sigma_new) = source.coefficients(1e-3, x), target.coefficients(start, x)
    scale = ((alpha_new**2 + sigma_new**2) / (alpha**2 + sigma**2)) ** 0.5
    exact_top = spec_mixture(target).log_prob
    options = {"rtol": 1e-8, "atol": 1e-8}
    found = log_likelihood(moved, x * scale, t_min=start, prior=exact_top, **options)
    torch.testing.assert_close(found.log_p + 2 * math.log(scale), mixture.log_prob(x, 1e-3), rtol=0, atol=1e-6)


# -- any shape, conditions, change of variables -------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 2, 1), (3,)])
def test_items_of_any_shape(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    mixture = MixtureDenoiser(torch.ones(2), normals(2, *shape, seed=2), torch.tensor([0.4, 0.6]), PROCESS)
    x = draws(mixture, 4)
    found = log_likelihood(mixture, x, prior=mixture.log_prob)
    torch.testing.assert_close(found.log_p, mixture.log_prob(x, 1e-3), rtol=0, atol=1e-3)
    assert found.dims == size
    assert found.bits_per_dim.mean == pytest.approx(-float(found.log_p.mean()) / size / math.log(2))


def test_a_condition_gives_the_likelihood_of_its_component() -> None:
    labels = torch.tensor([0, 1, 1])
    mixture = spec_mixture(PROCESS, labels)
    x, classes = draws(mixture, 6), torch.tensor([0, 1, 1, 0, 1, 0])
    found = log_likelihood(mixture, x, cond={"label": classes}, batch_size=4, rtol=1e-6, atol=1e-6)
    exact = mixture.log_prob(x, 1e-3, mixture.embed({"label": classes}, 6))
    torch.testing.assert_close(found.log_p, exact, rtol=0, atol=5e-2)  # N(0, I) is not p_1
    assert worst(found, mixture.log_prob(x, 1e-3)) > 0.3


def test_the_density_of_scaled_data_gains_the_log_determinant() -> None:
    """Check 10: x -> A x. The same states under a spec that reads them as A x + b, and exact densities of A x."""
    cov, root = torch.eye(2), torch.tensor([[2.0, 0.3], [-0.4, 0.8]], dtype=torch.float64)
    gaussian = GaussianDenoiser(torch.zeros(2), cov, PROCESS)
    skewed = GaussianDenoiser(torch.zeros(2), root @ root.T, PROCESS)
    x = normals(5, 2, seed=7)
    options = {"rtol": 1e-8, "atol": 1e-8}
    one = log_likelihood(gaussian, x, prior=gaussian.log_prob, **options).log_p
    other = log_likelihood(skewed, x @ root.T, prior=skewed.log_prob, **options).log_p
    change = torch.log(torch.linalg.det(root))
    torch.testing.assert_close(other, one - change, rtol=0, atol=5e-3)  # p_tmin, not p_0: sigma(t_min)^2 = 1e-4
    spec = DataSpec(kind="vector", shape=(2,), mean=(3.0, -1.0), std=(2.0, 0.5))
    model = Model(GaussianDenoiser(torch.zeros(2), cov, PROCESS, spec=spec), spec)
    data = x * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -1.0])
    found = log_likelihood(model, data, **options, dtype=torch.float64)
    plain = log_likelihood(gaussian, x, **options).log_p
    torch.testing.assert_close(found.log_p, plain - math.log(2.0 * 0.5), rtol=0, atol=1e-4)
    assert found.units == "data units"


# -- Hutchinson ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_probes_agree_with_the_exact_divergence() -> None:
    """Each of 16 items within 3.5 standard errors (false alarm 0.7 %; fixed seed); one probe's error as in the spec."""
    mixture = spec_mixture(PROCESS)
    x = draws(mixture, 16)
    how = {"integrator": "heun", "steps": 16, "prior": mixture.log_prob}
    exact = log_likelihood(mixture, x, **how)  # type: ignore[arg-type]
    found = log_likelihood(mixture, x, divergence="hutchinson", probes=200, **how)  # type: ignore[arg-type]
    assert found.noise_error is not None
    assert bool(((found.log_p - exact.log_p).abs() < 3.5 * found.noise_error).all())
    one_probe = float(found.noise_error.square().mean().sqrt()) * 200**0.5
    assert 0.3 < one_probe < 2.0  # "about 1 nat per sample in 2-D"
    assert exact.noise_error is None
    assert exact.noise_standard_error == 0
    assert (found.passes, exact.passes) == (32 * 200, 32 * 2)


def test_probes_are_signs_keyed_by_item_and_exact_for_a_diagonal_jacobian() -> None:
    probes = rademacher(KeyedNoise(0, range(5)), 3, (2, 2))
    assert bool((probes.abs() == 1).all())
    assert torch.equal(probes[:, 2:4], rademacher(KeyedNoise(0, range(2, 4)), 3, (2, 2)))
    gaussian = GaussianDenoiser(torch.zeros(2), torch.diag(torch.tensor([0.2, 3.0])), PROCESS)
    x = draws(gaussian, 3)
    path = make_grid(PROCESS.schedule, 8, "quadratic", "t_min").flip(0)
    found = flow_log_prob(gaussian, x, path, probes=rademacher(KeyedNoise(0, range(3)), 2, (2,), torch.float64))
    exact = flow_log_prob(gaussian, x, path)
    # For a diagonal Jacobian e^T J e is the trace for every vector of signs, at every time.
    torch.testing.assert_close(found.log_p, exact.log_p.expand(-1, 2), rtol=0, atol=1e-10)


def test_an_item_has_the_same_figure_in_any_batch() -> None:
    mixture = spec_mixture(PROCESS)
    x = draws(mixture, 5)
    how = {"integrator": "heun", "steps": 4, "divergence": "hutchinson"}
    whole = log_likelihood(mixture, x, batch_size=5, **how)  # type: ignore[arg-type]
    parts = log_likelihood(mixture, x, batch_size=2, **how)  # type: ignore[arg-type]
    torch.testing.assert_close(whole.log_p, parts.log_p, rtol=0, atol=1e-12)
    other = log_likelihood(mixture, x, seed=1, **how)  # type: ignore[arg-type]
    assert not torch.allclose(whole.log_p, other.log_p, atol=1e-3)


# -- integers -----------------------------------------------------------------------------------------


class _Flat(Denoiser):
    """The exact posterior mean of data uniform on [-a, a] per element, any shape."""

    def __init__(self, a: float, process: GaussianProcess, spec: DataSpec) -> None:
        super().__init__()
        self.a, self.process, self.spec = a, process, spec

    def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
        alpha, sigma = self.process.coefficients(t, x)  # type: ignore[union-attr, arg-type]
        z, rho = x.double() / alpha, sigma / alpha
        low, high = (-self.a - z) / rho, (self.a - z) / rho
        phi = lambda u: torch.exp(-0.5 * u**2) / math.sqrt(math.tau)  # noqa: E731
        mass = (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp(min=1e-300)
        return Posterior((z - rho * (phi(high) - phi(low)) / mass).to(x.dtype))


def test_uniform_integers_cost_the_logarithm_of_their_number() -> None:
    """17 levels, all equally likely: log2(17) bits per dimension, whatever the noise inside a level.

    Tolerance: elements near the ends of the range feel the smoothing of p_tmin (sigma 0.01, a level is 0.125).
    """
    spec = DataSpec(kind="image", shape=(1, 2, 2), range=(0.0, 16.0))
    model = Model(_Flat(17 / 16, PROCESS, spec), spec)
    data = torch.randint(1, 16, (8, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    found = log_likelihood(model, data, dtype=torch.float64)
    torch.testing.assert_close(found.bits, torch.full((8,), math.log2(17.0), dtype=torch.float64), rtol=0, atol=2e-2)
    assert (found.units, found.dequantised) == ("levels", True)
    plain = log_likelihood(model, data, dequantise=False)
    assert (plain.units, plain.dequantised) == ("data units", False)
    assert log_likelihood(model, data + 0.25, steps=2).units == "data units"


def test_the_noise_of_a_level_is_centred_on_it() -> None:
    """A Gaussian of one level around the integer 8: E log p falls by E[u^2] / 2 = 1/24 per element below its top.

    Tolerance: 4 standard errors of 256 draws (0.009), and the smoothing of p_tmin (0.003).
    """
    spec = DataSpec(kind="vector", shape=(4,), range=(0.0, 16.0))
    prior = GaussianDenoiser(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64) / 64, PROCESS)
    found = log_likelihood(Model(prior, spec), torch.full((64, 4), 8), dtype=torch.float64)
    assert found.dequantised and found.units == "levels"
    expected = -0.5 * math.log(math.tau) - 1 / 24
    assert float(found.log_p.mean()) / 4 == pytest.approx(expected, abs=0.012)


# -- refusals (section 7) -----------------------------------------------------------------------------


def test_what_has_no_density_is_refused_with_the_alternative() -> None:
    from tests.oracles.masked import joint_denoiser, triple_joint
    from undiffuse.denoisers.flow_map import GaussianFlowMap

    x = normals(2, 2)
    labelled = spec_mixture(PROCESS, torch.tensor([0, 1, 1]))
    guided = ClassifierFreeGuidance(labelled, 2.0)
    with pytest.raises(ValueError, match="allow_unnormalised=True"):
        log_likelihood(guided, x, cond={"label": torch.tensor([0, 1])})
    found = log_likelihood(
        guided, x, cond={"label": torch.tensor([0, 1])}, steps=2, allow_unnormalised=True, divergence="exact"
    )
    assert "no normalised density" in found.table()[0][-1]
    same = log_likelihood(ClassifierFreeGuidance(labelled, 1.0), x, cond={"label": torch.tensor([0, 1])}, steps=2)
    plain = log_likelihood(labelled, x, cond={"label": torch.tensor([0, 1])}, steps=2)
    assert torch.equal(same.log_p, plain.log_p)
    with pytest.raises(ValueError, match="allow_unnormalised"):
        log_likelihood(labelled, x, wrap=Wrapper)
    with pytest.raises(ValueError, match="flow map"):
        log_likelihood(GaussianFlowMap(torch.zeros(2), torch.eye(2), PROCESS), x)
    with pytest.raises(ValueError, match=r"model\.elbo"):
        log_likelihood(joint_denoiser(triple_joint()), torch.zeros(1, 3, dtype=torch.int64), method="ode")
    with pytest.raises(ValueError, match="Gaussian source"):
        data_source = GaussianProcess(PROCESS.schedule, source="data")
        log_likelihood(GaussianDenoiser(torch.zeros(2), torch.eye(2), data_source), x)
    with pytest.raises(TypeError, match="Model or a Denoiser"):
        log_likelihood(object(), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"probes": 0}, "probes=0"),
        ({"t_min": 1e-4}, "smallest time of this schedule"),
        ({"t_min": 1.0}, "smallest time of this schedule"),
        ({"divergence": "exakt"}, "Did you mean 'exact'"),
        ({"stepz": 3}, "unknown option"),
        ({"rtol": 0.0}, "must be positive"),
        ({"n": 0}, "n=0"),
        ({"dequantise": True}, "integers within the range"),
        ({"conditional": True}, "conditional=True"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_likelihood(spec_mixture(PROCESS), normals(2, 2), **options)  # type: ignore[arg-type]


def test_the_exact_divergence_of_many_elements_is_refused() -> None:
    wide = MixtureDenoiser(torch.ones(1), torch.zeros(1, 5000), torch.ones(1), PROCESS)
    with pytest.raises(ValueError, match=r"cap is 4096.*hutchinson"):
        log_likelihood(wide, torch.zeros(1, 5000), divergence="exact")
    assert log_likelihood(wide, torch.zeros(1, 5000), steps=1).settings["divergence"] == "hutchinson"


def test_bad_data_is_refused() -> None:
    mixture = spec_mixture(PROCESS)
    broken = normals(3, 2)
    broken[1, 0] = torch.nan
    with pytest.raises(ValueError, match="item 1 of the data is not finite"):
        log_likelihood(mixture, broken)
    with pytest.raises(ValueError, match="n >= 1"):
        log_likelihood(mixture, broken[:0])
    with pytest.raises(ValueError, match="open_data"):
        log_likelihood(mixture, "digits")
    spec = DataSpec(kind="vector", shape=(2,))
    with pytest.raises(ValueError, match=r"items of shape \(3,\)"):
        log_likelihood(Model(mixture, spec), normals(2, 3))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.no_grad"):
        log_likelihood(mixture, normals(2, 2))


def test_an_answer_that_is_not_finite_names_its_time() -> None:
    class Broken(MixtureDenoiser):
        def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
            post = super().posterior(x, t, cond)  # type: ignore[arg-type]
            return Posterior(post.mean * (torch.nan if isinstance(t, float) and t > 0.5 else 1.0))

    broken = Broken(torch.ones(1), torch.zeros(1, 2), torch.ones(1), PROCESS)
    with pytest.raises(UndiffuseError, match=r"t=0\.\d+ is not finite"):
        log_likelihood(broken, normals(2, 2), steps=4, integrator="heun")


def test_a_path_that_does_not_rise_is_refused() -> None:
    for path in ([1.0, 0.5], [0.0, 1.0], [0.5], [0.5, 1.5]):
        with pytest.raises(ValueError, match="must rise"):
            flow_log_prob(spec_mixture(PROCESS), normals(2, 2), path)


def test_a_model_with_a_codec_says_that_its_likelihood_is_of_latents() -> None:
    from undiffuse.codecs.options import PCAOptions
    from undiffuse.codecs.pca import fit_pca

    spec = DataSpec(kind="image", shape=(1, 4, 4), range=(0.0, 16.0))
    pictures = torch.randint(0, 17, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    codec = fit_pca(PCAOptions(patch=2, channels=2), spec, spec.to_model(pictures))
    latent = MixtureDenoiser(torch.ones(1), torch.zeros(1, 2, 2, 2), torch.tensor([0.8]), PROCESS, spec=codec.latent)
    found = log_likelihood(Model(latent, spec, codec=codec), pictures[:3], integrator="heun", steps=8)
    assert (found.units, found.dims, found.dequantised) == ("latents", 8, False)
    assert "of the latents, not of the data" in found.table()[0][-1]
    codes = codec.encode(spec.to_model(pictures[:3]))
    plain = log_likelihood(latent, codes, integrator="heun", steps=8)
    torch.testing.assert_close(found.log_p, plain.log_p, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="of latents"):
        log_likelihood(Model(latent, spec, codec=codec), pictures, dequantise=True)

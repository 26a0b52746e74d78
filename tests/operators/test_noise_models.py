"""Noise models: normalised likelihoods, moments of the samples, gradients and keys."""

from __future__ import annotations

import math

import pytest
import torch

from undiffuse.noise import KeyedNoise
from undiffuse.operators import noise as models
from undiffuse.operators import parse_noise
from undiffuse.operators.catalogue import NOISES
from undiffuse.operators.noise import gamma, poisson
from undiffuse.spec import DataSpec

COUNT = 40_000
CONTINUOUS = ["gaussian:0.1", "laplace:0.1", "speckle:3", "uniform:0.1", "poisson_gaussian,scale=9,std=0.02"]


@pytest.mark.parametrize("text", CONTINUOUS)
def test_densities_integrate_to_one(text: str):
    model = parse_noise(text)
    for clean in (-0.5, 0.4):
        y = torch.linspace(-6, 12, 14_401 if "poisson" in text else 200_001, dtype=torch.float64)[:, None]
        density = model.log_prob(y, torch.full_like(y, clean)).exp()
        # Trapezoids; a jump of the uniform density costs at most half a step of 9e-5 times its height at each end.
        tolerance = 1e-3 if "uniform" in text else 1e-6
        assert float(torch.trapezoid(density, y[:, 0])) == pytest.approx(1.0, abs=tolerance)


def test_probabilities_of_counts_and_atoms_sum_to_one():
    model = models.PoissonNoise(9.0)
    counts = torch.arange(200, dtype=torch.float64)[:, None]
    for clean in (-1.0, -0.5, 0.9):
        chances = model.log_prob(2 * counts / 9 - 1, torch.full_like(counts, clean)).exp()
        assert float(chances.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(model.log_prob(-torch.ones(1, 1), -torch.ones(1, 1))) == 0.0  # no light, no photon: certain
    assert float(model.log_prob(-2 * torch.ones(1, 1), torch.zeros(1, 1))) == -math.inf
    pepper, clean = models.SaltPepperNoise(0.3), torch.full((3, 1), 0.2)
    atoms = torch.tensor([[-1.0], [0.2], [1.0]])
    torch.testing.assert_close(pepper.log_prob(atoms, clean).exp(), torch.tensor([0.15, 0.7, 0.15]))
    assert float(pepper.log_prob(torch.ones(1, 1), torch.ones(1, 1)).exp()) == pytest.approx(0.85)


@pytest.mark.parametrize("text", [*CONTINUOUS, "poisson:9"])
def test_samples_have_the_moments_of_the_likelihood(text: str):
    """Mean within 5 standard errors (false alarm below 1e-6 each); variance within 5 of its own, kurtosis at most 9."""
    model = parse_noise(text)
    y0 = torch.full((1, COUNT), 0.4, dtype=torch.float64)
    y = model.sample(y0, KeyedNoise(3, [0]))
    std = float(model.std_like(y0).max())
    assert float(y.mean()) == pytest.approx(0.4, abs=5 * std / math.sqrt(COUNT))
    assert float(y.var()) == pytest.approx(std**2, rel=5 * math.sqrt(8 / COUNT))
    assert bool(torch.isfinite(model.log_prob(y, y0)).all())


@pytest.mark.parametrize("text", ["gaussian:0.1", "laplace:0.1", "speckle:3", "poisson:9", "poisson_gaussian:9,0.02"])
def test_gradients_of_log_prob(text: str):
    model = parse_noise(text)
    y = model.sample(torch.full((1, 5), 0.1, dtype=torch.float64), KeyedNoise(0, [0]))
    y0 = torch.linspace(-0.6, 0.7, 5, dtype=torch.float64)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda clean: model.log_prob(y, clean), (y0,))


def test_counts_and_gammas_invert_their_distribution_functions():
    rate = torch.tensor([0.0, 0.3, 4.0, 1e3, 1e5], dtype=torch.float64).expand(1000, 5)
    uniform = KeyedNoise(0, [0]).uniform("measure", 0, (1000, 5))[0]
    counts = poisson(rate, uniform)
    cdf = torch.special.gammaincc(counts + 1, rate)  # P(count <= k)
    below = torch.where(counts > 0, torch.special.gammaincc(counts.clamp_min(1), rate), 0.0)
    some = rate > 0
    assert bool((cdf[some] > uniform[some]).all() and (below[some] <= uniform[some]).all())
    assert bool((counts[~some] == 0).all())
    torch.testing.assert_close(
        torch.special.gammainc(torch.tensor(2.5).double(), gamma(2.5, uniform)), uniform, atol=1e-12, rtol=0
    )


def test_draws_are_keyed_by_seed_item_and_step():
    y0 = torch.zeros(3, 4)
    for name, facts in NOISES.items():
        if name == "none":
            continue
        model = parse_noise(name)
        whole = model.sample(y0, KeyedNoise(5, [0, 1, 2]))
        assert whole.dtype == y0.dtype, name
        assert torch.equal(model.sample(y0[:1], KeyedNoise(5, [1])), whole[1:2]), name
        assert not torch.equal(model.sample(y0, KeyedNoise(5, [0, 1, 2]), step=1), whole), name
        assert models.NoiseModel.to_json(model) == {"name": name, **{k: getattr(model, k) for k in facts.options}}
    assert torch.equal(parse_noise("none").sample(y0, KeyedNoise(0, [0, 1, 2])), y0)


def test_salt_and_pepper_says_where_it_knows():
    model = models.SaltPepperNoise(0.5)
    y = model.sample(torch.full((1, 1000), 0.1), KeyedNoise(0, [0]))
    known = model.known(y)
    assert bool((y[known] == 0.1).all()) and 0.4 < float(known.double().mean()) < 0.6


def test_text_is_in_image_units_and_python_in_model_units():
    assert parse_noise("gaussian:0.05") == models.GaussianNoise(0.1) == parse_noise("gaussian,std=0.1", units="model")
    assert parse_noise("poisson,scale=30") == models.PoissonNoise(30)
    unbounded = DataSpec(kind="vector", shape=(2,), std=(2.0, 2.0))
    assert parse_noise("gaussian:1", unbounded) == models.GaussianNoise(0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gausian:0.1", "Did you mean 'gaussian'"),
        ("gaussian:-0.1", "std=-0.1 of gaussian noise must be above 0"),
        ("gaussian,sigma=1", "its options are std=0.05"),
        ("gaussian:loud", "must be a number"),
        ("salt_pepper:1.5", "between 0 and 1"),
        ("gaussian:5", r"more than the whole range of the data, which counts as \[0, 1\]; 5 in 0..255 is 0.02"),
        ("poisson:1,2", "is one more"),
    ],
)
def test_bad_noises_are_refused(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        parse_noise(text)


def test_negative_intensities_are_told():
    with pytest.warns(UserWarning, match="negative intensity"):
        models.PoissonNoise(9.0).sample(torch.full((1, 2), -1.5), KeyedNoise(0, [0]))

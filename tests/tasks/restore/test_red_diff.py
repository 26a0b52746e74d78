"""RED-diff: the exact checks of its mathematics on Gaussian priors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.operators.base import LinearOperator, Operator
from undiffuse.operators.diagonal import Identity, Mask
from undiffuse.operators.noise import PoissonNoise
from undiffuse.operators.nonlinear import PhaseRetrieval
from undiffuse.operators.parse import parse_operator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.latent import Decoded
from undiffuse.tasks.restore.red_diff import WEIGHTS, Descent, RedDiff, make_levels
from undiffuse.tasks.restore.repulsion import push_apart
from undiffuse.tasks.restore.restorer import Problem
from undiffuse.tasks.restore.run import restore

_DIM = 4
_DESCENT: dict[str, Any] = {"optimizer": "sgd", "lr": 0.4, "betas": (0.7, 0.99)}  # exact limits, no step that stays


def normals(count: int, *shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, range(count)).normal("data", 0, shape, torch.float64)


def prior(schedule: str = "vp") -> GaussianDenoiser:
    root = normals(_DIM, _DIM, seed=1)
    mean = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    cov = root @ root.T / _DIM + 0.1 * torch.eye(_DIM, dtype=torch.float64)
    return GaussianDenoiser(mean, cov, GaussianProcess(make_schedule(schedule)))


def moments(denoiser: GaussianDenoiser) -> tuple[Tensor, Tensor]:
    part = denoiser._parts[0]
    return part.mean, part.cov


class Dense(LinearOperator):
    """y = M x."""

    kind = "dense"

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((matrix.shape[1],), (matrix.shape[0],), tensors={"matrix": matrix})

    def apply(self, x: Tensor) -> Tensor:
        return x @ self._get("matrix", x).T


def problem(denoiser: Denoiser, operator: Operator, y: Tensor, **options: Any) -> Problem:
    given: dict[str, Any] = {"noise_std": 0.0, "shape": operator.in_shape, "dtype": torch.float64} | options
    return Problem(denoiser=denoiser, y=y, operator=operator, **given)


def solve(p: Problem, steps: int, seed: int = 0, **options: Any) -> Tensor:
    return RedDiff(**options).solve(p, KeyedNoise(seed, range(p.rows)), steps).x


def at_one_time(options: RedDiff, p: Problem, t: float, steps: int) -> Descent:
    levels = make_levels(options, p.denoiser.process.schedule, torch.full((steps,), t, dtype=torch.float64))
    return Descent(options, p, KeyedNoise(0, range(p.rows)), levels)


@pytest.mark.parametrize("weight", list(WEIGHTS))
def test_the_gradient_of_a_gaussian_prior_is_known(weight):
    """Section 6, checks 1 and 7: lambda_t (eps_hat - eps), whose mean is lambda_t sigma alpha P (mu - m)."""
    denoiser, t, lam = prior(), 0.37, 0.7
    mean, cov = moments(denoiser)
    p = problem(denoiser, Identity((_DIM,)), torch.zeros(3, _DIM, dtype=torch.float64))
    descent = at_one_time(RedDiff(weight=weight, lam=lam), p, t, 1)
    alpha, sigma = denoiser.process.coefficients(t, p.y)
    inner = torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(_DIM, dtype=torch.float64))
    mu, e = normals(3, _DIM, seed=2), normals(3, _DIM, seed=3)
    size = float(WEIGHTS[weight](torch.tensor(sigma / alpha, dtype=torch.float64))) * lam
    quiet = descent._regulariser(mu, torch.zeros_like(mu), descent.levels[0], None)[0]
    torch.testing.assert_close(quiet, size * sigma * alpha * (mu - mean) @ inner, atol=1e-10, rtol=0)
    x_t = alpha * mu + sigma * e
    eps_hat = denoiser.process.eps(x_t, denoiser(x_t, t), t)
    found = descent._regulariser(mu, e, descent.levels[0], None)[0]
    torch.testing.assert_close(found, size * (eps_hat - e), atol=1e-10, rtol=0)


def test_the_mean_gradient_over_noise_is_the_deterministic_part():
    """Check 1, Monte Carlo: 10^5 draws, 1 %."""
    denoiser, t = prior(), 0.5
    draws = 100_000
    p = problem(denoiser, Identity((_DIM,)), torch.zeros(draws, _DIM, dtype=torch.float64))
    descent = at_one_time(RedDiff(lam=1.0), p, t, 1)
    mu = torch.full((draws, _DIM), 2.0, dtype=torch.float64)
    noisy = descent._regulariser(mu, normals(draws, _DIM, seed=4), descent.levels[0], None)[0].mean(0)
    quiet = descent._regulariser(mu[:1], 0 * mu[:1], descent.levels[0], None)[0][0]
    assert float((noisy - quiet).norm() / quiet.norm()) < 0.01


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_gradient_descent_ends_at_the_fixed_point(std):
    """Check 2: (v A^T A + lambda_t sigma alpha P) mu = v A^T y + lambda_t sigma alpha P m. A constant std keeps it."""
    denoiser, t, lam, v = prior(), 0.6, 0.5, 0.8
    mean, cov = moments(denoiser)
    matrix = 0.5 * normals(2, _DIM, seed=5)
    y = normals(3, 2, seed=6)
    p = problem(denoiser, Dense(matrix), y)
    options = RedDiff(
        lam=lam, lr=0.4, betas=(0.7, 0.99), optimizer="sgd", normalise="sum", obs_weight=v, antithetic=True, std=std
    )
    alpha, sigma = denoiser.process.coefficients(t, y)
    inner = torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(_DIM, dtype=torch.float64))
    pull = lam * sigma**2 * inner  # lambda_t = lam sigma / alpha
    right = v * y @ matrix + pull @ mean
    expected = torch.linalg.solve(v * matrix.T @ matrix + pull, right.T).T
    torch.testing.assert_close(at_one_time(options, p, t, 150).descend().x, expected, atol=1e-6, rtol=0)


def test_without_prior_it_is_least_squares_and_a_pseudo_inverse_stays():
    """Check 3."""
    matrix = 0.2 * normals(_DIM, _DIM, seed=7) + torch.eye(_DIM, dtype=torch.float64)
    y = normals(2, _DIM, seed=8)
    p = problem(prior(), Dense(matrix), y)
    exact = torch.linalg.solve(matrix, y.T).T
    found = solve(p, 150, lam=0.0, start="zeros", normalise="sum", **_DESCENT)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)
    mask = Mask((_DIM,), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    measured = mask(normals(2, _DIM, seed=9))
    assert torch.equal(solve(problem(prior(), mask, measured), 20, lam=0.0), measured)


def test_without_data_it_seeks_the_mode_whatever_the_start():
    """Check 4, and the regulariser alone: mu goes to the prior's mean."""
    denoiser = prior()
    y = 3 * normals(2, _DIM, seed=10)
    p = problem(denoiser, Identity((_DIM,)), y)
    options = RedDiff(obs_weight=0.0, lam=1.0, normalise="sum", antithetic=True, **_DESCENT)
    found = at_one_time(options, p, 0.7, 100).descend().x
    torch.testing.assert_close(found, moments(denoiser)[0].expand(2, -1), atol=1e-6, rtol=0)


class Deep(Denoiser):
    """A network of equal layers, trainable; its backward pass must never run."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.process = GaussianProcess(make_schedule("vp"))
        self.layers = nn.ModuleList([nn.Linear(_DIM, _DIM, dtype=torch.float64) for _ in range(depth)])
        for number, layer in enumerate(self.layers):
            with torch.no_grad():
                layer.weight.copy_(0.3 * normals(_DIM, _DIM, seed=number))
                layer.bias.zero_()

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return Posterior(NoBackward.apply(x))


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise AssertionError("the network was differentiated")


def test_nothing_is_kept_of_the_network():
    """Check 5: the same with gradients enabled outside, with none, and however deep the network is."""
    y = normals(2, _DIM, seed=11)
    kept = []
    for depth in (1, 30):
        p = problem(Deep(depth), Identity((_DIM,)), y)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=saved: to.append(x) or x, lambda x: x):
            found = solve(p, 5)
        kept.append(len(saved))
        with torch.no_grad():
            assert torch.equal(solve(p, 5), found)
        with torch.inference_mode():
            assert torch.equal(Deep(depth)(y, 0.5).mean, p.denoiser(y, 0.5).mean)
    assert kept[0] == kept[1]
    result = RedDiff().solve(p, KeyedNoise(0, range(2)), 5)
    assert (result.nfe, result.nfe_grad) == (5, 0)


@pytest.mark.parametrize("order", ["descending", "random"])
def test_a_row_does_not_depend_on_its_batch(order):
    """Check 6, bit for bit; and 9, determinism."""
    denoiser, mask = prior(), Mask((_DIM,), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    y = mask(normals(5, _DIM, seed=12))
    before = y.clone()
    together = solve(problem(denoiser, mask, y, noise_std=0.1), 30, order=order, std=0.1)
    for row in range(5):
        p = problem(denoiser, mask, y[row : row + 1], noise_std=0.1)
        alone = RedDiff(order=order, std=0.1).solve(p, KeyedNoise(0, [row]), 30).x
        torch.testing.assert_close(alone[0], together[row], atol=1e-12, rtol=0)
    assert torch.equal(solve(problem(denoiser, mask, y, noise_std=0.1), 30, order=order, std=0.1), together)
    assert torch.equal(y, before)


class Converted(Wrapper):
    """The same answers by way of another prediction."""

    def __init__(self, denoiser: Denoiser, kind: Any) -> None:
        super().__init__(denoiser)
        self.kind = kind

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
        post = self.denoiser(x, t, cond)
        process: Any = self.process
        output = {"data": post.mean, "noise": process.eps(x, post, t), "v": process.v(x, post, t)}[self.kind]
        return Posterior(process.mean_from(self.kind, output, x, t))


def test_the_parametrisation_changes_nothing():
    """Check 8: noise, data and v predictions; VP and VE at matched s, for weights are functions of s alone."""
    mask = Mask((_DIM,), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    y = mask(normals(2, _DIM, seed=13))
    found = [solve(problem(Converted(prior(), kind), mask, y), 50) for kind in ("data", "noise", "v")]
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=0)
    ends = []
    levels = torch.linspace(-3.0, 4.0, 50, dtype=torch.float64)  # half log-SNR
    for name in ("vp", "ve"):
        denoiser = prior(name)
        schedule: Any = denoiser.process.schedule
        p, options = problem(denoiser, mask, y), RedDiff()
        run = Descent(options, p, KeyedNoise(0, range(2)), make_levels(options, schedule, schedule.time(levels)))
        ends.append(run.descend().x)
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", ["vp", "rf", "edm"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_every_schedule_and_number_of_steps_gives_finite_answers(schedule, steps):
    """Check 9; "rf" has alpha = 0 at t = 1, where s is infinite and the weight is capped."""
    mask = Mask((_DIM,), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    p = problem(prior(schedule), mask, mask(normals(2, _DIM, seed=14)))
    for weight in WEIGHTS:
        assert bool(solve(p, steps, weight=weight).isfinite().all())


def test_a_thousand_steps_stay_near_the_data():
    mask = Mask((_DIM,), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    y = mask(normals(2, _DIM, seed=14))
    found = solve(problem(prior(), mask, y), 1000)
    assert bool(found.isfinite().all()) and float((mask(found) - y).abs().max()) < 0.5


def test_weights_are_capped():
    options = RedDiff(lam=1.0, weight="square", max_weight=10.0)
    times = torch.tensor([1.0, 0.5], dtype=torch.float64)
    levels = make_levels(options, make_schedule("vp"), times)
    assert levels[0].s > 100 and levels[0].weight == 100.0
    assert levels[1].weight == pytest.approx(levels[1].s ** 2)


def test_a_finite_width_uses_the_combined_noise():
    """Section 2.2: lambda_t (eps_hat - e' / eta) and its gradient by std, at one draw."""
    denoiser, t, std = prior(), 0.4, 0.3
    p = problem(denoiser, Identity((_DIM,)), torch.zeros(2, _DIM, dtype=torch.float64))
    descent = at_one_time(RedDiff(lam=1.0, weight="const", std=std, learn_std=True), p, t, 1)
    alpha, sigma = denoiser.process.coefficients(t, p.y)
    s = sigma / alpha
    eta = math.sqrt(1 + std**2 / s**2)
    mu, e = normals(2, _DIM, seed=15), normals(2, _DIM, seed=16)
    x_t = alpha * mu + sigma * eta * e
    expected = denoiser.process.eps(x_t, denoiser(x_t, t), t) - e / eta
    width = torch.full((2,), std, dtype=torch.float64)
    found, along, _ = descent._regulariser(mu, e, descent.levels[0], width)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(along, std / (s * eta) * (e * expected).sum(1), atol=1e-10, rtol=0)


def test_a_learned_width_finds_that_of_the_prior():
    """Without data the law nearest to N(m, c I) has std sqrt(c): the gradient by std is 0 there, in the mean."""
    dim, c = 400, 0.25
    mean, cov = torch.zeros(dim, dtype=torch.float64), c * torch.eye(dim, dtype=torch.float64)
    denoiser = GaussianDenoiser(mean, cov, GaussianProcess(make_schedule("vp")))
    p = problem(denoiser, Identity((dim,)), torch.zeros(1, dim, dtype=torch.float64))
    options = RedDiff(obs_weight=0.0, lam=1.0, std=1.5, learn_std=True, lr=0.05, trace=True, tail="decay")
    found = float(at_one_time(options, p, 0.5, 200).descend().trace["std"])
    assert found == pytest.approx(math.sqrt(c), rel=0.15)  # chi-squared noise of 400 numbers: 3.5 % of each gradient


def test_tails():
    p = problem(prior(), Identity((_DIM,)), normals(1, _DIM, seed=17))
    rates = RedDiff(tail="decay", trace=True).solve(p, KeyedNoise(0, range(1)), 50).trace["lr"]
    expected = [0.1] * 41 + [0.1 * k / 10 for k in range(9, 0, -1)]
    assert rates.tolist() == pytest.approx(expected)
    iterates = [solve(p, 1, tail=None)]
    assert iterates[0].shape == (1, _DIM)
    # A run does not know how long it is but for its times: the last two of 20 iterates are found by cutting it short.
    options = RedDiff(tail="average")
    averaged = at_one_time(options, p, 0.3, 20).descend().x
    ends = [at_one_time(RedDiff(), p, 0.3, count).descend().x for count in (19, 20)]
    torch.testing.assert_close(averaged, (ends[0] + ends[1]) / 2, atol=1e-12, rtol=0)


def test_the_push_is_the_gradient_of_the_kernel_and_keeps_images_apart():
    x = normals(6, 2, seed=18).requires_grad_()
    grouped = x.view(2, 3, 2)
    squares = (grouped[:, :, None] - grouped[:, None]).square().sum(-1)
    pairs = squares.detach()[:, [0, 0, 1], [1, 2, 2]]
    width = pairs.median(1).values / math.log(4)
    log_kernel = (torch.exp(-squares / width[:, None, None])).sum(2).log()
    # The gradient by x_i of its own term alone: the others' terms hold x_i too.
    found = []
    for i in range(3):
        (slope,) = torch.autograd.grad(log_kernel[:, i].sum(), x, retain_graph=True)
        found.append(slope.view(2, 3, 2)[:, i])
    expected = -torch.stack(found, 1) * width[:, None, None] / 2
    torch.testing.assert_close(push_apart(x.detach(), 3).view(2, 3, 2), expected, atol=1e-10, rtol=0)
    assert torch.equal(push_apart(x.detach(), 1), torch.zeros(6, 2, dtype=torch.float64))


def test_repulsion_widens_the_samples_of_an_image():
    mask = Mask((_DIM,), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    y = mask(normals(3, _DIM, seed=19)).repeat_interleave(4, 0)
    p = problem(prior(), mask, y, samples=4)
    plain, pushed = (solve(p, 60, tail="average", repulsion=r).view(3, 4, _DIM).var(1).mean() for r in (0.0, 1.0))
    assert float(pushed) > 1.5 * float(plain)


class Doubling:
    """A codec whose data are 2 z."""

    data = latent = DataSpec(kind="vector", shape=(_DIM,))

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def encode(self, x: Tensor) -> Tensor:
        return x / 2

    def decode(self, z: Tensor) -> Tensor:
        return 2 * z


def test_latents_are_fitted_through_the_decoder():
    codec: Any = Doubling()
    p = problem(prior(), Decoded(Identity((_DIM,)), codec), normals(2, _DIM, seed=20).float().double(), codec=codec)
    torch.testing.assert_close(solve(p, 10, lam=0.0), p.y / 2)  # the start is A^+ y, encoded: it stays
    moved = solve(p, 100, lam=0.0, start="zeros", normalise="sum", obs_weight=0.25, **_DESCENT)
    torch.testing.assert_close(moved, p.y / 2, atol=1e-5, rtol=0)  # a codec computes in float32


def test_other_noise_is_fitted_by_its_likelihood():
    """Without a prior, at any number of photons: Poisson's maximum is y; half the pixels have none."""
    model = PoissonNoise(scale=5.0)
    y = torch.tensor([[-1.0, -0.6, 0.2, 0.6]], dtype=torch.float64)
    p = problem(prior(), Identity((_DIM,)), y, noise_std=0.5, noise_model=model)
    found = solve(p, 400, lam=0.0, start="zeros", lr=0.1, tail="decay")
    torch.testing.assert_close(found[:, 1:], y[:, 1:], atol=1e-3, rtol=0)
    assert float(found[0, 0]) <= -0.99  # where no photon came, anything without light fits
    slope = solve(p, 1, lam=0.0, start="zeros", optimizer="sgd", lr=1e-3, obs_weight="noise", normalise="sum")
    rate = torch.zeros(1, _DIM, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(model.log_prob(y, rate).sum(), rate)
    torch.testing.assert_close(slope / 1e-3, expected)


def test_starts():
    matrix = normals(2, _DIM, seed=21)
    y = normals(3, 2, seed=22)
    noisy = problem(prior(), Dense(matrix), y, noise_std=0.3, data_var=0.5)
    ridge = matrix.T @ matrix + 0.09 / 0.5 * torch.eye(_DIM, dtype=torch.float64)
    still = {"lam": 0.0, "obs_weight": 0.0}
    torch.testing.assert_close(solve(noisy, 1, **still), torch.linalg.solve(ridge, (y @ matrix).T).T)
    torch.testing.assert_close(solve(noisy, 1, start="adjoint", **still), y @ matrix)
    torch.testing.assert_close(solve(noisy, 1, start="pinv", **still), y @ torch.linalg.pinv(matrix).T)
    given = problem(prior(), Dense(matrix), y, x_init=torch.ones(3, _DIM, dtype=torch.float64))
    assert torch.equal(solve(given, 1, **still), torch.ones(3, _DIM, dtype=torch.float64))


def test_injected_noise_is_all_that_is_random():
    p = problem(prior(), Identity((_DIM,)), normals(2, _DIM, seed=23))
    draws = {("step", k): normals(2, _DIM, seed=30 + k) for k in range(3)}
    first, again = (RedDiff().solve(p, InjectedNoise(draws), 3).x for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lam": -1.0}, "lam=-1.0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"weight": "cubic"}, "linear, sqrt"),
        ({"order": "up"}, "descending, random"),
        ({"normalise": "batch"}, "pixel, sum"),
        ({"obs_weight": "auto"}, "'noise'"),
        ({"obs_weight": -1.0}, "at least 0"),
        ({"learn_std": True}, "give std"),
        ({"clip": (1.0, -1.0)}, "empty"),
        ({"optimizer": "lbfgs"}, "adam, sgd"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RedDiff(**options)


def test_what_it_cannot_do_is_refused_and_heavy_noise_is_warned_of():
    p = problem(prior(), Identity((_DIM,)), torch.zeros(1, _DIM))
    with pytest.raises(ValueError, match="give noise_std above 0"):
        RedDiff(obs_weight="noise").check(p)
    noisy = problem(prior(), Identity((_DIM,)), torch.zeros(1, _DIM), noise_std=0.4)
    assert "fits the noise" in RedDiff().check(noisy)[0]
    assert RedDiff().check(p) == []
    phase = problem(prior(), PhaseRetrieval((1, 8, 8)), torch.zeros(1, 1, 12, 12))
    assert "several origins" in RedDiff().check(phase)[0]
    rounded = parse_operator("quantise:bits=2,straight_through=false", (1, 2, 2))
    image = GaussianDenoiser(torch.zeros(1, 2, 2), torch.eye(4), GaussianProcess(make_schedule("vp")))
    with pytest.raises(ValueError, match=r"red-diff needs .*differentiated"):
        restore(image, torch.zeros(1, 1, 2, 2), rounded, "red-diff", steps=1)

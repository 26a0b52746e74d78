"""Wrappers that know a measurement: exact where the data are Gaussian, the prior's own answer where y says nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import process_of
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.covariance import JFPS, MMPS, TMPD, kept_near
from undiffuse.guidance.measurement import PiGDM, Proximal
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.operators.diagonal import Diagonal, Identity, Mask
from undiffuse.operators.krylov import conjugate_gradient, gmres
from undiffuse.operators.sensing import Matrix
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.times import Time
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.loop import sample

D, ROWS = 5, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, [0]).normal("data", 0, shape, torch.float64)[0]


def gaussian(process: GaussianProcess) -> tuple[GaussianDenoiser, Tensor, Tensor]:
    root = normal(D, D, seed=1)
    mean, cov = normal(D, seed=2), root @ root.T + 0.1 * torch.eye(D, dtype=torch.float64)
    return GaussianDenoiser(mean, cov, process), mean, cov


def exact_mean(mean: Tensor, cov: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, a: Tensor, y: Tensor, sy: float):
    """E[x_0 | x_t, y] by stacking both measurements, with a level per row (B,)."""
    found = []
    for row in range(len(x)):
        full = torch.cat([alpha[row] * torch.eye(D, dtype=torch.float64), a])
        noise = torch.cat([sigma[row].expand(D), torch.full((len(a),), sy, dtype=torch.float64)]) ** 2
        rest = torch.cat([x[row], y[row]]) - full @ mean
        gain = cov @ full.T @ torch.linalg.inv(full @ cov @ full.T + torch.diag(noise))
        found.append(mean + gain @ rest)
    return torch.stack(found)


@pytest.mark.parametrize("name", ["vp", "cosine", "ve"])
def test_the_covariance_makes_it_exact_at_every_time(name: str) -> None:
    process = process_of(name)
    prior, mean, cov = gaussian(process)
    a, sy = normal(3, D, seed=3), 0.3
    operator = Matrix((D,), a)
    x, y = normal(ROWS, D, seed=4), normal(ROWS, 3, seed=5)
    for t in (torch.tensor([0.02, 0.4, 0.97], dtype=torch.float64), 0.6):
        alpha, sigma = process.schedule.levels(torch.as_tensor(t, dtype=torch.float64).expand(ROWS))
        wanted = exact_mean(mean, cov, x, alpha, sigma, a, y, sy)
        for wrapped in (
            MMPS(prior, operator, y, sy, iterations=12),
            MMPS(prior, operator, y, sy, iterations=3, krylov="gmres"),
            JFPS(prior, operator, y, sy, cov, iterations=12),
        ):
            torch.testing.assert_close(wrapped(x, t).mean, wanted, rtol=0, atol=1e-8)


def test_a_network_says_the_same_by_its_derivative() -> None:
    process = process_of("vp")
    prior, _, _ = gaussian(process)
    operator, x, y = Matrix((D,), normal(3, D, seed=3)), normal(ROWS, D, seed=4), normal(ROWS, 3, seed=5)
    opaque = ByAutograd(prior)
    for t in (0.5, torch.tensor([0.1, 0.5, 0.9])):
        wanted = MMPS(prior, operator, y, 0.3, 12)(x, t).mean
        with torch.no_grad():
            torch.testing.assert_close(MMPS(opaque, operator, y, 0.3, 12)(x, t).mean, wanted, rtol=1e-9, atol=1e-10)


class ByAutograd(Denoiser):
    """An oracle whose covariance nobody knows."""

    def __init__(self, prior: Denoiser) -> None:
        super().__init__()
        self.prior, self.process, self.asked = prior, prior.process, 0

    def posterior(self, x, t, cond):
        self.asked += 1
        return self.prior.posterior(x, t, cond)


def test_pigdm_is_exact_for_white_data_of_any_variance() -> None:
    process, v, sy = process_of("vp"), 0.35, 0.2
    mean = normal(D, seed=2)
    prior = GaussianDenoiser(mean, v * torch.eye(D, dtype=torch.float64), process)
    a = normal(3, D, seed=3)
    x, y = normal(ROWS, D, seed=4), normal(ROWS, 3, seed=5)
    t = torch.tensor([0.05, 0.5, 0.99], dtype=torch.float64)
    wanted = exact_mean(mean, v * torch.eye(D, dtype=torch.float64), x, *process.schedule.levels(t), a, y, sy)
    answer = PiGDM(prior, Matrix((D,), a), y, sy, data_var=v)(x, t).mean
    torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-8)
    assert (PiGDM(prior, Matrix((D,), a), y, sy)(x, t).mean - wanted).abs().max() > 1e-3  # v = 1 over-shoots


@pytest.mark.parametrize("sy", [0.2, 0.0])
def test_pigdm_goes_no_further_than_is_best_along_its_step(sy: float) -> None:
    """Data with a direction of 400 times the variance that it is told: e^T (M c e - residual) = 0 at its c."""
    process, t, v = process_of("vp"), 0.95, 0.05
    direction = torch.ones(D, 1, dtype=torch.float64) / D**0.5
    cov = 20.0 * direction @ direction.T + 0.02 * torch.eye(D, dtype=torch.float64)
    prior, operator = GaussianDenoiser(torch.zeros(D), cov, process), Matrix((D,), normal(3, D, seed=3))
    x, y = normal(ROWS, D, seed=4), normal(ROWS, 3, seed=5)
    wrapped = PiGDM(prior, operator, y, sy, data_var=v)
    answer = prior.linearise(x, t)
    mean = answer.post.mean
    back = wrapped.back_projected(mean, x, t)
    e = torch.linalg.lstsq(operator.adjoint(torch.eye(3).double()).T, back.T).solution.T  # back = A^T e
    shift = wrapped.shift(answer, x, t)
    length = (shift / answer.cov(back)).mean(1, keepdim=True)
    assert (length < 0.2).all() and (length > 0).all()
    slope = e * (operator(shift) + sy**2 * length * e - (y - operator(mean)))
    torch.testing.assert_close(slope.sum(1), torch.zeros(ROWS).double(), rtol=0, atol=1e-8 * float(e.norm()) ** 2)


def test_conjugate_gradients_stop_where_the_matrix_is_no_covariance() -> None:
    matrix = torch.stack(
        [torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.diag(torch.tensor([1.0, -5.0, 0.2]))]
    ).double()
    b = torch.ones(2, 3, dtype=torch.float64)
    found = conjugate_gradient(lambda v: (matrix @ v[..., None])[..., 0], b, iterations=3, tol=0.0, least=0.05)
    torch.testing.assert_close(found[0], 1 / matrix[0].diagonal())
    assert torch.equal(found[1], torch.zeros(3).double())  # the first direction has a curvature of -3.8


def test_shifts_that_leave_the_measurement_are_cut_down() -> None:
    operator, residual = Matrix((D,), normal(3, D, seed=3)), normal(3, 3, seed=5)
    back = operator.pinv(residual)
    given = torch.stack([0.7 * back[0], 50.0 * back[1], -3.0 * back[2]])
    found = kept_near(given, operator, residual, 0.1)
    assert torch.equal(found[0], given[0])  # it fits better than none
    torch.testing.assert_close(operator(found)[1], residual[1])  # the right way, fifty times too far
    assert torch.equal(found[2], torch.zeros(D).double())  # the wrong way


def test_a_derivative_that_is_no_covariance_never_drives_mmps_away_from_y() -> None:
    class Skewed(Denoiser):
        """Linear, with a derivative that is neither symmetric nor definite."""

        def __init__(self) -> None:
            super().__init__()
            self.process = process_of("vp")
            self.slope = normal(D, D, seed=7)

        def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
            return Posterior(x @ self.slope.T)

    prior, operator = Skewed(), Matrix((D,), normal(3, D, seed=3))
    x, y = normal(40, D, seed=4), normal(40, 3, seed=6)
    before = (y - operator(prior(x, 0.9).mean)).norm(dim=1)
    wrapped = MMPS(prior, operator, y, 0.05)
    answer = prior.linearise(x, 0.9)
    raw = wrapped.gain(operator, answer, 0.05, y - operator(answer.post.mean))
    assert ((y - operator(answer.post.mean + raw)).norm(dim=1) > 2 * before).any()
    assert ((y - operator(wrapped(x, 0.9).mean)).norm(dim=1) <= before * (1 + 1e-9)).all()


def test_tmpd_divides_by_the_diagonal() -> None:
    process = process_of("vp")
    prior, _, _ = gaussian(process)
    a, sy = normal(3, D, seed=3), 0.3
    x, y = normal(ROWS, D, seed=4), normal(ROWS, 3, seed=5)
    plain = prior(x, 0.4).mean
    units = torch.eye(D, dtype=torch.float64)
    v = torch.stack([prior.cov(x, 0.4, e.expand(ROWS, D)) for e in units], 2)
    middle = a @ v @ a.T
    weighed = (y - plain @ a.T) / (middle.diagonal(dim1=1, dim2=2) + sy**2)
    wanted = plain + torch.einsum("bij,mj,bm->bi", v, a, weighed)
    torch.testing.assert_close(TMPD(prior, Matrix((D,), a), y, sy)(x, 0.4).mean, wanted, rtol=1e-9, atol=1e-10)


def test_the_first_answer_is_the_wiener_filter() -> None:
    process = process_of("cosine")  # alpha is 0 at t = 1
    prior, mean, cov = gaussian(process)
    y, sy = normal(ROWS, D, seed=5), 0.4
    answer = MMPS(prior, Identity((D,)), y, sy, iterations=12)(normal(ROWS, D, seed=4), 1.0).mean
    gain = cov @ torch.linalg.inv(cov + sy**2 * torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(answer, mean + (y - mean) @ gain.T, rtol=0, atol=1e-8)


def test_a_measurement_that_is_all_noise_leaves_the_sampler_as_it_is() -> None:
    process = process_of("vp")
    prior, _, cov = gaussian(process)
    operator, y, huge = Matrix((D,), normal(3, D, seed=3)), normal(ROWS, 3, seed=5), 1e4

    def run(denoiser: Denoiser) -> Tensor:
        return sample(
            denoiser,
            noise=KeyedNoise(0, range(ROWS)),
            shape=(D,),
            solver=DDIM(eta=1.0),
            grid=make_grid(process.schedule, 20),
            dtype=torch.float64,
        ).x

    plain = run(prior)
    for wrapped in (
        MMPS(prior, operator, y, huge),
        TMPD(prior, operator, y, huge),
        JFPS(prior, operator, y, huge, cov),
        PiGDM(prior, operator, y, huge),
        Proximal(prior, operator, y, huge),
    ):
        torch.testing.assert_close(run(wrapped), plain, rtol=0, atol=1e-3)


def test_wrappers_go_around_each_other() -> None:
    """Guidance around a measurement, and a measurement around guidance, at a scale that stacks batches."""
    process = process_of("vp")
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    covs = torch.full((2,), 0.3)
    prior = MixtureDenoiser(torch.ones(2), means, covs, process, labels=torch.tensor([0, 1]))
    operator = Mask((2,), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))  # a mask per row
    x, y = normal(3, 2, seed=4), normal(3, 2, seed=5)
    inside = ClassifierFreeGuidance(MMPS(prior, operator, y, 0.2), 2.0)
    outside = MMPS(ClassifierFreeGuidance(prior, 2.0), operator, y, 0.2)
    label = {"label": torch.tensor([0, 1, 0])}
    for guided in (inside, outside):
        assert guided(x, 0.5, guided.embed(label, 3)).mean.isfinite().all()
    one = [
        inside_row(prior, operator, x, y, row, label["label"]) for row in range(3)
    ]  # rows do not see each other, nor the stack
    torch.testing.assert_close(inside(x, 0.5, inside.embed(label, 3)).mean, torch.cat(one))


def inside_row(prior: Denoiser, operator: Mask, x: Tensor, y: Tensor, row: int, label: Tensor) -> Tensor:
    at = torch.tensor([row])
    guided = ClassifierFreeGuidance(MMPS(prior, operator.take(at), y[at], 0.2), 2.0)  # type: ignore[arg-type]
    return guided(x[at], 0.5, guided.embed({"label": label[at]}, 1)).mean


def test_the_last_answer_of_diffpir_is_left_alone() -> None:
    prior, _, _ = gaussian(process_of("vp"))
    wrapped = Proximal(prior, Identity((D,)), normal(ROWS, D), 0.1, until=0.01)
    x = normal(ROWS, D, seed=4)
    torch.testing.assert_close(wrapped(x, 0.01).mean, prior(x, 0.01).mean, rtol=0, atol=0)
    assert (wrapped(x, 0.02).mean - prior(x, 0.02).mean).abs().max() > 1e-6


def test_the_noise_of_weak_directions_is_not_amplified_beyond_the_bound() -> None:
    prior, _, _ = gaussian(process_of("vp"))
    weak = Diagonal((D,), torch.full((D,), 1e-3, dtype=torch.float64))
    x, y, std = normal(ROWS, D, seed=4), normal(ROWS, D, seed=5), 0.1
    free, bounded = Proximal(prior, weak, y, std), Proximal(prior, weak, y, std, lam=2.0, most=3.0)
    mean, rho = prior(x, 0.99).mean, 2.0 * std**2 / 3.0
    torch.testing.assert_close(bounded(x, 0.99).mean, (1e-3 * y + rho * mean) / (1e-6 + rho))
    assert free(x, 0.99).mean.std() > 10 * bounded(x, 0.99).mean.std()
    per_row = bounded(x, torch.full((ROWS,), 0.99, dtype=torch.float64)).mean
    torch.testing.assert_close(per_row, bounded(x, 0.99).mean)


def test_gmres_solves_what_is_not_symmetric() -> None:
    matrix = normal(2, 4, 4, seed=7) + 3 * torch.eye(4, dtype=torch.float64)
    b = normal(2, 4, seed=8)
    found = gmres(lambda v: (matrix @ v[..., None])[..., 0], b, 4)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b))
    projector = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    short = gmres(lambda v: v @ projector, b @ projector, 4)  # the subspace is complete after one product
    torch.testing.assert_close(short, b @ projector)


def test_misfits_are_refused() -> None:
    prior, _, _ = gaussian(process_of("vp"))
    with pytest.raises(ValueError, match="y has shape"):
        MMPS(prior, Identity((D,)), normal(ROWS, 4), 0.1)
    with pytest.raises(ValueError, match="negative"):
        PiGDM(prior, Identity((D,)), normal(ROWS, D), -0.1)


def test_random_signs_find_a_diagonal_exactly() -> None:
    """Where A V A^T is diagonal, v * (A V A^T v) is its diagonal for any signs v; then TMPD is exact, too."""
    process, mean = process_of("vp"), normal(D, seed=2)
    prior = GaussianDenoiser(mean, torch.diag(normal(D, seed=6).abs() + 0.1), process)
    x, y = normal(ROWS, D, seed=4), normal(ROWS, D, seed=5)
    wanted = MMPS(prior, Identity((D,)), y, 0.3, iterations=12)(x, 0.6).mean
    for probes in (0, 1, 3):
        found = TMPD(prior, Identity((D,)), y, 0.3, probes=probes)(x, 0.6).mean
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)

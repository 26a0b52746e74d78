"""Errors and scores against Gaussian classes, whose expected errors and posteriors are known (spec, section 6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tasks.classify.oracles import DIMS, draws, gaussian_classes, log_joint
from undiffuse.denoisers.empirical import EmpiricalDenoiser
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import CosineSchedule, RectifiedFlowSchedule
from undiffuse.process.tables import TableSchedule
from undiffuse.tasks.classify import ErrorTable, TimeWeights, classify, error_table
from undiffuse.tasks.classify.times import gaussian_grid, time_sets, visit_order


def squares(mixture: MixtureDenoiser, x: Tensor) -> Tensor:
    """|x - mu_c|^2, (B, C)."""
    means = torch.stack([c.mean for c in mixture.components])  # type: ignore[misc]
    return (x[:, None] - means).square().sum(-1)


def levels(table: ErrorTable) -> tuple[Tensor, Tensor]:
    """alpha^2 and sigma^2 of a variance-preserving schedule."""
    return torch.sigmoid(2 * table.half_logsnr), torch.sigmoid(-2 * table.half_logsnr)


def test_with_antithetic_noise_every_single_time_gives_the_closed_form_and_so_bayes_decision() -> None:
    """Checks 1 and 3: alpha^2 sigma^2 (|x - mu_1|^2 - |x - mu_2|^2) / q^2, whatever the noise."""
    mixture = gaussian_classes([0.3] * 5)
    x, _ = draws(mixture, 8)
    table = error_table(mixture, x, range(5), times=7, antithetic=True, seed=4)
    apart = squares(mixture, x)
    alpha2, sigma2 = levels(table)
    exact = alpha2 * sigma2 / (alpha2 * 0.3 + sigma2) ** 2 * (apart[:, :, None] - apart[:, :1, None])
    torch.testing.assert_close((table.errors - table.errors[:, :1]) * DIMS, exact, rtol=1e-6, atol=1e-6)
    bayes = log_joint(mixture, x).argmax(1)
    for time in range(7):
        assert torch.equal(table.errors[:, :, time].argmin(1), bayes)
    assert torch.equal(table.scores(TimeWeights(half_logsnr=(-9.0, 9.0), values=(3.0, 0.1))).argmax(1), bayes)


def test_weights_of_the_bound_integrate_to_the_log_likelihood_difference() -> None:
    """Check 2: (|x - mu_1|^2 - |x - mu_2|^2) / 2v, to 1e-6 relative: the tails beyond log-SNR 17.5 hold 1e-7."""
    mixture = gaussian_classes([0.3, 0.3])
    x, _ = draws(mixture, 20)
    exact = log_joint(mixture, x).diff(dim=1)[:, 0]
    table = error_table(mixture, x, range(2), times=100, antithetic=True, spacing="logsnr")
    found = DIMS * table.scores("elbo").diff(dim=1)[:, 0]
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    on_t = error_table(mixture, x, range(2), times=120, antithetic=True)  # the same integral on times uniform in t
    torch.testing.assert_close(DIMS * on_t.scores("elbo").diff(dim=1)[:, 0], exact, rtol=4e-3, atol=2e-3)


def expected_table(mixture: MixtureDenoiser, x: Tensor, variances: Tensor, times: int) -> ErrorTable:
    """A table of the expected errors of check 1, on times uniform in log-SNR."""
    grid = gaussian_grid(mixture.process, times, "logsnr")
    alpha2, sigma2 = torch.sigmoid(2 * grid.half_logsnr), torch.sigmoid(-2 * grid.half_logsnr)
    v, apart = variances[:, None], squares(mixture, x)[:, :, None]
    q = alpha2 * v + sigma2
    errors = alpha2 * sigma2 * apart / q**2 / DIMS + (alpha2 * v / q) ** 2
    names = tuple(map(str, range(len(variances))))
    return ErrorTable(
        errors=errors,
        times=grid.times,
        half_logsnr=grid.half_logsnr,
        names=names,
        classes=torch.arange(len(variances)),
        class_names=names,
        dims=DIMS,
        widths=grid.widths,
        forms=grid.forms,
    )


def test_a_candidate_that_was_given_up_counts_at_most_as_the_best() -> None:
    """It was better at the one time where both were measured, and lost by what came after."""
    half = torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64)
    rows = torch.tensor([[[1.0, 1.0, 1.0], [0.5, torch.nan, torch.nan], [2.0, torch.nan, torch.nan], [1.0, 2.0, 3.0]]])
    table = ErrorTable(
        errors=rows,
        times=torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64),
        half_logsnr=half,
        names=("a", "b", "c", "d"),
        classes=torch.arange(4),
        class_names=("a", "b", "c", "d"),
        dims=2,
    )
    assert table.logits().tolist() == [[0.0, 0.0, -2.0, -2.0]]
    assert table.scores().tolist() == [[-1.0, -0.5, -2.0, -2.0]]


def test_different_variances_need_the_bound_s_weights_which_know_the_log_determinant() -> None:
    """Checks 1 and 10: 2e-3 is the cut tail of the spec's own measurement; uniform weights are no posterior."""
    variances = [0.2, 1.0]
    mixture = gaussian_classes(variances)
    x, _ = draws(mixture, 100)
    exact = log_joint(mixture, x)
    table = expected_table(mixture, x, torch.tensor(variances, dtype=torch.float64), 100)
    found = DIMS * table.scores("elbo")
    torch.testing.assert_close(found.diff(dim=1), exact.diff(dim=1), rtol=0, atol=2e-3)
    posterior = table.logits("elbo").softmax(1)
    assert float((posterior - exact.softmax(1)).abs().max()) < 0.02
    assert float((table.logits("uniform").softmax(1) - exact.softmax(1)).abs().max()) > 0.05


def test_the_expected_error_is_what_is_measured_on_average() -> None:
    """Check 1, with 4 standard errors of 100 seeds (false alarms below 1e-4 each)."""
    mixture = gaussian_classes([0.2, 1.0])
    x, _ = draws(mixture, 1)
    parts = [error_table(mixture, x, range(2), times=[0.3], seed=seed).errors for seed in range(100)]
    samples = torch.stack(parts)
    alpha2, sigma2 = torch.cos(torch.tensor(0.15 * torch.pi)) ** 2, torch.sin(torch.tensor(0.15 * torch.pi)) ** 2
    v = torch.tensor([0.2, 1.0], dtype=torch.float64)
    q = alpha2 * v + sigma2
    exact = alpha2 * sigma2 * squares(mixture, x) / q**2 / DIMS + (alpha2 * v / q) ** 2
    error = samples.std(0)[..., 0] / 10
    assert bool(((samples.mean(0)[..., 0] - exact).abs() < 4 * error).all())


def test_p_of_the_class_is_the_exact_posterior_for_equal_variances() -> None:
    """Check 10, measured: antithetic noise, the bound's weights, T = 1."""
    mixture = gaussian_classes([0.5] * 4, spread=0.25)
    x, _ = draws(mixture, 25)
    found = classify(mixture, x, range(4), times=50, keep=1, weight="elbo", antithetic=True)
    exact = log_joint(mixture, x).softmax(1)
    assert float((found.probabilities() - exact).abs().max()) < 0.02
    assert 0.5 < float(exact.max(1).values.mean()) < 0.98  # not a test of zeros and ones


def test_likelihoods_by_the_flow_give_the_exact_posterior() -> None:
    mixture = gaussian_classes([0.3, 0.8], dims=3, spread=0.8)
    x, _ = draws(mixture, 10)
    found = classify(mixture, x, range(2), method="ode", likelihood={"rtol": 1e-6, "atol": 1e-6, "t_min": 1e-3})
    exact = log_joint(mixture, x).softmax(1)
    assert float((found.probabilities() - exact).abs().max()) < 2e-3
    assert found.nfe == found.promised > 0


@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedFlowSchedule()])
def test_forms_of_the_error_agree_with_the_process_and_under_their_conversion(schedule: object) -> None:
    """Check 7: |v err|^2 = |eps err|^2 / alpha^2 for VP, |x0 err|^2 = |eps err|^2 sigma^2 / alpha^2; velocity of the
    straight line |eps err|^2 / (1 - t)^2."""
    process = GaussianProcess(schedule)  # type: ignore[arg-type]
    mixture = MixtureDenoiser(
        torch.ones(2), torch.eye(2, 6, dtype=torch.float64), torch.full((2,), 0.5), process, labels=torch.arange(2)
    )
    x, t = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6), 0.37
    tables = {
        name: error_table(mixture, x, range(2), times=[t], target=name) for name in ("eps", "x0", "v", "velocity")
    }
    eps = KeyedNoise(0, [0]).normal("data", 0, (6,), torch.float64)
    x_t = process.corrupt(x, t, eps)
    post = mixture(x_t, t, mixture.embed({"label": torch.zeros(2, dtype=torch.int64)}, 2))
    clean = {
        "eps": eps,
        "x0": x,
        "v": process.target("v", x, eps, t),
        "velocity": process.target("velocity", x, eps, t),
    }
    own = {
        "eps": process.eps(x_t, post, t),
        "x0": post.mean,
        "v": process.v(x_t, post, t),
        "velocity": process.velocity(x_t, post, t),
    }
    for name, table in tables.items():
        exact = (own[name] - clean[name]).square().mean(1)
        torch.testing.assert_close(table.errors[:, 0, 0], exact, rtol=1e-10, atol=1e-14)
        for other in tables:
            torch.testing.assert_close(table.scores(other), tables[other].scores(), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(table.scores("elbo"), tables["eps"].scores("elbo"), rtol=1e-10, atol=1e-14)
    ratio = (tables["velocity"].errors / tables["eps"].errors).mean()
    if isinstance(schedule, RectifiedFlowSchedule):
        assert float(ratio) == pytest.approx(1 / (1 - t) ** 2)


def test_losses_are_those_of_torch() -> None:
    mixture = gaussian_classes([0.3, 0.3])
    x, _ = draws(mixture, 2)
    eps = KeyedNoise(0, [0]).normal("data", 0, (DIMS,), torch.float64)
    x_t = mixture.process.corrupt(x, 0.5, eps)
    post = mixture(x_t, 0.5, mixture.embed({"label": torch.ones(4, dtype=torch.int64)}, 4))
    apart = mixture.process.eps(x_t, post, 0.5) - eps
    exact = {
        "l1": apart.abs().mean(1),
        "huber": torch.nn.functional.huber_loss(apart, apart * 0, reduction="none").mean(1),
    }
    for loss, value in exact.items():
        table = error_table(mixture, x, range(2), times=[0.5], loss=loss)
        torch.testing.assert_close(table.errors[:, 1, 0], value)
        with pytest.raises(ValueError, match="squared errors"):
            table.scores("elbo")


def test_an_empirical_denoiser_says_what_the_nearest_neighbour_says() -> None:
    """Check 8: at small t; of a training point its own label."""
    points = KeyedNoise(2, range(40)).normal("data", 0, (5,), torch.float64)
    labels = torch.arange(40) % 4
    denoiser = EmpiricalDenoiser(points, GaussianProcess(CosineSchedule()), labels=labels)
    x = KeyedNoise(3, range(60)).normal("data", 0, (5,), torch.float64)
    found = classify(denoiser, x, range(4), times=1, keep=1, between=(0.004, 0.006))
    assert torch.equal(found.label, labels[torch.cdist(x, points).argmin(1)])
    assert torch.equal(classify(denoiser, points, range(4), times=1, keep=1, between=(0.02, 0.04)).label, labels)


def test_times_are_visited_as_the_spec_writes_them() -> None:
    assert visit_order(40)[:10] == [20, 10, 30, 5, 25, 15, 35, 2, 22, 12]
    assert sorted(visit_order(37)) == list(range(37))
    assert [len(times) for times in time_sets(40, (5, 20, 40), "corput")] == [5, 15, 20]
    reference = time_sets(40, (5, 20, 40), "reference")
    assert reference[0] == [4, 12, 20, 28, 36]
    assert [sum(len(part) for part in reference[: k + 1]) for k in range(3)] == [5, 25, 40]


def test_a_model_of_discrete_steps_is_asked_at_those_of_the_paper_s_code() -> None:
    table = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    process = GaussianProcess(TableSchedule(alphas_cumprod=tuple((1 - table).cumprod(0).tolist())))
    grid = gaussian_grid(process, 40)
    assert torch.equal((grid.times * 1000 - 1).round().long(), torch.arange(12, 1000, 25))
    assert len(gaussian_grid(process, 999, "logsnr").times.unique()) == 999
    with pytest.raises(ValueError, match="trained on 1000 discrete steps"):
        gaussian_grid(process, 1001)


def test_time_weights_go_to_disk_and_to_other_times(tmp_path: object) -> None:
    weights = TimeWeights.of(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]), target="eps", loss="l2")
    assert weights.half_logsnr == (-1.0, 2.0)
    assert TimeWeights.load(weights.save(f"{tmp_path}/w.json")) == weights
    torch.testing.assert_close(
        weights.at(torch.tensor([-1.5, 0.5, 2.9])), torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="more than 1 outside"):
        weights.at(torch.tensor([-3.0]))
    mixture = gaussian_classes([0.3, 0.3])
    x, _ = draws(mixture, 1)
    with pytest.raises(ValueError, match="target='eps'"):
        error_table(mixture, x, range(2), times=3, target="v").scores(weights)

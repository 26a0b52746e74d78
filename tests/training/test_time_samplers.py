"""Laws of time, stratification, and one time per frame (fvdm, check 9)."""

from __future__ import annotations

import pytest
import torch

from undiffuse.noise import KeyedNoise
from undiffuse.process import make_schedule
from undiffuse.training.time_samplers import (
    FrameTimes,
    ImportanceTimes,
    LastStepTimes,
    LogitNormalTimes,
    LogNormalTimes,
    ModeTimes,
    RunningTimes,
    TimeSampler,
    UniformTimes,
    stratify,
)

RF = make_schedule("rf")
LAWS = [
    UniformTimes(RF),
    LogitNormalTimes(RF, -0.4, 1.0),
    LogNormalTimes(RF),
    ModeTimes(RF),
    ImportanceTimes(RF),
    RunningTimes(RF),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_the_importance_factor_is_the_slope_of_the_quantile_function(law):
    u = torch.linspace(0.07, 0.93, 50, dtype=torch.float64)
    h = 1e-6
    slope = ((law(u + h).t - law(u - h).t) / (2 * h)).abs()
    torch.testing.assert_close(law(u).importance, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_times_are_finite_and_inside_the_schedule_for_every_uniform(law):
    times = law(torch.tensor([0.0, 1e-16, 0.5, 1 - 2.0**-53], dtype=torch.float64))
    assert times.t.isfinite().all() and times.importance.isfinite().all()
    assert ((times.t >= RF.t_min) & (times.t <= RF.t_max)).all()


def test_log_normal_times_have_the_stated_mean_and_std_of_log_rho():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    log_rho = -make_schedule("ve").half_logsnr(LogNormalTimes(make_schedule("ve"))(u).t)
    assert float(log_rho.mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(log_rho.std()) == pytest.approx(1.2, abs=2e-3)


def test_stratified_uniforms_are_evenly_spread_and_each_is_uniform():
    u = torch.rand(4000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = stratify(u.reshape(-1), 8).view(4000, 8)
    torch.testing.assert_close(spread.sort(1).values.diff(dim=1), torch.full((4000, 7), 0.125, dtype=torch.float64))
    # Kolmogorov-Smirnov distance of each column; 1.95 / sqrt(n) is exceeded with probability 0.001.
    grid = torch.arange(1, 4001, dtype=torch.float64) / 4000
    distance = (spread.sort(0).values - grid[:, None]).abs().max(0).values
    assert (distance < 1.95 / 4000**0.5).all()


N, F, P = 10_000, 4, 0.2


def frame_times(per: str = "clip", p: float = P, batch: int = 50) -> torch.Tensor:
    sampler = FrameTimes(TimeSampler(UniformTimes(RF)), p, per)
    return sampler.draw(KeyedNoise(3, range(N)), batch, F).t


def test_the_share_of_synchronous_clips_is_one_minus_p():
    same = (frame_times() == frame_times()[:, :1]).all(1)
    assert abs(float(same.double().mean()) - (1 - P)) < 4 * (P * (1 - P) / N) ** 0.5


def test_every_frame_has_the_base_law_in_both_branches():
    t = frame_times()
    same = (t == t[:, :1]).all(1)
    for branch in (t[same], t[~same]):
        n = len(branch)
        expected = RF.t_min + (RF.t_max - RF.t_min) * (torch.arange(1, n + 1, dtype=torch.float64) / n)
        distance = (branch.sort(0).values - expected[:, None]).abs().max(0).values
        assert (distance < 1.95 / n**0.5).all()  # false alarm 0.001 per frame


def test_asynchronous_frames_are_independent():
    t = frame_times()
    apart = t[~(t == t[:, :1]).all(1)]
    correlation = torch.corrcoef(apart.T) - torch.eye(F, dtype=torch.float64)
    assert correlation.abs().max() < 4 / len(apart) ** 0.5


def test_per_batch_draws_one_coin_for_all_clips():
    t = frame_times("batch").view(-1, 50, F)
    same = (t == t[..., :1]).all(-1)
    assert (same.all(1) | ~same.any(1)).all()
    assert 0 < float(same[:, 0].double().mean()) < 1


def test_without_asynchrony_frames_draw_what_the_scalar_sampler_draws():
    scalar = TimeSampler(UniformTimes(RF)).draw(KeyedNoise(3, range(N)), 50).t
    assert torch.equal(frame_times(p=0.0), scalar[:, None].expand(-1, F))


def test_importance_times_are_uniform_until_warm_and_then_follow_the_losses():
    law = ImportanceTimes(RF, bins=4, memory=10, floor=0.0)
    middles = RF.t_min + (RF.t_max - RF.t_min) * torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for _ in range(9):
        law.update(middles, sizes)
    assert torch.equal(law.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    law.update(middles, sizes)
    torch.testing.assert_close(law.probabilities(), (sizes / 10).double())
    t, importance = law(torch.tensor([0.05, 0.2, 0.5, 0.99], dtype=torch.float64))
    assert (((t - RF.t_min) / (RF.t_max - RF.t_min) * 4).long() == torch.tensor([0, 1, 2, 3])).all()
    torch.testing.assert_close(importance, (RF.t_max - RF.t_min) / (4 * (sizes / 10).double()))
    torch.testing.assert_close(law.importance_at(t), importance)


@pytest.mark.parametrize("kind", [ImportanceTimes, RunningTimes])
def test_adaptive_times_ignore_losses_that_are_not_finite(kind):
    law = kind(RF, bins=2, memory=3)
    law.update(torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64), torch.tensor([1.0, float("nan"), float("inf")]))
    assert law.seen.tolist() == [1, 0]
    assert law.probabilities().isfinite().all()


def test_importance_times_keep_the_last_losses_of_a_crowded_bin():
    law = ImportanceTimes(RF, bins=2, memory=3)
    law.update(torch.full((5,), 0.1, dtype=torch.float64), torch.arange(5.0))
    assert sorted(law.losses[0].tolist()) == [2.0, 3.0, 4.0]
    assert law.seen.tolist() == [5, 0]


def test_running_times_follow_the_running_mean_of_squares_and_give_the_first_bin_the_size_of_the_second():
    """Three losses of each bin, one update each: by hand; then a batch of five in one bin, which counts as its mean."""
    law = RunningTimes(RF, bins=3, memory=3, decay=0.9, floor=0.0)
    middles = RF.t_min + (RF.t_max - RF.t_min) * torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)
    sizes = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0], [9.0, 2.0, 1.0]], dtype=torch.float64)
    for row in sizes[:2]:
        law.update(middles, row)
    assert torch.equal(law.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
    law.update(middles, sizes[2])
    shares = torch.tensor([0.081, 0.09, 0.1], dtype=torch.float64)
    root = ((shares[:, None] * sizes.square()).sum(0) / shares.sum()).sqrt() + 1e-4
    root[0] = root[1]
    torch.testing.assert_close(law.probabilities(), root / root.sum(), rtol=1e-12, atol=0)
    before = float(law.mean_square[2])
    law.update(middles[2].expand(5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert float(law.mean_square[2]) == pytest.approx(0.9**5 * before + (1 - 0.9**5) * 11, rel=1e-12)
    assert law.seen.tolist() == [3, 3, 8]


def test_the_last_step_of_a_table_that_ends_in_noise_comes_once_in_its_number_of_steps() -> None:
    """Stratified batches hit it as often as they should; an average counts it as one cell of the table."""
    table = make_schedule("ddpm", steps=20, zero_terminal_snr=True)
    law = LastStepTimes(UniformTimes(table), 20)
    u = stratify(KeyedNoise(0, range(400)).uniform("time", 0, ()), 400)
    t = law(u).t
    assert int((t == 1).sum()) == 20
    assert float(t[t < 1].max()) <= table.t_max and float(t.min()) >= table.t_min
    fine = law((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    low, high = table.t_min, table.t_max
    area = (high**3 - low**3) / 3 + 1 / 20  # of t^2, the last step a cell of length 1 / 20
    assert float((fine.importance * fine.t**2).mean()) == pytest.approx(area, rel=1e-4)

"""Ancestral sampling of tokens in the common loop: conditions, caching, costs, times per row and per token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.errors import PlanError, UndiffuseError
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.ancestral import Ancestral
from undiffuse.sampling.constraints import Known
from undiffuse.sampling.loop import SampleResult, sample

KINDS: tuple[CategoricalKind, ...] = ("absorbing", "uniform", "mask-replace")


class FixedDenoiser(Denoiser):
    """Independent tokens with one law, counting how often it is asked."""

    def __init__(self, process: CategoricalProcess, probs: list[float], time_dependent: bool = False) -> None:
        super().__init__()
        self.process = process
        self.logits = torch.tensor(probs, dtype=torch.float64).log()
        self.time_dependent = time_dependent
        self.asked = 0

    def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
        self.asked += 1
        logits = self.logits.expand(*x.shape, -1)
        return CategoricalPosterior(self.process.subs(logits, x) if self.process.kind == "absorbing" else logits)


def uniform_grid(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def joint(kind: CategoricalKind = "absorbing", classes: int = 3, length: int = 4) -> JointDenoiser:
    logits = torch.randn((classes,) * length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return JointDenoiser(logits.flatten().softmax(0).reshape(logits.shape), CategoricalProcess(kind, classes))


def run(denoiser: Denoiser, items: range, length: int, steps: int, **options: bool) -> SampleResult:
    solver = Ancestral(**options)
    return sample(denoiser, noise=KeyedNoise(0, items), shape=(length,), solver=solver, grid=uniform_grid(steps))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_clean_tokens_and_cost_one_evaluation_per_step(kind):
    result = run(joint(kind), range(16), 4, 9)
    assert result.x.dtype == torch.int64
    assert bool(((result.x >= 0) & (result.x < 3)).all())
    assert result.nfe == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    together = run(joint(kind), range(8), 4, 6).x
    alone = torch.cat([run(joint(kind), range(i, i + 1), 4, 6).x for i in range(8)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_times_per_row_or_token_that_agree_are_shared_times(kind):
    grid = uniform_grid(5)
    noise = KeyedNoise(0, range(6))
    runs = [
        sample(joint(kind), noise=noise, shape=(4,), solver=Ancestral(), grid=times).x
        for times in (grid, grid[:, None, None].expand(-1, 6, 1), grid[:, None, None].expand(-1, 1, 4))
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_at_time_zero_never_move(kind):
    """Per-token times: the first two tokens are held at t = 0, the others walk; the trajectory shows both."""
    grid = uniform_grid(5)[:, None, None].expand(-1, 1, 4).clone()
    grid[:, :, :2] = 0
    start = torch.tensor([[2, 0, 3, 3]]) if kind != "uniform" else torch.tensor([[2, 0, 1, 1]])
    result = sample(
        joint(kind), noise=KeyedNoise(0, [0]), shape=(4,), solver=Ancestral(), grid=grid, start=start, trajectory=True
    )
    assert result.trajectory is not None
    assert bool((result.trajectory[:, :, :2] == start[:, :2]).all())


def test_a_known_token_is_a_condition():
    """The law of the other token given the known one, with a joint in which they are always equal."""
    table = torch.eye(3, dtype=torch.float64) / 3
    denoiser = JointDenoiser(table, CategoricalProcess("absorbing", 3))
    values = (torch.arange(12) % 3)[:, None].expand(12, 2)
    known = Known(values, torch.tensor([True, False]))
    x = sample(
        denoiser,
        noise=KeyedNoise(0, range(12)),
        shape=(2,),
        solver=Ancestral(),
        grid=uniform_grid(3),
        constraints=[known],
    ).x
    assert torch.equal(x, values)


def test_a_start_with_open_tokens_is_the_same_condition():
    table = torch.eye(3, dtype=torch.float64) / 3
    denoiser = JointDenoiser(table, CategoricalProcess("absorbing", 3))
    start = torch.tensor([[0, 3], [3, 1], [2, 3]])
    x = sample(
        denoiser, noise=KeyedNoise(0, range(3)), shape=(2,), solver=Ancestral(), grid=uniform_grid(3), start=start
    ).x
    assert x.tolist() == [[0, 0], [1, 1], [2, 2]]


# -- caching --------------------------------------------------------------------------------------


def test_cache_gives_identical_samples_for_fewer_evaluations():
    for steps in (2, 30):
        plain, cached = (run(joint(), range(3), 4, steps, cache=cache) for cache in (False, True))
        assert torch.equal(plain.x, cached.x)
        assert plain.nfe == steps
        assert cached.nfe <= min(steps, 3 * 4)


def test_cache_counts_what_it_asks():
    denoiser = FixedDenoiser(CategoricalProcess("absorbing", 3), [0.5, 0.3, 0.2])
    result = run(denoiser, range(1), 5, 200, cache=True)
    assert result.nfe == denoiser.asked <= 5


def test_evaluations_of_one_row_have_the_expected_number():
    """N (1 - (1 - 1/N)^L) = 6.02 for N = 12 and L = 8, within 3.9 standard errors of 400 rows (false alarms 1e-4)."""
    steps, length, rows = 12, 8, 400
    denoiser = FixedDenoiser(CategoricalProcess("absorbing", 3), [0.5, 0.3, 0.2])
    counts = torch.tensor([run(denoiser, range(i, i + 1), length, steps, cache=True).nfe for i in range(rows)]).double()
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert abs(float(counts.mean()) - expected) < 3.9 * float(counts.std()) / rows**0.5


def test_cache_asks_nothing_when_nothing_is_masked():
    denoiser = FixedDenoiser(CategoricalProcess("absorbing", 3), [0.5, 0.3, 0.2])
    start = torch.tensor([[0, 1, 2]])
    result = sample(
        denoiser,
        noise=KeyedNoise(0, [0]),
        shape=(3,),
        solver=Ancestral(cache=True),
        grid=uniform_grid(5),
        start=start,
        trajectory=True,
    )
    assert result.nfe == denoiser.asked == 0
    assert torch.equal(result.x, start)
    assert result.trajectory is not None and len(result.trajectory) == 6


def test_cache_also_serves_uniform_noise_when_the_denoiser_is_time_free():
    denoiser = FixedDenoiser(CategoricalProcess("uniform", 3), [0.5, 0.3, 0.2])
    plain, cached = (run(denoiser, range(1), 3, 60, cache=cache) for cache in (False, True))
    assert torch.equal(plain.x, cached.x) and cached.nfe < plain.nfe


def test_cache_is_refused_where_the_answer_depends_on_the_time():
    with pytest.raises(PlanError, match="depends on the time"):
        run(joint("uniform"), range(2), 4, 5, cache=True)


# -- precision ------------------------------------------------------------------------------------


def test_the_flawed_draw_must_be_asked_for_and_follows_the_same_law_where_it_is_harmless():
    """One step, no dominant mask: float32 Gumbel frequencies are within 4 standard errors of the law."""
    probs, rows = [0.5, 0.3, 0.2], 4000
    denoiser = FixedDenoiser(CategoricalProcess("absorbing", 3), probs)
    x = sample(
        denoiser,
        noise=KeyedNoise(0, range(rows)),
        shape=(5,),
        solver=Ancestral(precision="float32-gumbel"),
        grid=uniform_grid(2),
    ).x
    found = torch.bincount(x.flatten(), minlength=3) / x.numel()
    torch.testing.assert_close(found, torch.tensor(probs), rtol=0, atol=4 * 0.5 / x.numel() ** 0.5)


# -- what does not fit ----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    with pytest.raises(PlanError, match="end it at 0"):
        sample(joint(), noise=KeyedNoise(0, [0]), shape=(4,), solver=Ancestral(), grid=torch.tensor([1.0, 0.5, 0.1]))
    with pytest.raises(PlanError, match="needs a grid"):
        sample(joint(), noise=KeyedNoise(0, [0]), shape=(4,), solver=Ancestral())
    gaussian = GaussianDenoiser(torch.zeros(2), torch.eye(2), GaussianProcess(make_schedule("vp")))
    with pytest.raises(PlanError, match="categorical"):
        sample(gaussian, noise=KeyedNoise(0, [0]), shape=(2,), solver=Ancestral(), grid=uniform_grid(2))


def test_a_network_that_overflows_is_reported():
    denoiser = FixedDenoiser(CategoricalProcess("absorbing", 3), [0.5, 0.3, float("nan")])
    with pytest.raises(UndiffuseError, match="not made of data classes"):
        run(denoiser, range(2), 4, 3)

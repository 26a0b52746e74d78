"""Sampling by budget: counts, caps, exactness with one mask per call, and the tables of places by purity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.masked import binary_joint, joint_denoiser, total_variation, triple_joint
from undiffuse.denoisers.base import Wrapper
from undiffuse.errors import PlanError
from undiffuse.guidance.categorical import Sharpen
from undiffuse.noise import KeyedNoise
from undiffuse.papers.token_groups import Rule, grouped_law
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import uniform_grid
from undiffuse.process.keep import CosineKeep, VQDiffusionKeep
from undiffuse.sampling.constraints import Known, Replacement
from undiffuse.sampling.loop import SampleResult, sample
from undiffuse.sampling.token_budget import TokenBudget, choose_places, open_counts


class Recording(Wrapper):
    """Remembers what it was asked."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        self.asked: list[tuple[Any, Tensor]] = []

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Any:
        self.asked.append((t, x))
        return self.denoiser(x, t, cond)


def run(denoiser: Any, steps: int = 3, items: range = range(5), **options: Any) -> SampleResult:
    given = {name: options.pop(name) for name in ("tokens_per_call", "positions") if name in options}
    grid = options.pop("grid", uniform_grid(steps))
    length = getattr(denoiser, "length", None) or denoiser.denoiser.length
    return sample(
        denoiser, noise=KeyedNoise(0, items), shape=(length,), solver=TokenBudget(**given), grid=grid, **options
    )


def test_counts_follow_the_schedule_and_add_up() -> None:
    released = CategoricalProcess("mask-replace", 5, VQDiffusionKeep())
    counts = torch.stack(open_counts(released, torch.tensor([1024, 700, 0]), uniform_grid(100)))
    assert counts.sum(0).tolist() == [1024, 700, 0]
    # the published table of 100 steps: 10 or 11 of 1024 in each, and none at the last index, which is almost clean
    assert set(counts[:-1, 0].tolist()) == {10, 11} and int(counts[-1, 0]) == 0
    cosine = CategoricalProcess("absorbing", 5, CosineKeep())
    falling = torch.stack(open_counts(cosine, torch.tensor([64]), uniform_grid(8)))[:, 0]
    left = 64 - falling.cumsum(0)
    exact = 64 * torch.sin(torch.pi / 2 * uniform_grid(8)[1:])
    assert bool(((left - exact).abs() <= 0.5).all())


def test_calls_open_at_most_the_cap_at_the_time_of_their_step() -> None:
    joint = Recording(joint_denoiser(binary_joint()))
    result = run(joint, 2, range(1), tokens_per_call=2)
    assert [t for t, _ in joint.asked] == [1.0, 1.0, 0.5, 0.5]  # three of six in each step: 2 + 1
    assert [int((x == 2).sum()) for _, x in joint.asked] == [6, 4, 3, 1]
    assert result.nfe == 4
    assert run(joint_denoiser(binary_joint()), 2).nfe == 2


@pytest.mark.parametrize("kind", ["absorbing", "mask-replace"])
@pytest.mark.parametrize("positions", ["random", "purity"])
def test_rows_do_not_depend_on_their_batch_and_known_tokens_stay(kind: Any, positions: str) -> None:
    denoiser = joint_denoiser(binary_joint(), kind)
    start = torch.tensor([[2] * 6, [1, 2, 0, 2, 2, 2], [0, 1, 0, 1, 0, 1], [1, 2, 2, 2, 2, 2]])
    known = Known(start.clamp(max=1), start < 2)
    options = {"tokens_per_call": 2, "positions": positions, "start": start}
    together = run(denoiser, 2, range(4), constraints=[known], **options)
    assert torch.equal(together.x[start < 2], start[start < 2]) and bool((together.x < 2).all())
    for row in range(4):
        options["start"] = start[row : row + 1]
        mine = Known(start[row : row + 1].clamp(max=1), start[row : row + 1] < 2)
        alone = run(denoiser, 2, range(row, row + 1), constraints=[mine], **options)
        assert torch.equal(alone.x[0], together.x[row])
    mine = Known(start[2:3].clamp(max=1), start[2:3] < 2)
    done = run(denoiser, 2, range(1), start=start[2:3], constraints=[mine])
    assert done.nfe == (0 if kind == "absorbing" else 2)


def test_the_trajectory_has_a_state_at_every_time_also_where_nothing_opens() -> None:
    result = run(joint_denoiser(triple_joint()), 10, range(4), trajectory=True)
    assert result.trajectory is not None and len(result.trajectory) == 11
    assert (result.trajectory == 3).sum((1, 2)).tolist() == [12, 12, 8, 8, 8, 8, 4, 4, 4, 0, 0]  # round(3 t) per row
    assert result.nfe == 3


def test_times_per_item_are_those_of_each() -> None:
    denoiser = joint_denoiser(binary_joint(), "mask-replace")
    grid = uniform_grid(3)
    both = run(denoiser, items=range(2), grid=grid[:, None, None].expand(-1, 2, 1).contiguous())
    assert torch.equal(both.x, run(denoiser, items=range(2), grid=grid).x)


def test_places_are_drawn_without_replacement_in_proportion_to_their_weights() -> None:
    """First and second place of many rows against the law of successive draws: 4 standard errors (false alarm 1e-3)."""
    n, weight = 40_000, torch.tensor([0.5, 0.3, 0.2, 0.7], dtype=torch.float64)
    masks = torch.tensor([True, True, True, False]).expand(n, 4)
    uniform = KeyedNoise(0, range(n)).uniform("order", 0, (4,))
    one, two = (choose_places(masks, torch.full((n, 1), k), uniform, weight.expand(n, 4)) for k in (1, 2))
    assert int(one.sum()) == n and int(two.sum()) == 2 * n and bool((two >= one).all()) and not bool(two[:, 3].any())
    p = weight[:3]
    second = torch.stack([sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)])  # type: ignore[misc]
    for found, expected in ((one, p), (two, p + second)):
        error = (expected * (1 - expected) / n).sqrt()
        assert bool(((found[:, :3].double().mean(0) - expected).abs() < 4 * error).all())
    assert int(choose_places(masks, torch.full((n, 1), 9), uniform).sum()) == 3 * n


@pytest.mark.parametrize("positions", ["random", "purity"])
def test_one_mask_per_call_is_exact_whatever_the_places(positions: str) -> None:
    """40,000 samples of 27 sequences: the mean TV of an exact sampler is below sqrt(27 / (2 pi n)) = .0104."""
    n, denoiser = 40_000, joint_denoiser(triple_joint())
    x = run(denoiser, 1, range(n), tokens_per_call=1, positions=positions).x
    found = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / n
    assert total_variation(found, denoiser.table.flatten()) < 1.5 * 0.0104


@pytest.mark.parametrize(
    ("table", "groups", "published"),
    [
        (triple_joint(), (2, 1), (0.1155, 0.1171, 0.1873)),
        (binary_joint(), (2, 2, 2), (0.1014, 0.1016, 0.2153)),
        (binary_joint(), (3, 3), (0.1838, 0.1836, 0.2007)),
    ],
)
def test_places_by_purity_gain_nothing_with_the_right_model(
    table: Tensor, groups: tuple[int, ...], published: tuple[float, ...]
) -> None:
    """Exact, without sampling: the published errors of groups of several, at random, by purity, and greedily."""
    denoiser = joint_denoiser(table)
    rules: tuple[Rule, ...] = ("random", "purity", "greedy")
    for rule, expected in zip(rules, published, strict=True):
        law = grouped_law(denoiser, groups, rule)
        assert total_variation(law, table) == pytest.approx(expected, abs=6e-5)


def test_the_solver_s_own_groups_have_the_published_error() -> None:
    """Two steps of the triple joint open 2 + 1 (round(1.5) = 2 are left to 1): sampled TV near the exact law's."""
    n, denoiser = 40_000, joint_denoiser(triple_joint())
    x = run(denoiser, grid=torch.tensor([1.0, 0.4, 0.0]), items=range(n), positions="purity").x
    found = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / n
    law = grouped_law(denoiser, (2, 1), "purity").flatten()
    assert total_variation(found, law) < 1.5 * 0.0104 < total_variation(found, denoiser.table.flatten())


def test_places_go_by_the_purity_before_sharpening() -> None:
    denoiser = joint_denoiser(binary_joint())
    plain = run(denoiser, 3, range(64), positions="purity", trajectory=True)
    sharp = run(Sharpen(denoiser, 3.0), 3, range(64), positions="purity", trajectory=True)
    assert plain.trajectory is not None and sharp.trajectory is not None
    assert torch.equal(plain.trajectory[1] == 2, sharp.trajectory[1] == 2)  # the same places, other tokens
    assert not torch.equal(plain.trajectory[1], sharp.trajectory[1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="none"):
        run(joint_denoiser(triple_joint(), "uniform"))
    with pytest.raises(PlanError, match="end it at 0"):
        run(joint_denoiser(triple_joint()), grid=torch.tensor([1.0, 0.5]))
    with pytest.raises(PlanError, match="share one time"):
        run(joint_denoiser(triple_joint()), grid=uniform_grid(2)[:, None, None].expand(-1, 1, 3).contiguous())
    with pytest.raises(PlanError, match="needs a grid"):
        run(joint_denoiser(triple_joint()), grid=None)
    process = CategoricalProcess("mask-replace", 3)
    with pytest.raises(PlanError, match="Replacement masks known tokens anew"):
        run(
            joint_denoiser(triple_joint(), process.kind),
            constraints=[Replacement(process, torch.tensor([0, 0, 0]), torch.tensor([True, False, False]))],
        )
    with pytest.raises(ValueError, match="at least 1"):
        TokenBudget(tokens_per_call=0)
    with pytest.raises(ValueError, match="random or purity"):
        TokenBudget(positions="greedy")  # type: ignore[arg-type]

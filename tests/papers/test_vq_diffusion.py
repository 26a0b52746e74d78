"""The reproduction of VQ-Diffusion: its exact parts, the released sampler, and a whole run of a few steps."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.masked import joint_denoiser, total_variation, triple_joint
from undiffuse.noise import KeyedNoise
from undiffuse.papers import vq_diffusion
from undiffuse.papers.published_strides import PublishedStrides, called_levels
from undiffuse.papers.vq_speed import long_grids
from undiffuse.process.grids import uniform_grid
from undiffuse.sampling.ancestral import Ancestral
from undiffuse.sampling.loop import sample


def test_the_exact_tables_are_those_of_the_first_enumeration() -> None:
    for part in (vq_diffusion.noise(True), vq_diffusion.strides(), vq_diffusion.purity(True)):
        assert part.measures and all(measure.met is not False for measure in part.measures), part.title


def test_the_released_sampler_calls_the_levels_that_it_calls() -> None:
    """As its loop does: range(99, -1, -10) and then 0; from the law at level i - skip while i > skip."""
    assert called_levels(100, 9) == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9, 0]
    assert called_levels(100, 1)[:3] == [99, 97, 95] and len(called_levels(100, 1)) == 51
    assert PublishedStrides(skip=9).laws() == [91, 81, 71, 61, 51, 41, 31, 21, 11, 10, 1]


def test_without_skipping_it_is_the_ancestral_sampler_and_with_it_is_worse() -> None:
    """Sampled total variations on the triple joint: an exact sampler is at .029 for 5000 samples."""
    n, denoiser = 5000, joint_denoiser(triple_joint(), "mask-replace")
    noise = KeyedNoise(0, range(n))

    def run(solver: Ancestral, steps: int) -> torch.Tensor:
        x = sample(denoiser, noise=noise, shape=(3,), solver=solver, grid=uniform_grid(steps)).x
        return torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / n

    plain = run(Ancestral(), 12)
    assert torch.equal(run(PublishedStrides(levels=12, skip=0), 12), plain)
    table = denoiser.table.flatten()
    strided, released = run(Ancestral(), 10), run(PublishedStrides(skip=9), 10)  # 10 calls and 11
    assert total_variation(released, table) > 2 * total_variation(strided, table)


def test_speed_is_measured_for_both_models() -> None:
    part = long_grids(True)
    assert len(part.measures) == 2 and all(measure.value and measure.value > 0 for measure in part.measures)


@pytest.mark.slow
def test_a_whole_run_of_a_few_steps() -> None:
    study = vq_diffusion.reproduce(quick=True)
    assert [part.title for part in study.parts][3:6] == [
        "A trained model: steps",
        "A trained model: quality and variety",
        "The autoregressive baseline",
    ]
    trades = study.parts[4]
    assert len(trades.rows) == 11 and trades.figure is not None
    assert [row[1] for row in trades.rows[:2]] == ["25", "50"]  # guidance doubles the calls

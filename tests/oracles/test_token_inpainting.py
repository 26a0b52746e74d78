"""Completion of tokens against the enumerated joint: how far each way is from the exact conditional, and the sampler
against the matrices that say so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.noise import KeyedNoise
from undiffuse.papers.token_chains import (
    conditional,
    opening_law,
    small_joint,
    token_chain,
    total_variation,
)
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.grids import known as known_grid
from undiffuse.process.grids import uniform_grid
from undiffuse.sampling.ancestral import Ancestral
from undiffuse.sampling.constraints import Constraint, Known, Replacement
from undiffuse.sampling.first_hitting import FirstHitting
from undiffuse.sampling.loop import sample
from undiffuse.sampling.resampling import Resampled

PATTERNS: tuple[dict[int, int], ...] = ({0: 0}, {1: 1}, {2: 2}, {0: 0, 1: 1}, {0: 2, 2: 0}, {1: 0, 2: 2})
TABLE: dict[tuple[CategoricalKind, int], tuple[float, ...]] = {  # total variation at N = 64, vq-ddm spec, section 5
    ("uniform", 1): (0.140, 0.248, 0.135, 0.200, 0.221, 0.100),
    ("uniform", 4): (0.068, 0.122, 0.066, 0.120, 0.112, 0.056),
    ("uniform", 16): (0.032, 0.067, 0.036, 0.067, 0.054, 0.035),
    ("absorbing", 1): (0.143, 0.226, 0.140, 0.173, 0.212, 0.099),
    ("absorbing", 4): (0.065, 0.101, 0.061, 0.080, 0.093, 0.045),
    ("absorbing", 16): (0.027, 0.045, 0.024, 0.031, 0.035, 0.018),
}
HALF_DIGIT = 5.1e-4  # of the table


def exact(kind: CategoricalKind, table: Tensor | None = None) -> JointDenoiser:
    return JointDenoiser(small_joint() if table is None else table, CategoricalProcess(kind, 3))


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
def test_the_bias_of_replacement_is_that_of_the_table_and_falls_with_the_passes(kind):
    denoiser = exact(kind)
    for column, pattern in enumerate(PATTERNS):
        chain, truth = token_chain(denoiser, 3, 64, pattern), conditional(denoiser.table, pattern)
        for passes in (1, 4, 16):
            assert total_variation(chain.law(passes), truth) == pytest.approx(
                TABLE[kind, passes][column], abs=HALF_DIGIT
            )


def test_the_bias_does_not_fall_with_the_steps():
    for kind, expected in (("uniform", (0.148, 0.140, 0.138)), ("absorbing", (0.147, 0.143, 0.142))):
        denoiser = exact(kind)
        truth = conditional(denoiser.table, {0: 0})
        found = [total_variation(token_chain(denoiser, 3, steps, {0: 0}).law(), truth) for steps in (16, 64, 256)]
        assert found == pytest.approx(expected, abs=HALF_DIGIT)


def test_given_tokens_leave_the_error_of_the_chain_alone_where_the_process_is_absorbing():
    denoiser = exact("absorbing")
    truth = conditional(denoiser.table, {0: 0})
    found = [total_variation(token_chain(denoiser, 3, n, {0: 0}, "clamp").law(), truth) for n in (8, 64, 128)]
    assert found == pytest.approx((0.0255, 0.0032, 0.0016), abs=5.1e-5)
    for pattern in PATTERNS:
        assert total_variation(opening_law(denoiser, pattern), conditional(denoiser.table, pattern)) < 1e-12


@pytest.mark.parametrize(("kind", "biased"), [("uniform", 0.1002), ("mask-replace", 0.0435), ("absorbing", 0.0032)])
def test_given_tokens_are_exact_for_any_process_where_they_have_times_of_0(kind, biased):
    """With one time for all, a clean token may have been replaced, and the denoiser takes it so."""
    denoiser = exact(kind)
    truth = conditional(denoiser.table, {0: 0})
    shared = total_variation(token_chain(denoiser, 3, 64, {0: 0}, "clamp").law(), truth)
    own = total_variation(token_chain(denoiser, 3, 64, {0: 0}, "clamp at 0").law(), truth)
    assert shared == pytest.approx(biased, abs=5.1e-5)
    assert own < 0.0041  # 1 / N of the chain: twice as good at twice the steps
    assert total_variation(token_chain(denoiser, 3, 128, {0: 0}, "clamp at 0").law(), truth) < 0.55 * own


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "mask-replace"])
def test_replacement_is_exact_where_tokens_are_independent(kind):
    single = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    table = single[:, None, None] * single.flip(0)[:, None] * single
    denoiser = exact(kind, table)
    for passes in (1, 3):
        law = token_chain(denoiser, 3, 8, {1: 2}).law(passes)
        assert total_variation(law, conditional(table, {1: 2})) < 1e-12


ROWS = 40_000


def drawn(
    denoiser: JointDenoiser, constraints: list[Constraint], steps: int, passes: int = 1, **options: Any
) -> Tensor:
    return sample(
        denoiser,
        noise=KeyedNoise(3, range(ROWS)),
        shape=(3,),
        solver=Resampled(solver=Ancestral(), passes=passes),
        grid=options.pop("grid", uniform_grid(steps)),
        constraints=constraints,
        **options,
    ).x


def standard_error(law: Tensor) -> Tensor:
    return (law * (1 - law) / ROWS).sqrt()


def assert_law(x: Tensor, law: Tensor) -> None:
    """Frequencies of pairs (3, 3) within 5 standard errors: a false alarm in 2e5 runs of 9 cells."""
    found = torch.zeros(9, dtype=torch.float64).index_add_(0, 3 * x[:, 0] + x[:, 1], torch.ones(len(x)).double())
    assert bool(((found.view(3, 3) / len(x) - law).abs() < 5 * standard_error(law) + 1e-9).all())


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "mask-replace"])
def test_the_sampler_draws_from_the_law_of_the_matrices(kind):
    denoiser, values, mask = exact(kind), torch.tensor([0, 1, 0]), torch.tensor([False, True, False])
    rule = Replacement(denoiser.process, values, mask)
    chain = token_chain(denoiser, 3, 6, {1: 1})
    x = drawn(denoiser, [rule], 6, passes=5)
    assert bool((x[:, 1] == 1).all())
    assert_law(x[:, ::2], chain.law(5))
    away = (chain.law(5) - chain.law(1)).abs() / standard_error(chain.law(5))
    assert away.max() > 7.5  # so that the test would see passes that are missing
    if kind == "absorbing":
        assert_law(
            drawn(denoiser, [Known(values, mask)], 4)[:, ::2], token_chain(denoiser, 3, 4, {1: 1}, "clamp").law()
        )
    else:
        x = drawn(denoiser, [Known(values, mask)], 4, grid=known_grid(uniform_grid(4), 3, [1]))
        assert_law(x[:, ::2], token_chain(denoiser, 3, 4, {1: 1}, "clamp at 0").law())


def test_given_tokens_and_first_hitting_draw_the_conditional():
    denoiser = exact("absorbing")
    rule = Known(torch.tensor([2, 0, 0]), torch.tensor([True, False, False]))
    noise = KeyedNoise(0, range(ROWS))
    result = sample(denoiser, noise=noise, shape=(3,), solver=FirstHitting(), constraints=[rule])
    assert result.nfe == 2
    assert_law(result.x[:, 1:], conditional(denoiser.table, {0: 2}))

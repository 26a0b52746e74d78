"""Columns with values of their own: every law is, position by position, that of a process with K_l classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess

BLOCKS = (3, 1, 4, 2)
TOTAL = sum(BLOCKS)
KINDS = ("absorbing", "uniform", "mask-replace")
ROWS = 200


@pytest.fixture(params=KINDS)
def process(request: pytest.FixtureRequest) -> CategoricalProcess:
    return CategoricalProcess(request.param, TOTAL, blocks=BLOCKS)


def column(process: CategoricalProcess, position: int) -> tuple[CategoricalProcess, slice]:
    """Return the process of one column alone, and where its ids lie."""
    first = sum(BLOCKS[:position])
    alone = CategoricalProcess(process.kind, BLOCKS[position], process.keep, process.mask_share)
    return alone, slice(first, first + BLOCKS[position])


def to_column(x: Tensor, ids: slice) -> Tensor:
    """Number the ids (B,) of a column from 0, its mask K_l."""
    return torch.where(x == TOTAL, ids.stop - ids.start, x - ids.start)


def rows() -> Tensor:
    noise = KeyedNoise(0, range(ROWS)).uniform("data", 0, (len(BLOCKS),))
    sizes = torch.tensor(BLOCKS)
    return sizes.cumsum(0) - sizes + (noise * sizes).long()


def uniforms(step: int) -> Tensor:
    return KeyedNoise(1, range(ROWS)).uniform("data", step, (len(BLOCKS),))


def posterior(x: Tensor) -> Tensor:
    """Random probabilities (B, L, K) within the blocks."""
    logits = KeyedNoise(2, range(len(x))).normal("data", 0, (len(BLOCKS), TOTAL), torch.float64)
    return CategoricalProcess("uniform", TOTAL, blocks=BLOCKS).within_blocks(logits).softmax(-1)


def test_noise_stays_in_its_column(process: CategoricalProcess) -> None:
    x0, drawn = rows(), uniforms(0)
    x_t = process.corrupt(x0, 0.7, drawn)
    x_s = process.renoise(x_t, 0.7, 0.9, uniforms(1))
    start = process.prior(uniforms(2))
    for position in range(len(BLOCKS)):
        alone, ids = column(process, position)
        own = alone.corrupt(to_column(x0[:, position], ids)[:, None], 0.7, drawn[:, position : position + 1])
        assert torch.equal(to_column(x_t[:, position], ids), own[:, 0])
        again = alone.renoise(own, 0.7, 0.9, uniforms(1)[:, position : position + 1])
        assert torch.equal(to_column(x_s[:, position], ids), again[:, 0])
        prior = alone.prior(uniforms(2)[:, position : position + 1])
        assert torch.equal(to_column(start[:, position], ids), prior[:, 0])


def test_laws_are_those_of_each_column_alone(process: CategoricalProcess) -> None:
    x0 = rows()
    x_t = process.corrupt(x0, 0.6, uniforms(0))
    probs = posterior(x0)
    laws = {
        "likelihood": process.likelihood(x_t, 0.6),
        "marginal": process.marginal(probs, 0.6),
        "reverse": process.reverse(x_t, probs, 0.6, 0.2),
    }
    for position in range(len(BLOCKS)):
        alone, ids = column(process, position)
        own, own_probs = to_column(x_t[:, position], ids)[:, None], probs[:, position : position + 1, ids]
        expected = {
            "likelihood": alone.likelihood(own, 0.6),
            "marginal": alone.marginal(own_probs, 0.6),
            "reverse": alone.reverse(own, own_probs, 0.6, 0.2),
        }
        for name, law in laws.items():
            here = law[:, position]
            kept = torch.cat((here[:, ids], here[:, TOTAL:]), -1)
            torch.testing.assert_close(kept, expected[name][:, 0], msg=name)
            if name != "likelihood":  # what a mask says about ids that the column lacks does not matter
                assert float(kept.sum(-1).sub(1).abs().max()) < 1e-12


def test_matrices_are_those_of_each_column(process: CategoricalProcess) -> None:
    for position in range(len(BLOCKS)):
        alone, ids = column(process, position)
        states = [*range(ids.start, ids.stop), *range(TOTAL, process.states)]
        matrix = process.transition_matrix(0.8, 0.3, position)[states][:, states]
        torch.testing.assert_close(matrix, alone.transition_matrix(0.8, 0.3))


def test_logits_outside_of_the_column_are_ruled_out() -> None:
    process = CategoricalProcess("absorbing", TOTAL, blocks=BLOCKS)
    masks = torch.full((2, len(BLOCKS)), TOTAL)
    logits = process.subs(torch.zeros(2, len(BLOCKS), TOTAL + 1), masks)
    assert (logits.isfinite().sum(-1) == torch.tensor(BLOCKS)).all()
    assert float(logits[0, 0, 3]) == -math.inf


def test_one_block_for_all_is_the_plain_process() -> None:
    kind: CategoricalKind = "mask-replace"
    plain = CategoricalProcess(kind, 5)
    same = CategoricalProcess(kind, 5, blocks=(5,))
    x0 = torch.arange(5)[:, None]
    uniform = KeyedNoise(0, range(5)).uniform("data", 0, (1,))
    assert torch.equal(plain.corrupt(x0, 0.5, uniform), same.corrupt(x0, 0.5, uniform))


@pytest.mark.parametrize("blocks", [(3, 3), (10, 0), (-1, 11)])
def test_blocks_must_add_up(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="add up"):
        CategoricalProcess("absorbing", TOTAL, blocks=blocks)

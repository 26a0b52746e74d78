"""CKA: invariances, two routes to one number, and the unbiased estimator against its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.networks.helpers import generator
from undiffuse.analysis.similarity import cka, compare_layers
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.process import make_schedule
from undiffuse.process.gaussian import GaussianProcess


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotations_scales_and_shifts_change_nothing(unbiased: bool):
    x, y = normal(30, 6), normal(30, 4, seed=1)
    turn = torch.linalg.qr(normal(6, 6, seed=2))[0]
    assert cka(x, 3 * x @ turn + 5, unbiased=unbiased) == pytest.approx(1, abs=1e-10)
    assert cka(x, y, unbiased=unbiased) == pytest.approx(cka(y, x - 2, unbiased=unbiased), abs=1e-10)
    assert 0 <= cka(x, y) <= 1


def test_orthogonal_representations_have_nothing_in_common():
    basis = torch.linalg.qr(torch.cat([torch.ones(12, 1, dtype=torch.float64), normal(12, 6)], 1))[0][:, 1:]  # centred
    assert cka(basis[:, :3], basis[:, 3:]) == pytest.approx(0, abs=1e-12)


def test_features_and_gram_matrices_give_one_number():
    x, y = normal(20, 5), normal(20, 5, seed=1)
    wide = torch.cat([x, torch.zeros(20, 40, dtype=torch.float64)], 1)  # more features than items: by Gram matrices
    assert cka(wide, y) == pytest.approx(cka(x, y), abs=1e-8)


def test_the_unbiased_estimator_is_the_average_over_quadruples():
    x, y = normal(6, 3), normal(6, 2, seed=1)
    k, other = x @ x.T, y @ y.T

    def hsic(a: Tensor, b: Tensor) -> float:  # E[a_ij (b_ij + b_qr - 2 b_iq)] over four different items
        rows = [
            float(a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q])) for i, j, q, r in itertools.permutations(range(6), 4)
        ]
        return sum(rows) / len(rows)

    expected = hsic(k, other) / (hsic(k, k) * hsic(other, other)) ** 0.5
    assert cka(x, y, unbiased=True) == pytest.approx(expected, abs=1e-10)


def test_many_features_of_few_items_fool_the_biased_estimator_alone():
    x, y = normal(24, 400), normal(24, 400, seed=1)  # independent
    assert cka(x, y) > 0.9
    assert abs(cka(x, y, unbiased=True)) < 0.15
    batches = cka(x, y, unbiased=True, minibatch=8)
    assert abs(batches) < 0.2
    assert cka(x, x, unbiased=True, minibatch=8) == pytest.approx(1)
    assert cka(x, y, unbiased=True, minibatch=24) == pytest.approx(cka(x, y, unbiased=True))


def test_layers_are_compared_on_the_same_items_and_noise():
    process = GaussianProcess(make_schedule("cosine"))
    oracle = MixtureDenoiser(torch.ones(2), torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), torch.ones(2), process)
    found = compare_layers(oracle, None, normal(40, 2).float(), t=[0.1, 0.5], layers="all")
    assert found.first == ("mean@0.1", "responsibilities@0.1", "mean@0.5", "responsibilities@0.5")
    torch.testing.assert_close(found.values, found.values.T)
    torch.testing.assert_close(found.values.diagonal(), torch.ones(4, dtype=torch.float64))
    x = normal(40, 2).float()
    mixed = compare_layers(oracle, None, x, layers="mean", t=0.1, other_x=x.flip(0))  # read by the second alone
    assert mixed.values.item() < 0.5
    later = compare_layers(oracle, oracle, normal(40, 2).float(), layers="mean", t=0.1, other_t=0.5)
    assert later.values.item() == pytest.approx(float(found.values[0, 2]), abs=1e-6)
    assert later.to_json()["other_t"] == [0.5] and len(later.table()[0]) == len(later.columns) == 2


def test_what_has_no_answer_is_refused():
    x = normal(6, 2)
    for message, arguments in (
        ("same items", (x, x[:5])),
        ("does not vary", (x, torch.ones(6, 2))),
        ("not finite", (x, x * torch.nan)),
        ("too few", (x[:1], x[:1])),
    ):
        with pytest.raises(ValueError, match=message):
            cka(*arguments)
    with pytest.raises(ValueError, match="use unbiased=True"):
        cka(x, x, minibatch=3)
    with pytest.raises(ValueError, match="3 items are too few"):
        cka(x, x, unbiased=True, minibatch=3)

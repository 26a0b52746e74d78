"""Classes of token models against their exact likelihoods (spec, check 9)."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.tasks.classify.oracles import TokenClasses, token_model
from undiffuse.noise import KeyedNoise
from undiffuse.tasks.classify import classify, error_table
from undiffuse.tasks.classify.candidates import PairConditions
from undiffuse.tasks.classify.measure import TokenMeasure
from undiffuse.tasks.classify.options import ErrorOptions

TOKENS = (KeyedNoise(5, range(12)).uniform("data", 0, (6,)) * 4).long()


@pytest.mark.parametrize("kind", ["absorbing", "uniform", "mask-replace"])
def test_the_bound_of_exact_posteriors_is_the_log_likelihood(kind: str) -> None:
    """To 5 standard errors of the draws (stratified, so on the careful side), differences to those of paired ones."""
    model = token_model(kind)
    table = error_table(model, TOKENS, times=100)
    exact = model.denoiser.log_prob(TOKENS)  # type: ignore[operator]
    found = 6 * table.scores()
    error = 6 * table.errors.double().std(-1) / 100**0.5
    assert bool(((found - exact).abs() < 5 * error).all())
    apart = table.errors.double() - table.errors[:, :1].double()
    paired = 6 * apart.std(-1) / 100**0.5
    assert bool((((found - found[:, :1]) - (exact - exact[:, :1])).abs() <= 5 * paired).all())
    assert bool((error[:, 1:].mean() > paired[:, 1:].mean()) | (kind == "absorbing"))


def test_the_mean_over_all_mask_sets_is_exact() -> None:
    """Each set of n masks weighs 1 / n times the share of its size: all orders of 4 positions, all 4 levels."""
    model = token_model("absorbing", length=4)
    denoiser, tokens = model.denoiser, TOKENS[:, :4]
    assert isinstance(denoiser, TokenClasses)
    conditions = PairConditions(denoiser, {"label": torch.arange(3)}, {}, False)  # type: ignore[arg-type]
    measure = TokenMeasure(denoiser, tokens, conditions, ErrorOptions(), 4)
    items, classes = (part.flatten() for part in torch.meshgrid(torch.arange(12), torch.arange(3), indexing="ij"))
    orders = [order for order in product(range(4), repeat=4) if len(set(order)) == 4]
    total = torch.zeros(36, dtype=torch.float64)
    for order in orders:
        uniforms = (torch.tensor(order).double()[None] + 0.5) / 4
        measure._order = lambda time, device, u=uniforms: u  # type: ignore[method-assign, misc]
        for time in range(4):
            total += measure._errors(time, items, classes)
    found = -4 * total.view(12, 3) / (4 * len(orders))
    torch.testing.assert_close(found, denoiser.log_prob(tokens), rtol=1e-7, atol=0)  # weights are float32


def test_masks_are_shared_and_rounds_promise_what_they_cost() -> None:
    model = token_model("absorbing")
    found = classify(model, TOKENS, times=(10, 40), keep=(2, 1), batch_size=5)
    assert found.nfe == found.promised == 3 * 10 + 2 * 30
    again = error_table(model, TOKENS.flip(0), [2, 0, 1], times=40)
    known = ~found.table.errors.isnan()
    other = again.errors.flip(0)[:, [1, 2, 0]]
    torch.testing.assert_close(found.table.errors[known], other[known])
    exact = model.denoiser.log_prob(TOKENS).softmax(1)  # type: ignore[operator]
    assert float((found.probabilities() - exact).abs().mean()) < 0.1
    assert found.table.target == "tokens" and torch.equal(found.table.weights("elbo"), found.table.weights())


@pytest.mark.parametrize("options", [{"loss": "l1"}, {"antithetic": True}, {"between": (0.1, 0.9)}, {"target": "x0"}])
def test_what_is_for_continuous_data_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is for continuous data"):
        error_table(token_model("absorbing"), TOKENS, times=4, **options)  # type: ignore[arg-type]

"""Items between two others: the ends, the law of the mix, and what is refused."""

from __future__ import annotations

import pytest
import torch

import undiffuse as ud
from tests.tasks.test_completion import LETTERS, assert_close, letters, pictures, shares
from undiffuse.denoisers.causal import CausalDenoiser
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.models import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import TransformerOptions
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess

DRAWN = 20_000  # as `assert_close` has it
PARTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_without_noise_the_ends_are_the_items_and_what_is_between_changes_token_by_token(kind):
    a, b = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    mixed = ud.interpolate(letters(kind), a, b, [0.0, 0.25, 0.5, 1.0], start=0.0, samples=DRAWN)
    assert mixed.shape == (4, DRAWN, 3)
    assert bool((mixed[0] == a).all()) and bool((mixed[-1] == b).all())
    gone = mixed == b
    assert bool((gone[1:] >= gone[:-1]).all())  # none comes back
    for number, share in ((1, 0.25), (2, 0.5)):  # five standard errors of a share
        assert float((gone[number].double().mean(0) - share).abs().max()) < 5 * (share * (1 - share) / DRAWN) ** 0.5


def independent(kind: CategoricalKind) -> Model:
    """Three letters that know nothing of each other, so that chains are exact in any number of steps."""
    table = torch.einsum("i,j,k->ijk", PARTS, PARTS.flip(0), PARTS)
    return Model(JointDenoiser(table, CategoricalProcess(kind, 3), spec=LETTERS), LETTERS)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_the_model_draws_what_noise_took_away_from_where_the_mix_is(kind):
    """At t a letter is kept with probability 1 - t; the model's answer to what it sees then is Bayes' rule, by hand."""
    t, a, b = 0.6, torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0])
    drawn = ud.interpolate(independent(kind), a, b, 0.3, start=t, samples=DRAWN, steps=2, batch_size=DRAWN)[0]
    prior = torch.stack((PARTS, PARTS.flip(0), PARTS))
    for place in range(3):
        mixed = torch.zeros(3, dtype=torch.float64)
        mixed[a[place]] += 0.7
        mixed[b[place]] += 0.3
        if kind == "absorbing":
            law = (1 - t) * mixed + t * prior[place]
        else:
            forward = (1 - t) * torch.eye(3, dtype=torch.float64) + t / 3  # [clean, noisy]
            law = (mixed @ forward) @ ((forward * prior[place][:, None]) / (prior[place] @ forward)).T
        assert_close(shares(drawn[:, place]), law)


def test_pictures_and_short_texts_are_mixed_too():
    model = pictures("absorbing")
    x = 255 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ends = ud.interpolate(model, x[0], x[1], [0.0, 1.0], start=0.0)
    tolerance = {"rtol": 1e-5, "atol": 1e-3}  # float32 of values up to 255, in batches of another size
    torch.testing.assert_close(ends[:, 0], model.decode(model.encode(x)), **tolerance)
    whole = ud.interpolate(model, x[0], x[1], [0.2, 0.7], samples=3, steps=3, cond={"label": "x"}, seed=4)
    assert whole.shape == (2, 3, 1, 8, 8)
    parts = ud.interpolate(model, x[0], x[1], [0.2, 0.7], samples=3, steps=3, cond={"label": "x"}, seed=4, batch_size=2)
    torch.testing.assert_close(parts, whole, **tolerance)
    short = ud.interpolate(
        independent("absorbing"), "ab", "cb", 0.5, start=0.4, samples=DRAWN, batch_size=DRAWN, steps=2
    )[0]
    assert short.shape == (DRAWN, 2)
    assert_close(shares(short[:, 0]), 0.6 * torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64) + 0.4 * PARTS)


def test_what_does_not_fit_is_refused():
    process = CategoricalProcess("absorbing", 3)
    options = TransformerOptions(width=16, depth=1, heads=2, causal=True)
    causal = Model(CausalDenoiser(build_network(options, LETTERS, states=4), process, spec=LETTERS), LETTERS)
    ids = torch.tensor([0, 1, 2])
    for model, given, asked, message in (
        (causal, (ids, ids), {}, "reads from left to right"),
        (letters(), (ids, ids[:2]), {}, r"shape \(2,\)"),
        (letters(), (ids, ids + 1), {}, "states 0 to|mask"),
        (letters(), ("ab", "abc"), {}, "of one length"),
        (letters("uniform"), ("ab", "ab"), {}, "texts of 3 tokens alone"),
        (pictures(), ("ab", "ab"), {}, "the model makes image data"),
        (letters(), (ids, ids, 1.5), {}, r"numbers in \[0, 1\]"),
        (letters(), (ids, ids), {"start": -0.1}, r"start=-0\.1 must be in"),
        (letters(), (ids, ids), {"steps": 0}, "at least 1"),
        (letters(), (ids, ids), {"solver": "first-hitting"}, "sets itself"),
    ):
        with pytest.raises(ValueError, match=message):
            ud.interpolate(model, *given, **asked)

"""Categorical draws: exact ones are exact on a grid of uniforms, and the flawed one follows its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import chisquare
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.process.draw import (
    FLOAT32_GUMBEL_BOUND,
    sample_categorical,
    sample_unmasked,
    truncated_gumbel_probs,
)

FOUR = torch.tensor([0.7, 0.2, 0.09, 0.01], dtype=torch.float64)


def midpoints(cells: int) -> Tensor:
    return (torch.arange(cells, dtype=torch.float64) + 0.5) / cells


def entropy(p: Tensor) -> float:
    return float(-(p[p > 0] * p[p > 0].log()).sum())


# -- exact draws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_frequencies_are_the_weights_up_to_one_cell(scale):
    cells = 100_000
    drawn = sample_categorical((FOUR * scale).expand(cells, 4), midpoints(cells))
    found = torch.bincount(drawn, minlength=4) / cells
    torch.testing.assert_close(found.double(), FOUR, rtol=0, atol=1.01 / cells)


def test_classes_of_weight_zero_are_never_drawn():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    ends = torch.tensor([0.0, 0.5 - 2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert sample_categorical(probs.expand(4, 5), ends).tolist() == [1, 1, 3, 3]


def test_the_largest_uniform_stays_below_the_total():
    probs = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sample_categorical(probs, torch.full((2000,), 1 - 2.0**-53, dtype=torch.float64))
    assert bool((drawn == 6).all())


def test_a_rare_class_keeps_its_digits():
    """A class of 1e-12 is drawn from exactly that share of the uniforms: float32 has no number for it."""
    probs = torch.tensor([[1 - 1e-12, 1e-12]], dtype=torch.float64)
    edge = torch.tensor([1 - 1.01e-12], dtype=torch.float64)
    assert sample_categorical(probs, edge).item() == 0
    assert sample_categorical(probs, edge + 0.02e-12).item() == 1


def test_weights_without_a_law_give_no_class():
    probs = torch.tensor([[math.nan, 1.0], [0.0, 0.0]])
    assert sample_categorical(probs, torch.tensor([0.3, 0.3], dtype=torch.float64)).tolist() == [2, 2]


def test_wrong_uniforms_and_precisions_are_refused():
    with pytest.raises(TypeError, match="float64"):
        sample_categorical(FOUR[None], torch.zeros(1))
    with pytest.raises(ValueError, match="shape"):
        sample_categorical(FOUR[None], torch.zeros(1, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="shape"):
        sample_categorical(FOUR[None], torch.zeros(1, dtype=torch.float64), "float32-gumbel")
    with pytest.raises(ValueError, match="unknown"):
        sample_categorical(FOUR[None], torch.zeros(1, dtype=torch.float64), "bfloat16")  # type: ignore[arg-type]


# -- two stages -----------------------------------------------------------------------------------


def test_two_stages_draw_whether_and_then_which():
    x = torch.tensor([[0, 4, 4, 4]])
    probs = FOUR.expand(1, 4, 4)
    opens = torch.tensor([[0.0, 0.0999, 0.1, 0.05]], dtype=torch.float64)
    chooses = torch.tensor([[0.0, 0.95, 0.0, 0.995]], dtype=torch.float64)
    assert sample_unmasked(x, probs, 0.1, opens, chooses, mask_id=4).tolist() == [[0, 2, 4, 3]]
    rates = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    assert sample_unmasked(x, probs, rates, opens, chooses, mask_id=4).tolist() == [[0, 4, 0, 3]]


def test_classes_behind_a_dominant_mask_are_drawn_evenly():
    """The mask holds 1 - 1e-9 and 1000 classes share the rest: forced to open, they pass a chi-square test."""
    draws, classes = 100_000, 1000
    noise = KeyedNoise(0, [0])
    opens = noise.uniform("step", 0, (draws,)) * 1e-9  # all below the opening rate
    probs = torch.full((1, 1, classes), 1e-12, dtype=torch.float64).expand(1, draws, classes)
    x = sample_unmasked(
        torch.full((1, draws), classes), probs, 1e-9, opens, noise.uniform("class", 0, (draws,)), classes
    )
    assert chisquare(torch.bincount(x[0], minlength=classes).numpy()).pvalue > 1e-4  # false alarms: 1 in 10,000 seeds


# -- the flawed draw and its closed form ----------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (8.0, (0.7006, 0.1999, 0.0898, 0.0097)),
        (4.0, (0.7254, 0.1945, 0.0784, 0.0017)),
        (2.0, (0.8176, 0.1516, 0.0308, 0.0)),
    ],
)
def test_closed_form_gives_the_published_figures(bound, expected):
    torch.testing.assert_close(
        truncated_gumbel_probs(FOUR, bound), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-5
    )


@pytest.mark.parametrize("bound", [0.5, 2.0, 4.0, 16.6, 36.7, math.inf])
def test_closed_form_is_a_law_of_lower_temperature(bound):
    shuffled = FOUR[[2, 0, 3, 1]]
    drawn = truncated_gumbel_probs(shuffled, bound)
    assert float(drawn.sum()) == pytest.approx(1.0, abs=1e-12)
    ratio = (drawn / shuffled)[shuffled.argsort()]
    assert bool((ratio.diff() >= -1e-12).all())
    torch.testing.assert_close(drawn[[1, 3, 0, 2]], truncated_gumbel_probs(FOUR, bound), rtol=0, atol=0)


def test_closed_form_without_a_bound_is_the_law_itself():
    for p in (FOUR, torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)):
        torch.testing.assert_close(truncated_gumbel_probs(p, math.inf), p, rtol=0, atol=1e-15)


@pytest.mark.parametrize("bound", [2.0, 4.0])
def test_closed_form_is_the_integral(bound):
    c = math.exp(-bound)

    def density(v: float, n: int) -> float:
        """Class n has Gumbel number g = -log(-log u), u = v e^-c, and every other score lies below."""
        g = -math.log(-math.log(v * math.exp(-c)))
        below = [g + math.log(float(FOUR[n] / FOUR[k])) for k in range(4) if k != n]
        return math.prod(min(1.0, math.exp(-math.exp(-h) + c)) for h in below)

    found = [quad(density, 0, 1, args=(n,), limit=200)[0] for n in range(4)]
    torch.testing.assert_close(
        truncated_gumbel_probs(FOUR, bound), torch.tensor(found, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_float32_draw_follows_the_closed_form():
    """Two classes, 1 - q and q: class 1 wins only from the top of its grid, which is enumerated here."""
    q = 3e-7
    probs = torch.tensor([1 - q, q], dtype=torch.float64)
    top, cells = 400, 1000  # grid points of the rare class; u of the other class on midpoints
    rare = 1 - (torch.arange(top, dtype=torch.float64) + 0.5) * 2.0**-24
    uniform = torch.stack(torch.meshgrid(midpoints(cells), rare, indexing="ij"), dim=-1)
    wins = sample_categorical(probs.expand(cells, top, 2), uniform, "float32-gumbel").double().mean(0)
    assert wins[-1] < 0.01  # the enumeration reaches far enough down
    found = float(wins.sum()) * 2.0**-24
    assert found < 0.95 * q  # it is drawn too rarely: more often than with the bound of the topmost grid point,
    assert found > float(truncated_gumbel_probs(probs, FLOAT32_GUMBEL_BOUND)[1])
    # and, since a grid point stands for its cell, as often as with the bound half a cell above it.
    half_cell = -math.log(-math.log1p(-(2.0**-25)))
    assert found == pytest.approx(float(truncated_gumbel_probs(probs, half_cell)[1]), rel=0.01)


@pytest.mark.parametrize(
    ("classes", "steps", "published"),
    [(1000, 1000, 5.035), (1000, 10_000, 4.166), (1000, 100_000, 2.704), (50_257, 1000, 5.320)],
)
def test_float32_lowers_the_entropy_of_a_zipf_vocabulary(classes, steps, published):
    p = 1.0 / torch.arange(1, classes + 1, dtype=torch.float64)
    p = p / p.sum()
    with_mask = torch.cat((p / steps, torch.tensor([1 - 1 / steps], dtype=torch.float64)))
    drawn = truncated_gumbel_probs(with_mask, FLOAT32_GUMBEL_BOUND)[:-1]
    assert entropy(drawn / drawn.sum()) == pytest.approx(published, abs=1e-3)
    exact = truncated_gumbel_probs(with_mask, 36.7368)[:-1]  # float64: 2^-53
    assert entropy(exact / exact.sum()) == pytest.approx(entropy(p), abs=1e-4)


@pytest.mark.parametrize(("steps", "published"), [(1000, 0.946), (10_000, 0.723), (100_000, 0.418)])
def test_float32_opens_too_few_masks(steps, published):
    p = 1.0 / torch.arange(1, 1001, dtype=torch.float64)
    with_mask = torch.cat((p / p.sum() / steps, torch.tensor([1 - 1 / steps], dtype=torch.float64)))
    opened = float(truncated_gumbel_probs(with_mask, FLOAT32_GUMBEL_BOUND)[:-1].sum())
    assert opened * steps == pytest.approx(published, abs=1e-3)

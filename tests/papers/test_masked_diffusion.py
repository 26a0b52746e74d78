"""The masked-diffusion study: its closed forms reach the published figures, and its trained part runs."""

from __future__ import annotations

import pytest
import torch

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.models import Model
from undiffuse.noise import KeyedNoise
from undiffuse.papers.masked_diffusion import ancestral, budgets, reproduce, temperatures
from undiffuse.papers.told_time import MarkovChain, _excess
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.spec import DataSpec


def test_float32_draws_lower_the_temperature_as_published():
    """Zipf vocabularies of 1000 and 50257 tokens; the digits of the table."""
    part = temperatures()
    assert part.measures[0].met
    assert [row[5] for row in part.rows[:3]] == ["94.6%", "72.3%", "41.8%"]
    fitted = [float(row[6]) for row in part.rows]
    assert fitted == pytest.approx([0.97, 0.83, 0.64, 0.93, 0.83, 0.73], abs=0.0101)
    assert all(row[3] == row[2] for row in part.rows)  # float64 draws keep the entropy


@pytest.mark.slow
def test_exact_tables_reach_what_is_expected():
    for part in (ancestral(), budgets()):
        assert all(measure.met for measure in part.measures), part.title


@pytest.mark.slow
def test_the_whole_study_runs():
    study = reproduce(quick=True)
    parts = {part.title: part for part in study.parts}
    assert len(parts) == 8 and parts["Training"].rows[-1][0] == "interpolated 5-gram"
    samplers = parts["First-hitting and ancestral sampling of a text"]
    calls = {row[0]: int(row[1]) for row in samplers.rows}
    assert calls["first-hitting, 128 calls"] == 128 and calls["left to right"] == 128
    assert samplers.measures[-1].value == 0.0  # the cache changes no token
    assert [row[0] for row in parts["Told the time or not"].rows] == [
        "without time",
        "told the time",
        "without time and count",
        "without time, count, gates",
        "D3PM, without carry-over",
        "the chain",
    ]


def test_the_chain_of_the_comparison_is_what_it_says():
    """All 3^4 sequences: probabilities that sum to 1, their entropy, and frequencies of draws within 5 errors."""
    chain, length = MarkovChain.drawn(3), 4
    x = torch.cartesian_prod(*[torch.arange(3)] * length)
    log_p = chain.log_p(x)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert chain.entropy(length) == pytest.approx(-float((log_p.exp() * log_p).sum()), abs=1e-12)
    rows = chain.rows(KeyedNoise(0, range(20_000)).uniform("data", 0, (length,)))
    law = log_p.exp()
    found = torch.bincount((rows * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double() / len(rows)
    assert bool(((found - law).abs() < 5 * (law * (1 - law) / len(rows)).sqrt() + 1e-12).all())


def test_the_excess_of_the_exact_denoiser_is_zero():
    """A consistent denoiser has -log p for its mean bound, so what is left is the noise of the masks."""
    chain = MarkovChain.drawn(3)
    table = chain.log_p(torch.cartesian_prod(*[torch.arange(3)] * 3)).exp().view(3, 3, 3)
    spec = DataSpec(kind="tokens", shape=(3,), vocabulary=tuple("abc"))
    model = Model(JointDenoiser(table, CategoricalProcess("absorbing", 3), spec=spec), spec)
    x = chain.rows(KeyedNoise(0, range(2000)).uniform("data", 0, (3,)))
    excess = _excess(model, chain, x)
    assert abs(float(excess.mean())) < 4 * float(excess.std()) / len(x) ** 0.5 + 1e-9


def test_data_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="is no text"):
        reproduce(quick=True, data="moons")

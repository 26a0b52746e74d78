"""The masked-diffusion study: its closed forms reach the published figures, and its trained part runs."""

from __future__ import annotations

import pytest

from undiffuse.papers.masked_diffusion import ancestral, budgets, reproduce, temperatures


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
    assert len(study.parts) == 7 and study.parts[3].rows[-1][0] == "interpolated 5-gram"
    calls = {row[0]: int(row[1]) for row in study.parts[4].rows}
    assert calls["first-hitting, 128 calls"] == 128 and calls["left to right"] == 128
    assert study.parts[4].measures[-1].value == 0.0  # the cache changes no token


def test_data_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="is no text"):
        reproduce(quick=True, data="moons")

"""The reproduction runs from end to end, and says what it found."""

from __future__ import annotations

import pytest

from undiffuse.papers.diffusion_features import reproduce


@pytest.mark.slow
def test_every_part_has_its_table_and_figures():
    seen = []
    study = reproduce(quick=True, keep=lambda so_far: seen.append(len(so_far.parts)))
    assert seen == list(range(1, 8))
    assert all(part.rows for part in study.parts)
    found = {measure.name: measure.value for measure in study.measures}
    assert found["up1.0, pool 1: model - untrained"] > 15
    assert found["best block at t 0.1 - at t 0.6"] > 10
    assert found["pool 1: trained on 0 to 4 - untrained"] > -20  # ten steps of training

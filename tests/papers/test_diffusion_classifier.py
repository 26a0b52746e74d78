"""The reproduction of the diffusion classifier runs, small, and its full figures are asked of a full run alone."""

from __future__ import annotations

import math

import pytest

from undiffuse.papers.diffusion_classifier import reproduce


@pytest.mark.slow
def test_a_quick_run_has_all_parts() -> None:
    kept = []
    study = reproduce(quick=True, keep=kept.append)
    assert len(kept) == len(study.parts) == 5
    assert all(math.isfinite(measure.value or 0.0) and measure.met is None for measure in study.measures)
    found = {measure.name: measure.value for measure in study.measures}
    assert found["calls, pruned / all"] == pytest.approx((2 * 10 + 6 * 4) / 80)
    assert found["accuracy, shared noise, 5 times"] >= 0.9

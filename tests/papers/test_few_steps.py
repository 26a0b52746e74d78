"""How flow maps on points are trained and judged: keys of their own, and means of several sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undiffuse.metrics.energy import energy_distance
from undiffuse.papers import few_steps
from undiffuse.papers.few_steps import compare, draw, error


def test_each_method_has_the_keys_of_all_and_its_own(monkeypatch: pytest.MonkeyPatch):
    run, seen = SimpleNamespace(finished=True, model=None), {}

    def distilled(teacher: Any, name: str, *given: Any, overrides: list[str], **options: Any) -> Any:
        seen[name] = (overrides, options["steps"])
        return run

    monkeypatch.setattr(few_steps, "train", lambda *given, **options: run)
    monkeypatch.setattr(few_steps, "distill_run", distilled)
    monkeypatch.setattr(few_steps, "error", lambda *given, **options: 0.0)
    own = {"meanflow": ("train.lr=3e-3",)}
    found = compare("mixture", ("meanflow", "scm"), 7, students=["objective.drop=0"], own=own)
    assert [one.name for one in found] == ["denoiser, DDIM", "meanflow", "scm"]
    assert seen == {"meanflow": (["objective.drop=0", "train.lr=3e-3"], 7), "scm": (["objective.drop=0"], 7)}


def test_the_distance_on_the_mixture_is_the_mean_of_four_sets():
    class Shifted:
        def sample(self, count: int, *, seed: int, batch_size: int, steps: int) -> Any:
            return draw("mixture", count, 50 + seed) + 0.05 * steps

    model: Any = Shifted()
    sets = [
        energy_distance((draw("mixture", 3000, 51 + n) + 0.1).numpy(), draw("mixture", 3000, 1000 + n).numpy())
        for n in range(4)
    ]
    assert error("mixture", model, steps=2) == pytest.approx(np.mean(sets), rel=1e-9)
    assert np.std(sets) > 0

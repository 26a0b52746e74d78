"""The reproduction of MMD tuning: that it runs, and how it reckons its gain."""

from __future__ import annotations

import pytest

from undiffuse.distillation import mmd_features
from undiffuse.distillation.mmd_judge import Figures
from undiffuse.events import Message
from undiffuse.papers import mmd_ddm
from undiffuse.papers.mmd_ddm import Row, gain


def row(name: str, distance: float, calls: int = 5) -> Row:
    figures = Figures(independent=distance, held_out=1.0, tuned_on=0.0, energy=0.0, spread=1.0, copies=0.5)
    return Row(seed=0, name=name, calls=calls, figures=figures)


def test_the_gain_is_over_the_best_untuned_sampler_and_of_the_averaged_weights():
    rows = [
        row("DDIM", 9.0),
        row("best untuned: heun, 3 step(s), grid t", 6.0),
        row("best untuned after the extra training: heun", 5.0),
        row("MMD rbf-mix, pixels", 3.0),
        row("MMD rbf-mix, pixels, last iterate", 1.0),
        row("MMD rbf-mix, classifier", 2.0),
        row("MMD cubic, classifier", 1.5),
        row("MMD rbf-mix, pixels", 0.1, calls=3),
    ]
    assert gain(rows, 5) == 3.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_the_quick_version_makes_all_rows_and_goes_on_from_kept_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(mmd_features, "_EPOCHS", 1)
    monkeypatch.setattr(mmd_ddm, "_EXTRA_STEPS", 2)
    heard = []
    found = mmd_ddm.study(quick=True, listener=heard.append, folder=tmp_path)
    (part,) = found.parts
    names = [cells[0] for cells in part.rows]
    assert names[0] == names[1] == "DDIM" and sum(name.startswith("best untuned") for name in names) == 2
    assert [name for name in names if name.startswith("MMD")] == [
        "MMD rbf-mix, classifier",
        "MMD rbf-mix, classifier, last iterate",
        "MMD rbf-mix, pixels",
        "MMD rbf-mix, pixels, last iterate",
        "MMD cubic, classifier",
    ]
    assert found.measures[0].asked is None  # nothing is asked of so few steps
    assert any(isinstance(event, Message) for event in heard)
    assert mmd_ddm.study(quick=True, folder=tmp_path).parts[0].rows == part.rows

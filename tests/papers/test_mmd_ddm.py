"""The reproduction of MMD tuning: that it runs, and how it reckons its gain."""

from __future__ import annotations

import pytest
import torch

from tests.distillation.tiny import mlp_denoiser
from undiffuse.data import TensorDataset
from undiffuse.distillation import mmd_features
from undiffuse.distillation.mmd_features import make_features
from undiffuse.distillation.mmd_judge import Figures
from undiffuse.papers import mmd_ddm
from undiffuse.papers.mmd_ddm import Row, _Digits, gain
from undiffuse.training.trainer import Outcome


def row(name: str, distance: float, calls: int = 5) -> Row:
    figures = Figures(independent=distance, held_out=1.0, tuned_on=0.0, energy=0.0, spread=1.0, copies=0.5)
    return Row(seed=0, name=name, calls=calls, figures=figures)


def test_the_gain_is_of_each_tuning_by_itself_over_the_best_untuned_sampler():
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
    assert gain(rows, 5) == gain(rows, 5, "MMD rbf-mix, classifier") == 3.0  # the one that something is asked of
    assert gain(rows, 5, "MMD rbf-mix, pixels") == 2.0
    assert gain(rows, 5, "MMD cubic, classifier") == 4.0


def test_the_extra_training_takes_as_long_as_the_tuning(tmp_path, monkeypatch):
    """By a clock of 0.5 s for each step a tuning of 30 s is worth 60 steps; what is kept is not trained again."""
    own = _Digits.__new__(_Digits)
    own.folder, own.steps, own.seed, own.base = tmp_path, 4, 0, mlp_denoiser("v")
    own.train = TensorDataset(data=torch.zeros(8, 2), spec=own.base.spec)
    now, made = [0.0], []

    def denoise(denoiser, steps, rate):
        made.append(steps)
        now[0] += 0.5 * steps
        return denoiser

    monkeypatch.setattr(own, "_denoise", denoise)
    monkeypatch.setattr(mmd_ddm.time, "process_time", lambda: now[0])
    assert own._trained_on(5, 30.0)[1] == 60 and made == [40, 60]
    assert own._trained_on(5, 99.0)[1] == 60 and len(made) == 2
    assert own._trained_on(3, 15.0)[1] == 30 and made[2:] == [40, 30]  # the time of a step is measured anew


def test_time_is_measured_on_steps_that_are_taken_and_tunings_are_kept_with_theirs(tmp_path, monkeypatch):
    own = _Digits.__new__(_Digits)
    own.folder, own.steps, own.seed, own.base = tmp_path, 2, 0, mlp_denoiser("v")
    own.train = TensorDataset(data=torch.randn(256, 2).clamp(-1, 1), spec=own.base.spec)
    first, again = (own._denoise(own.base, 3, 1e-3) for _ in range(2))
    moved = [not torch.equal(a, b) for a, b in zip(first.parameters(), own.base.parameters(), strict=True)]
    assert any(moved)  # a run that goes on where the last one ended would train nothing, in no time
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    pixels = make_features("pixels", own.train)
    found, kept = (own._tuned_or_kept(pixels, "rbf-mix", 2, "MMD rbf-mix, pixels") for _ in range(2))
    assert found[2] == kept[2] > 0
    monkeypatch.setattr(mmd_ddm.Trainer, "run", lambda self: Outcome(1, finished=False))
    with pytest.raises(KeyboardInterrupt):  # stopped by Ctrl-C: half a tuning is none
        own._tuned_or_kept(pixels, "rbf-mix", 3, "MMD rbf-mix, pixels")
    assert [folder.name for folder in tmp_path.iterdir()] == ["MMD-rbf-mix-pixels-2-calls-2"]
    assert all(torch.equal(a, b) for a, b in zip(found[1].parameters(), kept[1].parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_the_quick_version_makes_all_rows_and_goes_on_from_kept_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(mmd_features, "_EPOCHS", 1)
    found = mmd_ddm.study(quick=True, folder=tmp_path)
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
    assert sum("extra denoising training of the same time (" in name for name in names) == 1
    assert len(found.measures) == 3 and all(m.asked is None for m in found.measures)  # nothing is asked of so few steps
    assert mmd_ddm.study(quick=True, folder=tmp_path).parts[0].rows == part.rows

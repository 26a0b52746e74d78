"""The reproductions of restoration papers: their rows, what counts as near, and that they run."""

from __future__ import annotations

import pytest

from undiffuse.papers import low_level_vision, red_diff
from undiffuse.papers.catalogue import PAPERS, load_reproduction
from undiffuse.papers.other_tables import decibels_apart, near_calibrated, near_decibels
from undiffuse.papers.restoring import digits_bench, table
from undiffuse.papers.study import Study
from undiffuse.report.restore_bench import spread_figure
from undiffuse.tasks.restore.bench_results import EXACT, BenchRow


def test_rows_of_a_trial_stand_beside_the_exact_posterior():
    bench = digits_bench(quick=True, seed=0)
    trial = bench.trial("inpaint50", 0.05)
    masks = trial.operator.mask
    assert masks.shape[0] == 4 and not bool((masks[0] == masks[1]).all())  # a mask of its own for each item
    rows = [bench.exact(trial), bench.row(trial, "ours", "red-diff", 5, lr=0.3)]
    columns, cells, numeric = table(rows)
    assert [row[0] for row in cells] == [EXACT, "ours"]
    assert {len(row) for row in cells} == {len(columns)} and len(numeric) == len(columns) - 1
    assert rows[0].psnr_mean > rows[0].psnr and rows[1].nfe == 5
    assert spread_figure(rows) is not None
    with pytest.raises(ValueError, match="red-diff on inpaint50: lam=-1"):
        bench.row(trial, "red-diff", "red-diff", 5, lam=-1)


def test_what_counts_as_near_another_table():
    def row(spread: float, energy: float) -> BenchRow:
        return BenchRow(operator="a", method="b", steps=1, exact_spread=spread, energy=energy)

    assert near_calibrated(row(1.14, 0.9), (1.0, 0.1))  # within 15 %
    assert near_calibrated(row(1.02, 0.1), (1.5, 0.4))  # nearer to the exact posterior by both
    assert not near_calibrated(row(0.45, 0.1), (1.04, 0.18))  # too narrow, however near
    assert not near_calibrated(row(1.02, 0.6), (1.5, 0.4))

    exact, ours = (BenchRow(operator="a", method="b", steps=1, psnr=p, psnr_mean=q) for p, q in ((17, 20), (17.5, 19)))
    assert decibels_apart(ours, exact) == (0.5, -1.0)
    assert near_decibels((0.5, -1.0), (18.0, 19.4), (17.5, 20.0))  # 0.5 and -0.6 there
    assert not near_decibels((0.5, -1.2), (18.0, 19.4), (17.5, 20.0))
    assert near_decibels((-0.1, -0.6), (18.0, 19.4), (17.5, 20.0))  # below by 0.6, but nearer to the exact posterior
    assert not near_decibels((-0.6, -0.6), (18.0, 19.4), (17.5, 20.0))


def test_the_papers_are_in_the_catalogue():
    assert load_reproduction(PAPERS["red-diff"]) is red_diff.reproduce
    assert load_reproduction(PAPERS["low-level-vision"]) is low_level_vision.reproduce


@pytest.mark.slow
@pytest.mark.parametrize(("module", "parts"), [(red_diff, 7), (low_level_vision, 7)])
def test_the_reproductions_run(module, parts):
    kept: list[Study] = []
    study = module.reproduce(quick=True, keep=kept.append)
    assert [len(one.parts) for one in kept] == list(range(1, parts + 1))
    assert study.to_json()["parts"][-1]["rows"]

"""The reproduction of VQ-DDM: that its exact parts say what they claim, and that all of it runs."""

from __future__ import annotations

import pytest

from undiffuse.papers import vq_ddm


def test_the_quick_table_of_meanings_tells_the_four_ways_apart():
    part = vq_ddm.meanings(quick=True)
    found = {(row[0], row[1]): float(row[2]) for row in part.rows}
    assert found["uniform", "posterior, plug-in step"] > 3 * found["uniform", "posterior, marginal step"]
    for noise in ("uniform", "mask-replace .1", "absorbing"):
        right = found[noise, "posterior, marginal step"]
        assert found[noise, "without evidence, plug-in step"] == right
        assert found[noise, "without evidence, converted, marginal step"] == right
    assert all(measure.met for measure in part.measures) and len(part.measures) == 2


def test_the_quick_table_of_completions_shows_what_is_exact():
    part = vq_ddm.completions(quick=True)
    found = {(row[0], row[1]): [float(cell) for cell in row[2:]] for row in part.rows}
    assert len(part.columns) == 8 and len(found) == 19
    assert max(found["absorbing", "given, first-hitting"]) < 1e-12
    once, often = (
        found["uniform", "replacement, each step 1 times"],
        found["uniform", "replacement, each step 16 times"],
    )
    assert all(less < more for less, more in zip(often, once, strict=True))
    assert [measure.met for measure in part.measures] == [True]


@pytest.mark.slow
def test_all_of_it_runs():
    titles = [part.title for part in vq_ddm.reproduce(quick=True).parts]
    assert titles == ["What answers mean", "Bias of completion", "Codebooks", "Completed digits"]

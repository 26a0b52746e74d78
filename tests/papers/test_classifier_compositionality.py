"""The reproduction of the compositionality study: that it runs, and how it counts the ties of a bag of words."""

from __future__ import annotations

import pytest
import torch

from undiffuse.analysis.compositionality.bench import Row
from undiffuse.analysis.compositionality.labelled import labelled_task
from undiffuse.papers.classifier_compositionality import reproduce
from undiffuse.papers.compose_two_digits import _by_words


def test_ties_of_the_bag_of_words_count_by_their_share():
    """Right alone, tied among two, tied among three, wrong though others tie: 1 + 1/2 + 1/3 + 0 of 4."""
    scores = torch.tensor([[[3.0, 1, 1]], [[2.0, 2, 1]], [[1.0, 1, 1]], [[0.0, 1, 1]]])

    class Words:
        def scores(self, task: object) -> list[torch.Tensor]:
            return list(scores)

    task = labelled_task(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), ("a", "b", "c"))
    row = Row(task="t", group="order", measure="accuracy", n=4, value=0.0)
    assert _by_words(Words(), task, row) == f"{100 * (1 + 1 / 2 + 1 / 3) / 4:.1f}"  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_whole_study_runs():
    study = reproduce(quick=True)
    domains, gaps, digits = study.parts
    assert [row[0] for row in domains.rows[1:]] == ["real", "3 x 3 blur"] and domains.rows[0][0].startswith("own")
    assert gaps.figure is not None and len(gaps.rows) == 2
    assert len(digits.rows) == 14
    by_words = {row[0]: row[-1] for row in digits.rows if row[2] == "accuracy"}
    assert by_words["order, seen pairs"] == by_words["attribute, unseen pairs"] == "50.0"

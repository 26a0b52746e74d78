"""Classifier two-sample test: can a classifier tell samples from real items?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from undiffuse.metrics.distances import Array, as_pair
from undiffuse.noise import permutation

TestClassifier = Literal["logistic", "knn", "mlp"]


@dataclass(frozen=True, kw_only=True)
class TwoSampleTest:
    """The result of a classifier two-sample test.

    Args:
        accuracy: Share of items named rightly by a classifier that had not seen them: 0.5 for equal laws, 1 where the
            sets have nothing in common.
        error: Standard error, sqrt(accuracy (1 - accuracy) / items).
        p_value: Probability of such an accuracy or a higher one for equal laws.
        n: Number of items judged, of both sets together.
    """

    accuracy: float
    error: float
    p_value: float
    n: int


def classifier_two_sample(
    a: Array, b: Array, *, classifier: TestClassifier = "logistic", folds: int = 5, seed: int = 0
) -> TwoSampleTest:
    """Train classifiers to tell two sets apart, each on all folds but one, and judge them on the fold left out.

    The larger set is cut to the size of the smaller. The p value is that of a binomial law, as for a single held-out
    set; folds share training items, so it is approximate. Items must not stand in both sets: a nearest neighbour that
    is a twin carries the other label.

    Args:
        a: Points or features (N, *).
        b: Points or features (M, *).
        classifier: "logistic" sees differences of the means; "knn" and "mlp" (a perceptron) see others too.
        folds: Number of parts, at least 2.
        seed: Seed of the parts and of the perceptron.

    Raises:
        ValueError: The widths differ, a set has fewer than 2 items per fold, or the classifier is unknown.

    Source: Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests", arXiv:1610.06545.
    """
    from scipy.stats import binom
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    first, second = as_pair(a, b, ("a", "b"))
    n = min(len(first), len(second))
    if folds < 2 or n < 2 * folds:
        raise ValueError(f"folds={folds} with sets of {len(first)} and {len(second)}; give at least 2 items per fold.")
    parts = [rows[permutation(seed, which, len(rows))[:n].numpy()] for which, rows in enumerate((first, second))]
    x, y = np.concatenate(parts), np.repeat([0, 1], n)
    found = cross_val_predict(_classifier(classifier, n, seed), x, y, cv=StratifiedKFold(folds))
    right = int((found == y).sum())
    share = right / (2 * n)
    return TwoSampleTest(
        accuracy=share,
        error=float(np.sqrt(share * (1.0 - share) / (2 * n))),
        p_value=float(binom.sf(right - 1, 2 * n, 0.5)),
        n=2 * n,
    )


def _classifier(name: str, n: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name not in get_args(TestClassifier):
        raise ValueError(f"classifier={name!r} is unknown; choose {', '.join(get_args(TestClassifier))}.")
    if name == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if name == "knn":  # the square root of the number of items, as the source has it
        return make_pipeline(StandardScaler(), KNeighborsClassifier(max(1, round(n**0.5))))
    return make_pipeline(StandardScaler(), MLPClassifier((32,), alpha=1e-2, max_iter=1000, random_state=seed))

"""Do samples show the class that was asked for? Judged by a classifier that never met the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.metrics.classifier import ImageClassifier
from undiffuse.metrics.distances import Array, as_matrix
from undiffuse.metrics.features import check_labels, fitted, projection
from undiffuse.metrics.neighbours import binomial_error


class LabelClassifier(Protocol):
    """Names the class of items (N, *) once fitted."""

    def predict(self, x: Array) -> NDArray[np.int64]:
        """Return the most likely labels (N,)."""
        ...


class SupportVectorClassifier:
    """A support vector machine with a Gaussian kernel: an accurate judge that shares nothing with a network.

    Args:
        penalty: The machine's `C`.
        seed: Seed of the projection used for wide data.
    """

    def __init__(self, *, penalty: float = 10.0, seed: int = 0) -> None:
        self.penalty, self.seed = penalty, seed
        self._machine: Any = None

    def fit(self, x: Array, labels: Array | None = None) -> SupportVectorClassifier:
        """Train on real items (N, *) with labels (N,). Features keep their scale: a pixel that hardly varies is noise.

        Raises:
            ValueError: Labels are missing, of another number, or of fewer than two classes.
        """
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC

        matrix, targets = as_matrix(x), check_labels(labels, len(x))
        self._machine = make_pipeline(*projection(matrix, self.seed), SVC(C=self.penalty, gamma="scale"))
        self._machine.fit(matrix, targets)
        return self

    def predict(self, x: Array) -> NDArray[np.int64]:
        """Return the most likely labels (N,)."""
        return fitted(self._machine).predict(as_matrix(x))


class NetworkClassifier:
    """A frozen `ImageClassifier` as a judge of pictures (N, C, H, W) in [-1, 1].

    Args:
        network: Ready to judge; see `load_classifier`.
        batch: Pictures computed at once.
    """

    def __init__(self, network: ImageClassifier, batch: int = 256) -> None:
        self.network, self.batch = network, batch

    @torch.no_grad()
    def predict(self, x: Array) -> NDArray[np.int64]:
        """Return the most likely labels (N,)."""
        pictures = torch.as_tensor(x).float()
        self.network.to(pictures.device)
        return torch.cat([self.network(part).argmax(1) for part in pictures.split(self.batch)]).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of items whose predicted label is the given one, its binomial standard error, and the number of items."""

    share: float
    error: float
    n: int


def label_agreement(classifier: LabelClassifier, items: Array, labels: Array) -> Agreement:
    """Return how often the classifier gives items (N, *) the labels (N,).

    For samples, the labels are those asked for; for real held-out items, it is the classifier's own
    accuracy, without which the first figure means nothing.

    Raises:
        ValueError: The number of labels differs from the number of items.
    """
    wanted = np.asarray(labels)
    if wanted.shape != (len(items),):
        raise ValueError(f"labels have shape {wanted.shape} for {len(items)} items; expected ({len(items)},).")
    share = float((classifier.predict(items) == wanted).mean())
    return Agreement(share=share, error=binomial_error(share, len(items)), n=len(items))

"""Feature extractors that are fitted to the data: for distances where no network is at hand.

They are scikit-learn models fitted on the *real training split*, so they are independent of the
diffusion model, need no download, and the classifier states how good it is on real held-out data.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from undiffuse.metrics.distances import Array, Matrix, as_matrix

WIDEST_INPUT = 128  # wider items are first projected on this many principal components


class FeatureExtractor(Protocol):
    """Turns items (N, *) into features (N, D) once fitted on real ones."""

    def fit(self, x: Array, labels: Array | None = None) -> FeatureExtractor:
        """Learn from real items (N, *) and, where the extractor uses them, labels (N,); returns itself."""
        ...

    def features(self, x: Array) -> Matrix:
        """Return float64 features (N, D)."""
        ...


class ClassifierFeatures:
    """Last hidden activations of a small multi-layer perceptron that was trained to name the class.

    Inputs are centred per feature and divided by one common scale, and projected on principal components
    where wide. A scale per feature would let pixels that are almost always blank rule the distance.

    Args:
        hidden: Widths of the hidden layers; the last one is the number of features.
        seed: Seed of the initial weights and of the batch order.
        epochs: Passes over the data; fewer when the loss stands still.
    """

    name = "perceptron"

    def __init__(self, *, hidden: tuple[int, ...] = (128, 48), seed: int = 0, epochs: int = 60) -> None:
        self.hidden, self.seed, self.epochs = hidden, seed, epochs
        self._network: Any = None

    def fit(self, x: Array, labels: Array | None = None) -> ClassifierFeatures:
        """Train on real items (N, *) with labels (N,).

        Raises:
            ValueError: Labels are missing, of another number, or of fewer than two classes.
        """
        from sklearn.neural_network import MLPClassifier

        matrix, targets = as_matrix(x), check_labels(labels, len(x))
        self._mean = matrix.mean(axis=0)
        self._scale = float((matrix - self._mean).std()) or 1.0
        self._projection = [step.fit(self._scaled(matrix)) for step in projection(matrix, self.seed)]
        network = MLPClassifier(self.hidden, alpha=1e-3, random_state=self.seed, max_iter=self.epochs)
        self._network = _fit_without_warning(network, self._inputs(matrix), targets)
        return self

    def features(self, x: Array) -> Matrix:
        """Return the last hidden activations (N, D), after the ReLU."""
        network = fitted(self._network)
        state = self._inputs(as_matrix(x))
        for weights, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
            state = np.maximum(state @ weights + bias, 0.0)
        return state

    def predict(self, x: Array) -> NDArray[np.int64]:
        """Return the most likely labels (N,)."""
        return fitted(self._network).predict(self._inputs(as_matrix(x)))

    def predict_proba(self, x: Array) -> Matrix:
        """Return class probabilities (N, K), classes in ascending order."""
        return fitted(self._network).predict_proba(self._inputs(as_matrix(x)))

    def _scaled(self, matrix: Matrix) -> Matrix:
        return (matrix - self._mean) / self._scale

    def _inputs(self, matrix: Matrix) -> Matrix:
        state = self._scaled(matrix)
        for step in self._projection:
            state = step.transform(state)
        return state


class PCAFeatures:
    """Projections on the principal components of real data, for data without labels.

    Args:
        components: Most components kept; fewer where the data has fewer features or rows.
        seed: Seed of the randomised decomposition used for wide data.
    """

    name = "pca"

    def __init__(self, *, components: int = 48, seed: int = 0) -> None:
        self.components, self.seed = components, seed
        self._pca: Any = None

    def fit(self, x: Array, labels: Array | None = None) -> PCAFeatures:
        """Find the components of real items (N, *); labels are not used."""
        from sklearn.decomposition import PCA

        matrix = as_matrix(x)
        self._pca = PCA(min(self.components, *matrix.shape), random_state=self.seed).fit(matrix)
        return self

    def features(self, x: Array) -> Matrix:
        """Return projections (N, D) in data units, most variance first."""
        return fitted(self._pca).transform(as_matrix(x))


class MotionFeatures:
    """Principal components of whole clips beside those of the differences of successive frames, for video.

    Differences are small beside the frames and would play no part; they are scaled so that both halves have the same
    total variance over the real data. Clips with the right frames in the wrong order differ in the second half alone.

    Args:
        components: Most components kept of each half.
        seed: Seed of the randomised decompositions.
    """

    name = "motion"

    def __init__(self, *, components: int = 24, seed: int = 0) -> None:
        self.frames, self.changes = (PCAFeatures(components=components, seed=seed) for _ in range(2))
        self._scale = 1.0

    def fit(self, x: Array, labels: Array | None = None) -> MotionFeatures:
        """Find the components of real clips (N, F, C, H, W); labels are not used.

        Raises:
            ValueError: There is one frame only.
        """
        clips = np.asarray(x)
        if clips.ndim < 3 or clips.shape[1] < 2:
            raise ValueError(f"items of shape {clips.shape[1:]} have no motion; expected (F, C, H, W) with F above 1.")
        first = self.frames.fit(clips).features(clips)
        second = self.changes.fit(np.diff(clips, axis=1)).features(np.diff(clips, axis=1))
        self._scale = float(np.sqrt(first.var(axis=0).sum() / (second.var(axis=0).sum() or 1.0)))
        return self

    def features(self, x: Array) -> Matrix:
        """Return both projections side by side, (N, D)."""
        clips = np.asarray(x)
        return np.hstack([self.frames.features(clips), self._scale * self.changes.features(np.diff(clips, axis=1))])


def projection(matrix: Matrix, seed: int) -> list[Any]:
    """Return the pipeline step that narrows items of many features, or no step."""
    from sklearn.decomposition import PCA

    rows, width = matrix.shape
    return [PCA(min(WIDEST_INPUT, rows), random_state=seed)] if width > WIDEST_INPUT else []


def check_labels(labels: Array | None, n: int) -> NDArray[np.int64]:
    """Return labels (N,) as an int64 array.

    Raises:
        ValueError: They are missing, of another number, or name fewer than two classes.
    """
    if labels is None:
        raise ValueError("a classifier needs labels; give labels (N,), or use PCAFeatures for data without.")
    targets = np.asarray(labels).astype(np.int64)
    if targets.shape != (n,):
        raise ValueError(f"labels have shape {targets.shape} for {n} items; expected ({n},).")
    if len(np.unique(targets)) < 2:
        raise ValueError("labels name one class only; a classifier needs at least two.")
    return targets


def fitted(part: Any) -> Any:
    """Return `part`, or say that `fit` comes first."""
    if part is None:
        raise ValueError("not fitted yet; call fit(x, labels) with real data first.")
    return part


def _fit_without_warning(network: Any, x: Matrix, labels: NDArray[np.int64]) -> Any:
    """Fit and return `network`. That the last epoch still improved is no news, as `epochs` is a budget."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(x, labels)

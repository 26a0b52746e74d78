"""A transformer of scikit-learn: features as a step of a pipeline."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError("FeatureTransformer is a step of scikit-learn; pip install scikit-learn.") from error

from undiffuse.tasks.features.encoder import DEFAULT_TIME, FeatureEncoder, Times
from undiffuse.tasks.features.items import number_items
from undiffuse.tasks.features.layers import AUTO, Layers
from undiffuse.tasks.rows import items_of, model_of


class FeatureTransformer(TransformerMixin, BaseEstimator):
    """Maps rows to features of a model. It learns nothing: `fit` builds the encoder and checks the rows.

    Rows are items in data units, flattened or not: (n, *shape) or (n, prod(shape)). The noise of a row is keyed by its
    content, so its features do not depend on the rows beside it.

    Args:
        model: A `Model`, or a name or folder that `undiffuse.load` reads. A name lets clones in other processes load
            it for themselves; a `Model` is shared by clones, not copied.
        layers, t, pool, draws, seed, cond, batch_size: See `FeatureEncoder`.
    """

    def __init__(
        self,
        model: Any = "digits",
        layers: Layers = AUTO,
        t: Times = DEFAULT_TIME,
        pool: int | None = 1,
        draws: int = 1,
        seed: int = 0,
        cond: dict[str, Any] | None = None,
        batch_size: int = 64,
    ) -> None:
        self.model, self.layers, self.t, self.pool = model, layers, t, pool
        self.draws, self.seed, self.cond, self.batch_size = draws, seed, cond, batch_size

    def fit(self, X: Any, y: Any = None) -> Self:
        """Build the encoder.

        Raises:
            ValueError: See `FeatureEncoder`; or rows that do not fit the model.
        """
        held = model_of(self.model)
        settings = {"pool": self.pool, "draws": self.draws, "seed": self.seed, "cond": self.cond}
        self.encoder_ = FeatureEncoder(held, self.layers, self.t, batch_size=self.batch_size, **settings)  # type: ignore[arg-type]
        self.n_features_in_ = int(np.prod(items_of(X, held).shape[1:]))
        self.n_features_out_ = self.encoder_.features()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return features (n, F)."""
        check_is_fitted(self)
        held = self.encoder_.model
        assert held is not None
        x = held.spec.to_model(items_of(X, held))
        return self.encoder_(x, index=number_items(x)).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return a name for each feature: the map's, and a number."""
        check_is_fitted(self)
        counts = self.encoder_.counts()
        return np.array([f"{key}.{i}" for key, count in counts.items() for i in range(count)], dtype=object)

    def __deepcopy__(self, memo: Any) -> Self:
        """Share the model, which is frozen."""
        return copy(self)

    def __sklearn_clone__(self) -> Self:
        """Return an unfitted transformer that shares the model."""
        return type(self)(**self.get_params(deep=False))

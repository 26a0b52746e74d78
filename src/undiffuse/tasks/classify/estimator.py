"""A classifier of scikit-learn: any conditional model as `fit`, `predict` and `predict_proba`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import unique_labels
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError("DiffusionClassifier is an estimator of scikit-learn; pip install scikit-learn.") from error

from undiffuse.tasks.classify.results import Classification
from undiffuse.tasks.classify.run import classify
from undiffuse.tasks.classify.temperature import fit_temperature
from undiffuse.tasks.rows import items_of, model_of


class DiffusionClassifier(ClassifierMixin, BaseEstimator):
    """Classifies rows by how well a model denoises them under each class. It learns no more than a temperature.

    Rows are items in data units, flattened or not: (n, *shape) or (n, prod(shape)).

    Args:
        model: A `Model`, or a name or folder that `undiffuse.load` reads. A name lets clones in other processes load
            it for themselves; a `Model` is shared by clones, not copied.
        times, keep: Rounds; see `classify`.
        weight: Of times; see `classify`.
        template: What prompts are made of the classes with; see `classify`.
        temperature: Of the probabilities; "fit": found on the rows that `fit` gets. Give rows to `fit` that are not
            those to be judged.
        options: Further options of `classify`: loss, target, order, race, seed, batch_size, ...
    """

    def __init__(
        self,
        model: Any = "digits",
        times: int | Sequence[int] | None = None,
        keep: int | Sequence[int] | None = None,
        weight: Any = "uniform",
        template: str | None = None,
        temperature: float | str = 1.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.times, self.keep, self.weight = model, times, keep, weight
        self.template, self.temperature, self.options = template, temperature, options

    def fit(self, X: Any, y: Any) -> Self:
        """Keep the classes that occur: names or numbers of the model's, or words of prompts.

        Raises:
            ValueError: Classes that the model does not know, rows that do not fit, or a temperature that is none.
        """
        if isinstance(self.temperature, str) and self.temperature != "fit":
            raise ValueError(f"temperature={self.temperature!r} is unknown; give a number, or 'fit'.")
        labels = np.asarray(y)
        self.classes_ = unique_labels(labels)
        held = model_of(self.model)
        items = items_of(X, held)
        if len(items) != len(labels):
            raise ValueError(f"{len(items)} rows and {len(labels)} labels; give a label for each row.")
        self.n_features_in_ = int(np.prod(items.shape[1:]))
        self.temperature_ = 1.0 if isinstance(self.temperature, str) else float(self.temperature)
        if self.temperature == "fit":
            truth = torch.from_numpy(np.searchsorted(self.classes_, labels))
            self.temperature_ = fit_temperature(self.classify(X), truth)
        else:
            self.classify(X[:1])  # refuses classes and options that do not fit
        return self

    def classify(self, X: Any) -> Classification:
        """Return everything about rows: labels are numbers into `classes_`."""
        check_is_fitted(self, "classes_")
        held = model_of(self.model)
        return classify(
            held,
            items_of(X, held),
            self.classes_.tolist(),
            times=self.times,
            keep=self.keep,
            weight=self.weight,
            template=self.template,
            **(self.options or {}),
        )

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return p(class | row), (n, classes), in the order of `classes_`."""
        return self.classify(X).probabilities(self.temperature_).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of each row (n,)."""
        return self.classes_[self.classify(X).label.numpy()]

    def __deepcopy__(self, memo: Any) -> Self:
        """Share the model, which is frozen."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_clone__(self) -> Self:
        """Return an unfitted classifier that shares the model."""
        return type(self)(**self.get_params(deep=False))

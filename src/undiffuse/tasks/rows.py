"""What estimators of scikit-learn share: models by name, and rows of a table as items."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from undiffuse.models.model import Model

_MODELS: dict[str, Model] = {}


def model_of(model: Any) -> Model:
    """Return a model as it is, or the one of that name, loaded once in a process.

    Raises:
        ValueError: Something else.
    """
    if isinstance(model, Model):
        return model
    if not isinstance(model, str):
        raise ValueError(f"model is a {type(model).__name__}; give a Model, or a name that undiffuse.load reads.")
    if model not in _MODELS:
        from undiffuse.models.bundle import load

        _MODELS[model] = load(model)
    return _MODELS[model]


def items_of(X: Any, model: Model) -> torch.Tensor:
    """Return rows (n, *shape) or (n, prod(shape)) as items in data units (n, *shape).

    Raises:
        ValueError: Rows of another size.
    """
    values = torch.as_tensor(np.asarray(X))
    shape = tuple(model.spec.shape)
    if tuple(values.shape[1:]) == shape:
        return values
    if values.ndim == 2 and values.shape[1] == int(np.prod(shape)):
        return values.reshape(-1, *shape)
    raise ValueError(
        f"X has shape {tuple(values.shape)}; expected (n, {', '.join(map(str, shape))}) or flattened rows."
    )

"""Logistic probe: multinomial regression with an L2 penalty, by L-BFGS."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from undiffuse.tasks.features.head import Head, Inputs, Standard
from undiffuse.tasks.features.options import HeadOptions

_ITERATIONS = 500
_ALPHA = 1.0  # as scikit-learn's C = 1


class LogisticHead(Head):
    """Minimises sum of cross-entropies + alpha / 2 |W|^2 over W (F, C) and an intercept, on standardised features."""

    def __init__(self, standard: Standard, weights: Tensor, intercept: Tensor) -> None:
        self.standard, self.weights, self.intercept = standard, weights, intercept

    @classmethod
    def fit(cls, inputs: Inputs, labels: Tensor, classes: int, options: HeadOptions) -> Self:
        """Minimise; the problem is convex, so there is nothing to draw."""
        standard = Standard.of(inputs)
        z = standard(inputs)
        alpha = _ALPHA if options.alpha is None else options.alpha
        weights = torch.zeros(z.shape[1], classes, dtype=torch.float64, requires_grad=True)
        intercept = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [weights, intercept],
            max_iter=_ITERATIONS,
            tolerance_grad=1e-7,
            tolerance_change=1e-12,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            search.zero_grad()
            value = cross_entropy(z @ weights + intercept, labels) + alpha / (2 * len(z)) * weights.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        return cls(standard, weights.detach(), intercept.detach())

    def logits(self, inputs: Inputs) -> Tensor:
        """Return log-odds up to a constant for each item."""
        return self.standard(inputs) @ self.weights + self.intercept

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, intercept and scaling."""
        scaling = {"mean": self.standard.mean, "std": self.standard.std}
        return {"weights": self.weights, "intercept": self.intercept, **scaling}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any], classes: int, options: HeadOptions) -> Self:
        """Return the head as it was."""
        return cls(Standard(tensors["mean"], tensors["std"]), tensors["weights"], tensors["intercept"])

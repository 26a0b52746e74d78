"""Ridge probe: least squares in closed form, with the penalty chosen by leaving one item out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from undiffuse.tasks.features.head import Head, Inputs, Standard
from undiffuse.tasks.features.options import HeadOptions

ALPHAS = tuple(10.0 ** (power / 2) for power in range(-4, 13))  # 0.01 to 1e6, on standardised features
_RANK = 1e-12  # of the largest eigenvalue of the Gram matrix: below it is rounding
_TEMPERATURES = tuple(10.0 ** (power / 10) for power in range(-10, 31))  # factors of the scores


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues s (r,) and vectors U (n, r) of Z Z' for features Z (n, F): all that ridge needs of the items."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, z: Tensor) -> Spectrum:
        """Decompose centred features (n, F), by the smaller of both Gram matrices."""
        wide = z.shape[1] > z.shape[0]
        values, vectors = torch.linalg.eigh(z @ z.T if wide else z.T @ z)
        keep = values > _RANK * values.max().clamp(min=torch.finfo(torch.float64).tiny)
        values, vectors = values[keep], vectors[:, keep]
        return cls(values, vectors if wide else z @ vectors / values.sqrt())

    def leave_one_out(self, targets: Tensor, alpha: float) -> Tensor:
        """Return for each item the prediction (n, C) of the fit to all others.

        The hat matrix is H = 1 1' / n + U diag(s / (s + alpha)) U', its intercept unpenalised, and the residual without
        item i is (y_i - H y) / (1 - h_ii).
        """
        share = self.values / (self.values + alpha)
        mean = targets.mean(0)
        fitted = mean + self.vectors @ (share[:, None] * (self.vectors.T @ (targets - mean)))
        leverage = 1 / len(targets) + self.vectors.square() @ share
        return targets - (targets - fitted) / (1 - leverage).clamp(min=1e-12)[:, None]

    def weights(self, z: Tensor, targets: Tensor, alpha: float) -> Tensor:
        """Return beta = (Z'Z + alpha I)^-1 Z'(Y - mean), (F, C), as Z' U diag(1 / (s + alpha)) U' (Y - mean)."""
        centred = targets - targets.mean(0)
        return z.T @ (self.vectors @ ((self.vectors.T @ centred) / (self.values + alpha)[:, None]))


class RidgeHead(Head):
    """Least squares to targets +1 and -1, on standardised features, with an intercept that is not penalised.

    Without `options.alpha` the penalty has the least squared error of leaving one out. Probabilities are the softmax of
    the scores times the factor under which the scores of leaving one out are most likely.

    Source: diffusion features, section 6; Hoerl and Kennard 1970.
    """

    def __init__(self, standard: Standard, weights: Tensor, intercept: Tensor, alpha: float, factor: float) -> None:
        self.standard, self.weights, self.intercept = standard, weights, intercept
        self.alpha, self.factor = alpha, factor

    @classmethod
    def fit(cls, inputs: Inputs, labels: Tensor, classes: int, options: HeadOptions) -> Self:
        """Solve in closed form."""
        standard = Standard.of(inputs)
        z, targets = standard(inputs), signed(labels, classes)
        spectrum = Spectrum.of(z)
        alphas = ALPHAS if options.alpha is None else (options.alpha,)
        left_out = {alpha: spectrum.leave_one_out(targets, alpha) for alpha in alphas}
        alpha = min(alphas, key=lambda each: float((left_out[each] - targets).square().mean()))
        factor = _factor(left_out[alpha], labels)
        return cls(standard, spectrum.weights(z, targets, alpha), targets.mean(0), alpha, factor)

    def logits(self, inputs: Inputs) -> Tensor:
        """Return the fitted targets times the factor."""
        return self.factor * (self.standard(inputs) @ self.weights + self.intercept)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, intercept and scaling."""
        scaling = {"mean": self.standard.mean, "std": self.standard.std}
        return {"weights": self.weights, "intercept": self.intercept, **scaling}

    @property
    def facts(self) -> dict[str, Any]:
        """Return the penalty and the factor of the scores."""
        return {"alpha": self.alpha, "factor": self.factor}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any], classes: int, options: HeadOptions) -> Self:
        """Return the head as it was."""
        standard = Standard(tensors["mean"], tensors["std"])
        return cls(standard, tensors["weights"], tensors["intercept"], facts["alpha"], facts["factor"])


def signed(labels: Tensor, classes: int) -> Tensor:
    """Return targets float64 (n, C): 1 at the item's class, -1 elsewhere."""
    return 2.0 * torch.nn.functional.one_hot(labels, classes).double() - 1.0


def _factor(scores: Tensor, labels: Tensor) -> float:
    def surprise(factor: float) -> float:
        return float(torch.nn.functional.cross_entropy(factor * scores, labels))

    best = min(_TEMPERATURES, key=surprise)
    return best if math.isfinite(surprise(best)) else 1.0

"""`ErrorTable`: how well data are denoised under each candidate condition, at each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.tasks.classify.times import ratio
from undiffuse.tasks.classify.weights import TimeWeights
from undiffuse.words import did_you_mean, plain_json

WEIGHTS = ("uniform", "elbo", "eps", "x0", "v", "velocity")
"""Weights by name: all the same; those of the evidence bound; those that turn errors into errors of another target."""
Weight = str | TimeWeights | Tensor | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """Mean loss per element of B items under C candidates at n times, all with the same noise.

    Args:
        errors: (B, C, n), float32 (float64 where data are); NaN where a candidate was given up before that time. Of
            tokens nats per token of draw i, whose mean over i is the evidence bound.
        times: Rising, float64 (n,).
        half_logsnr: log(alpha / sigma) there, float64 (n,).
        names: Of the candidates, C of them.
        classes: Class of each candidate, int64 (C,): numbers into `class_names`, several prompts to a class.
        class_names: K of them.
        dims: Elements of an item D.
        target: What the error is of: "eps", "x0", "v", "velocity"; "tokens".
        loss: "l2", "l1", "huber", "rms"; "nll".
        null: Errors without the condition, (B, n), with the same noise; None where not measured.
        widths, forms: See `TimeGrid`.
        calls: Network evaluations made for each item, int64 (B,).
    """

    errors: Tensor
    times: Tensor
    half_logsnr: Tensor
    names: tuple[str, ...]
    classes: Tensor
    class_names: tuple[str, ...]
    dims: int
    target: str = "eps"
    loss: str = "l2"
    null: Tensor | None = None
    widths: Tensor | None = None
    forms: dict[str, Tensor] = field(default_factory=dict)
    calls: Tensor | None = None

    def __len__(self) -> int:
        return len(self.errors)

    def weights(self, weight: Weight = "uniform") -> Tensor:
        """Return what the error of each time is multiplied with, float64 (n,).

        Args:
            weight: "uniform"; "elbo", so that the mean is the integral of the evidence bound; a target ("x0"), so that
                it is the error of that; `TimeWeights`; or n numbers.

        Raises:
            ValueError: An unknown name, a name that needs squared errors of others, or weights that do not fit.
        """
        count = len(self.times)
        if isinstance(weight, TimeWeights):
            for name in ("target", "loss"):
                meant, own = getattr(weight, name), getattr(self, name)
                if meant and meant != own:
                    raise ValueError(f"these time weights are for {name}={meant!r}; the errors have {name}={own!r}.")
            return weight.at(self.half_logsnr)
        if not isinstance(weight, str):
            values = torch.as_tensor(weight, dtype=torch.float64)
            if values.shape != (count,) or not bool(values.isfinite().all()):
                raise ValueError(
                    f"weight has shape {tuple(values.shape)}; expected a finite number for each of {count} times."
                )
            return values
        return self._named(weight)

    def _named(self, name: str) -> Tensor:
        ones = torch.ones(len(self.times), dtype=torch.float64)
        if name not in WEIGHTS:
            near = did_you_mean(name, WEIGHTS)
            raise ValueError(
                f"weight={name!r} is unknown; choose one of {', '.join(WEIGHTS)}, or give TimeWeights.{near}"
            )
        if name == "uniform" or (name == "elbo" and self.target == "tokens"):
            return ones
        if self.loss != "l2" or not self.forms:
            raise ValueError(
                f"weight={name!r} belongs to squared errors and these are {self.loss!r} of {self.target}; take "
                "loss='l2', or weight='uniform' with the target that is meant."
            )
        if name != "elbo":
            return ratio(self, name, self.target) ** 2
        assert self.widths is not None
        return self.widths * ratio(self, "eps", self.target) ** 2

    def scores(self, weight: Weight = "uniform", contrast: bool = False) -> Tensor:
        """Return minus the weighted mean error of each candidate over the times where it was measured, float64 (B, C).

        Args:
            weight: See `weights`.
            contrast: Subtract the error without the condition.

        Raises:
            ValueError: Contrast without those errors.
        """
        weights = self.weights(weight).to(self.errors.device)
        return -(self._shown(contrast) * weights).nanmean(-1)

    def logits(self, weight: Weight = "uniform", contrast: bool = False) -> Tensor:
        """Return scores times D relative to the best candidate that was never given up, float64 (B, C), at most 0.

        A candidate that was given up is compared with the best one on the times where both were measured, and counts
        at most as much. So softmax(logits) is p(candidate | item) for equal odds, where scores are log-likelihoods
        per element.
        """
        weights = self.weights(weight).to(self.errors.device)
        shown = self._shown(contrast)
        known = shown.isnan().logical_not().sum(-1)
        last = known == known.amax(1, keepdim=True)
        scores = -(shown * weights).nanmean(-1)
        best = torch.where(last, scores, -torch.inf).argmax(1)  # the first of several
        winner = shown[torch.arange(len(shown), device=shown.device), best][:, None]
        apart = ((winner - shown) * weights).nanmean(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        return apart.clamp(max=0.0) * self.dims

    def _shown(self, contrast: bool) -> Tensor:
        if not contrast:
            return self.errors.double()
        if self.null is None:
            raise ValueError("contrast needs the errors without the condition; measure with contrast=True.")
        return self.errors.double() - self.null.double()[:, None]

    def rows(self, index: Tensor | slice) -> ErrorTable:
        """Return the table of some items."""
        null, calls = self.null, self.calls
        return replace(
            self,
            errors=self.errors[index],
            null=None if null is None else null[index],
            calls=None if calls is None else calls[index],
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types; errors that were not measured are None."""
        return plain_json(
            {
                "errors": self.errors.tolist(),
                "null": None if self.null is None else self.null.tolist(),
                "times": self.times.tolist(),
                "half_logsnr": self.half_logsnr.tolist(),
                "candidates": self.names,
                "classes": self.classes.tolist(),
                "class_names": self.class_names,
                "dims": self.dims,
                "target": self.target,
                "loss": self.loss,
            }
        )

"""What `classify` returns: labels, scores, probabilities, and everything behind them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from undiffuse.metrics.shares import Share, share
from undiffuse.tasks.classify.table import ErrorTable
from undiffuse.words import plain_json

Reduce = Literal["max", "mean"]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The class of B items among K, each spoken for by one or more of C candidates.

    Args:
        logits: Of the candidates, relative to the best, float64 (B, C): see `ErrorTable.logits`.
        scores: Of the candidates, float64 (B, C): minus the weighted mean error; of one that was given up over the
            times where it was measured, so compare it by `logits` instead.
        rounds: Rounds in which a candidate was measured, int64 (B, C); the winner and all it met last have the most.
        table: All errors.
        weights: What the error of each time was multiplied with, float64 (n,).
        reduce: How candidates of a class are put together: "max", the best one speaks; "mean", the mean of their
            probabilities.
        promised: Most network evaluations for an item, as known before; `nfe` says what was made.
        settings: How it was computed.
        notes: What to know when reading it.
    """

    logits: Tensor
    scores: Tensor
    rounds: Tensor
    table: ErrorTable
    weights: Tensor
    reduce: Reduce = "max"
    promised: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, K of them."""
        return self.table.class_names

    @property
    def label(self) -> Tensor:
        """Class of each item, int64 (B,); of several that tie the first."""
        return self.class_logits().argmax(1)

    @property
    def names(self) -> list[str]:
        """Name of each item's class."""
        return [self.class_names[number] for number in self.label.tolist()]

    @property
    def calls(self) -> Tensor:
        """Network evaluations made for each item, int64 (B,)."""
        assert self.table.calls is not None
        return self.table.calls

    @property
    def nfe(self) -> int:
        """Most network evaluations made for an item."""
        return int(self.calls.max())

    @property
    def ties(self) -> Tensor:
        """Items whose best class is not the only best, bool (B,)."""
        logits = self.class_logits()
        return (logits == logits.amax(1, keepdim=True)).sum(1) > 1

    @property
    def ranking(self) -> Tensor:
        """Candidates of each item, the best first, int64 (B, C): by rounds survived, then by score."""
        order = self.logits.argsort(dim=1, descending=True, stable=True)
        survived = self.rounds.gather(1, order)
        return order.gather(1, survived.argsort(dim=1, descending=True, stable=True))

    @property
    def confidence(self) -> Tensor:
        """How sure the winner is, float64 (B,): its lead over the best candidate of another class, in standard errors.

        Of their paired differences over the times where both were measured; infinite where there is no other class, NaN
        where one time is all there is. The times differ in more than noise, so this is on the careful side.
        """
        leads = [self._lead(item, ranking) for item, ranking in enumerate(self.ranking.tolist())]
        return torch.tensor(leads, dtype=torch.float64)

    def class_logits(self, temperature: float = 1.0) -> Tensor:
        """Return logits of the classes, float64 (B, K).

        Args:
            temperature: Logits of candidates are divided by it before they are put together.

        Raises:
            ValueError: A temperature that is not positive.
        """
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature={temperature} must be a positive number; 1 takes scores as log-likelihoods.")
        logits = self.logits / temperature
        classes = self.table.classes
        groups = [logits[:, classes == number] for number in range(len(self.class_names))]
        if self.reduce == "max":
            return torch.stack([group.amax(1) for group in groups], 1)
        return torch.stack([group.logsumexp(1) - math.log(group.shape[1]) for group in groups], 1)

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return p(class | item) with equal odds beforehand, float64 (B, K).

        Args:
            temperature: 1 takes D times the score as a log-likelihood, which with uniform weights it is not; larger
                ones are less sure. `fit_temperature` finds it.

        Raises:
            ValueError: A temperature that is not positive.
        """
        return self.class_logits(temperature).softmax(1)

    def accuracy(self, truth: Tensor) -> Share:
        """Return the share of items whose class (B,) is right, with its 95 % interval; errors as for `read_truth`."""
        return share(self.label.cpu() == read_truth(self, truth))

    def confusion(self, truth: Tensor) -> Tensor:
        """Return how many items of each class (rows) got each label (columns), int64 (K, K); see `read_truth`."""
        count = len(self.class_names)
        pairs = read_truth(self, truth) * count + self.label.cpu()
        return torch.bincount(pairs, minlength=count * count).view(count, count)

    def to_json(self, temperature: float = 1.0, errors: bool = False) -> dict[str, Any]:
        """Return everything as plain JSON types.

        Args:
            temperature: Of the probabilities.
            errors: Also the whole table of errors.
        """
        found = {
            "n": len(self),
            "classes": self.class_names,
            "candidates": self.table.names,
            "label": self.label.tolist(),
            "names": self.names,
            "probabilities": self.probabilities(temperature).tolist(),
            "temperature": temperature,
            "scores": self.scores.tolist(),
            "rounds": self.rounds.tolist(),
            "ties": self.ties.tolist(),
            "confidence": self.confidence.tolist(),
            "evaluations": self.nfe,
            "promised": self.promised,
            "settings": self.settings,
            "notes": self.notes,
        }
        return plain_json(found | ({"table": self.table.to_json()} if errors else {}))

    def _lead(self, item: int, ranking: list[int]) -> float:
        own = self.table.classes[ranking[0]]
        rival = next((number for number in ranking[1:] if self.table.classes[number] != own), None)
        if rival is None:
            return math.inf
        apart = (self.table.errors[item, rival] - self.table.errors[item, ranking[0]]).double()
        return lead(apart * self.weights)


def read_truth(result: Classification, truth: Tensor) -> Tensor:
    """Return the true classes of a result's items, int64 (B,), on the CPU.

    Raises:
        ValueError: Another number of labels than items, or labels that are no class.
    """
    labels = torch.as_tensor(truth).long().cpu()
    if labels.shape != (len(result),):
        raise ValueError(f"labels have shape {tuple(labels.shape)} for {len(result)} items; give one each.")
    if bool(((labels < 0) | (labels >= len(result.class_names))).any()):
        raise ValueError(f"a label lies outside 0 to {len(result.class_names) - 1}, the classes of this result.")
    return labels


def judged(**fields: Any) -> Classification:
    """Return a `Classification` of these fields with notes, and warn where there was nothing to choose."""
    result = Classification(**fields)
    notes = []
    if len(result.class_names) == 1:
        notes.append(f"{result.class_names[0]!r} is the only candidate, so it is the answer whatever the item")
        warnings.warn(notes[0] + "; give at least two.", stacklevel=3)
    tied = int(result.ties.sum())
    if tied:
        notes.append(f"{tied} of {len(result)} items have several best classes, of which the first was taken")
    return replace(result, notes=tuple(notes))


def lead(differences: Tensor) -> float:
    """Return the mean of paired differences (n,) in units of its standard error; NaN entries do not count.

    NaN where fewer than two count; where all are equal, infinity with the sign of the mean, and 0 where that is 0.
    """
    known = differences[~differences.isnan()]
    if len(known) < 2:
        return math.nan
    mean, error = float(known.mean()), float(known.std()) / len(known) ** 0.5
    if error == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / error

"""Weights of times learned from a few labelled items, by the choices that they make right.

A weighted score is -mean_t w_t R_tc of errors R. Only differences between candidates matter, so Z is R less its mean
over candidates; w = exp(u) starts at one everywhere, where the reference starts at zero and all candidates tie. The
loss is the cross-entropy of the logits -(10 / std Z) mean_t w_t Z_t, with 0.1 mean u^2 beside it, by Adam.

Source: Jeong et al. 2025, "Diffusion Classifiers Understand Compositionality, but Conditions Apply", arXiv:2505.17955,
    section 5; the loss, the start and the ridge are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.analysis.compositionality.measures import McNemar, chosen_right, mcnemar
from undiffuse.analysis.compositionality.score import TaskErrors
from undiffuse.analysis.compositionality.task import Task
from undiffuse.distillation.own_adam import OwnAdam
from undiffuse.metrics.shares import Share, share
from undiffuse.noise import permutation
from undiffuse.tasks.classify.weights import TimeWeights

_SHARPNESS = 10.0  # of the logits, in units of the spread of Z: it sets the temperature and stays fixed
_FEW = 50  # shots below which a polynomial is fitted
_DEGREE = 3


def learn_weights(
    errors: Tensor,
    answers: Tensor,
    half_logsnr: Tensor,
    *,
    degree: int | str | None = "auto",
    positive: bool = True,
    ridge: float = 0.1,
    lr: float = 0.05,
    steps: int = 300,
) -> TimeWeights:
    """Return weights under which the right candidates have the smallest errors; their mean is 1.

    Args:
        errors: (N, C, n) of items, candidates and times; NaN where an item has fewer candidates.
        answers: int64 (N,).
        half_logsnr: Of the times, (n,).
        degree: Of a polynomial in the place of the time on half log-SNR, for log w; None: a weight for each time;
            "auto": 3 below 50 items, else None.
        positive: Learn log w; else w - 1, which may become negative and fits noise sooner.
        ridge: Weight of the mean square of what is learned.
        lr, steps: Of Adam, on all items at once.

    Raises:
        ValueError: Shapes or answers that do not fit, errors of the right candidate that are not numbers, or errors
            that are the same for all candidates; a negative `ridge`.
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge} must be 0 or more; 0.1 pulls gently towards equal weights.")
    z, where = _centred(errors, answers)
    basis = _basis(half_logsnr, _degree(degree, len(z), z.shape[2]))
    scale = _SHARPNESS / float(z[where].std())

    def loss(u: Tensor) -> Tensor:
        logits = -scale * (z * _weights(u, positive)).mean(-1)
        return F.cross_entropy(logits.masked_fill(~where, -math.inf), answers) + ridge * u.square().mean()

    found = _weights(_adam(loss, basis, lr, steps), positive)
    mean = float(found.mean())
    if mean <= 0:
        raise ValueError(f"the learned weights have mean {mean:.3g}; learn with positive=True.")
    return TimeWeights.of(half_logsnr, found / mean)


def _adam(loss: Callable[[Tensor], Tensor], basis: Tensor, lr: float, steps: int) -> Tensor:
    """Return what Adam finds from zero, (n,), within the space that the projection `basis` (n, n) leaves.

    Steps of Adam leave that space and are projected back; where they end, the projected gradient is zero.
    """
    u = torch.zeros(len(basis), dtype=torch.float64)
    adam = OwnAdam(
        [u], lr, betas=(0.9, 0.999)
    ).double()  # `torch.optim` loads the compiler, which takes longer than this
    for _ in range(steps):
        with torch.enable_grad():
            point = u.clone().requires_grad_()
            slope = torch.autograd.grad(loss(point), point)[0]
        adam.update([u], [basis @ slope])
        u = basis @ u
    return u


def _weights(u: Tensor, positive: bool) -> Tensor:
    return u.exp() if positive else 1.0 + u


def _degree(degree: int | str | None, shots: int, n: int) -> int | None:
    if degree == "auto":
        return min(_DEGREE, n - 1) if shots < _FEW else None
    if isinstance(degree, str) or (degree is not None and not 0 <= degree < n):
        raise ValueError(f"degree={degree!r} must be auto, none, or from 0 to {n - 1} for {n} times.")
    return degree


def _basis(half_logsnr: Tensor, degree: int | None) -> Tensor:
    """Return the projection (n, n) on polynomials of a degree; the identity for None."""
    n = len(half_logsnr)
    if degree is None:
        return torch.eye(n, dtype=torch.float64)
    low, high = half_logsnr.min(), half_logsnr.max()
    places = 2 * (half_logsnr.double() - low) / (high - low).clamp(min=1e-12) - 1
    columns = torch.special.chebyshev_polynomial_t(places[:, None], torch.arange(degree + 1))
    q = torch.linalg.qr(columns)[0]
    return q @ q.T


def _centred(errors: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return errors less their mean over candidates (N, C, n), zero where there are none, and where there are (N, C).

    Raises:
        ValueError: See `learn_weights`.
    """
    if errors.ndim != 3 or answers.shape != errors.shape[:1] or len(errors) == 0:
        raise ValueError(
            f"errors have shape {tuple(errors.shape)} and answers {tuple(answers.shape)}; expected (N, C, n) and (N,)."
        )
    wide = errors.double()
    where = ~wide.isnan().all(-1)
    inside = (answers >= 0) & (answers < errors.shape[1])
    if not bool(inside.all()):
        item = int((~inside).nonzero()[0, 0])
        raise ValueError(f"answer {int(answers[item])} of item {item} is out of range; there are {errors.shape[1]}.")
    known = where.gather(1, answers[:, None])[:, 0]
    broken = (where[..., None] & ~wide.isfinite()).flatten(1).any(1) | ~known
    if bool(broken.any()):
        raise ValueError(f"the errors of item {int(broken.nonzero()[0, 0])} are not numbers; leave it out.")
    filled = wide.nan_to_num(nan=0.0)
    z = torch.where(where[..., None], filled - filled.sum(1, keepdim=True) / where.sum(1)[:, None, None], 0.0)
    if not float(z[where].std()) > 0:
        raise ValueError("all candidates have the same errors; there is nothing to learn from.")
    return z, where


@dataclass(frozen=True, kw_only=True)
class LearnedWeights:
    """Weights, and what they are worth on items that they never saw.

    Args:
        weights: The weights.
        shots: Items they were learned from.
        uniform: Accuracy on the held-out items with equal weights.
        learned: Accuracy on them with these.
        paired: McNemar's test of learned against uniform, on them.
    """

    weights: TimeWeights
    shots: int
    uniform: Share
    learned: Share
    paired: McNemar

    @property
    def gain(self) -> float:
        """Accuracy won, as a share."""
        return self.learned.value - self.uniform.value


def learn_on(
    found: TaskErrors,
    *,
    shots: int | None = None,
    holdout: float = 0.5,
    seed: int = 0,
    draw: int = 0,
    degree: int | str | None = "auto",
    positive: bool = True,
    ridge: float = 0.1,
) -> LearnedWeights:
    """Learn weights from a part of a task's items and test them on another.

    The test items are chosen by `seed` alone; the shots among the others by `seed` and `draw`.

    Args:
        found: Errors on a task with right answers.
        shots: Items to learn from; None: all that are not tested on.
        holdout: Share of the items that is held out.
        seed: Of the split.
        draw: Number of the draw of shots.
        degree, positive, ridge: See `learn_weights`.

    Raises:
        ValueError: Too few items, or shots that all have one class where all items choose among the same.
    """
    errors, answers = found.choices()
    held_out, chosen = choose_shots(found.task, shots, holdout, seed, draw)
    twice = found.task.type == "pair"
    learn_rows, test_rows = _rows(chosen, twice), _rows(held_out, twice)
    weights = learn_weights(
        errors[learn_rows], answers[learn_rows], found.half_logsnr, degree=degree, positive=positive, ridge=ridge
    )
    weights = replace(weights, target=found.frame.target, loss=found.frame.loss)
    unseen, right = errors[test_rows], answers[test_rows]
    before = chosen_right(-unseen.mean(-1), right)[0]
    after = chosen_right(-(unseen * weights.at(found.half_logsnr)).mean(-1), right)[0]
    return LearnedWeights(
        weights=weights,
        shots=len(chosen),
        uniform=share(before),
        learned=share(after),
        paired=mcnemar(before, after),
    )


def choose_shots(
    task: Task, shots: int | None, holdout: float, seed: int = 0, draw: int = 0
) -> tuple[list[int], list[int]]:
    """Return the items of a task that are held out, and those that are learned from; see `learn_on`.

    Raises:
        ValueError: Too few items, or shots that all have one class where all items choose among the same.
    """
    held_out, rest = split_items(len(task), holdout, seed)
    chosen = _shots(rest, shots, seed, draw)
    _check_classes(task.shares_candidates, [task.answers[i] for i in chosen], len(task.items[0].texts))
    return held_out, chosen


def split_items(count: int, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the items held out and the others, a function of the three arguments.

    Raises:
        ValueError: One of the parts would be empty.
    """
    part = round(count * holdout)
    if not 0 < part < count:
        raise ValueError(f"holdout={holdout} of {count} items holds out {part}; leave some on both sides.")
    order = permutation(seed, 0, count).tolist()
    return sorted(order[:part]), order[part:]


def _shots(rest: list[int], shots: int | None, seed: int, draw: int) -> list[int]:
    if shots is None:
        return rest
    if not 1 <= shots <= len(rest):
        raise ValueError(f"shots={shots} must be from 1 to the {len(rest)} items that are not held out.")
    return [rest[i] for i in permutation(seed, draw + 1, len(rest))[:shots].tolist()]


def _check_classes(shared: bool, answers: Sequence[int], classes: int) -> None:
    """Refuse shots of one class, and warn of fewer shots than classes, where candidates are classes."""
    if not shared:
        return
    if len(set(answers)) < 2:
        raise ValueError(f"all {len(answers)} shots are of one class; take more, or another seed.")
    if len(answers) < classes:
        warnings.warn(f"{len(answers)} shots for {classes} classes; weights may fit the classes seen.", stacklevel=4)


def _rows(items: Sequence[int], twice: bool) -> list[int]:
    """Return the rows of `TaskErrors.choices` of some items: two for each pair."""
    return [2 * i + k for i in items for k in (0, 1)] if twice else list(items)

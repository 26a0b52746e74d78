"""The Dormand-Prince pair of orders 5 and 4, with a step size per sample.

`integrate` solves dy/dt = f(y, t) for a tuple of tensors; likelihoods add a component to the state, samplers do not.
`attempts` is the same as a generator, for a loop that does the asking.

Source: Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae"; Hairer, Norsett, Wanner 1993, "Solving
ordinary differential equations I", section II.4 (first step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.process.times import align
from undiffuse.sampling.step_control import error_ratio, growth, largest

State = tuple[Tensor, ...]
Slope = Callable[[State, Tensor], State]

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
MATRIX = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the new state, of order 5
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 minus order 4
ORDER = 5
_SMALLEST = 1e-12  # of the whole interval; below it float64 times no longer move


class Ask(NamedTuple):
    """The slope is asked for, at the state `y` and times (B,)."""

    y: State
    times: Tensor


class Arrived(NamedTuple):
    """After an attempt: the state, and the times before and after it, equal for samples whose attempt was refused."""

    y: State
    before: Tensor
    times: Tensor


def integrate(
    f: Slope, y: State, t: float, s: float, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000
) -> tuple[State, int]:
    """Integrate dy/dt = f(y, t) from time `t` to `s`, upwards or downwards.

    Every sample has a step size of its own and so does not depend on the others of its batch; one that has arrived
    waits, while f is still asked about it. A step is accepted where the largest of the errors of the components, each
    a root of a mean square relative to max(atol, rtol |y|), is at most 1. Differentiable, with the step sizes held
    fixed.

    Args:
        f: Maps the state and float64 times (B,) to the slopes, a tuple like `y`.
        y: Tensors (B, *), all with the same B.
        t, s: First and last time.
        rtol, atol: Relative and absolute error allowed per step.
        max_steps: Most attempts of a sample.

    Returns:
        The state at `s`, and how often f was called, which is what the slowest sample needed.

    Raises:
        ValueError: A tolerance that is not positive, or `max_steps` below 1.
        UndiffuseError: A sample needs more attempts, or its steps become too small to move the time.
    """
    talk, reply, calls = attempts(y, t, s, rtol, atol, max_steps), None, 0
    while True:
        try:
            said = talk.send(reply)
        except StopIteration:
            return y, calls
        if isinstance(said, Ask):
            reply, calls = f(said.y, said.times), calls + 1
        else:
            reply = y = said.y


def attempts(
    y: State, t: float, s: float, rtol: float, atol: float, max_steps: int
) -> Generator[Ask | Arrived, Any, None]:
    """The method as a generator: it is sent slopes for `Ask`, and for `Arrived` the state to go on from.

    Arguments and errors are those of `integrate`.
    """
    if not (rtol > 0 and atol > 0 and max_steps >= 1):
        raise ValueError(f"rtol={rtol}, atol={atol} must be positive and max_steps={max_steps} at least 1.")
    if s == t:
        return
    times = torch.full((len(y[0]),), float(t), dtype=torch.float64, device=y[0].device)
    slope = yield Ask(y, times)
    size = _first_size(y, slope, s - t, rtol, atol)
    for _ in range(max_steps):
        left = s - times
        last = size.abs() >= left.abs()
        step = torch.where(last, left, size)
        new, new_slope, error = yield from _attempt(y, slope, times, step)
        with torch.no_grad():
            pairs = zip(error, y, new, strict=True)
            ratio = largest(error_ratio(e, old, after, rtol, atol) for e, old, after in pairs)
            accepted = ratio <= 1
            size = step * growth(ratio, ORDER)
        before, times = times, torch.where(accepted, torch.where(last, s, times + step), times)
        y, slope = _where(accepted, new, y), _where(accepted, new_slope, slope)
        kept = yield Arrived(y, before, times)
        if bool((times == s).all()):
            return
        if any(a is not b for a, b in zip(kept, y, strict=True)):  # edited: the slope is another one
            y = kept
            slope = yield Ask(y, times)
        _check_progress(size, times, s, abs(s - t))
    raise UndiffuseError(
        f"{int((times != s).sum())} of {len(times)} samples have not arrived after max_steps={max_steps} attempts (the "
        f"slowest is at {_slowest(times, s):.3g} on the way from {t} to {s}); allow more, or raise rtol={rtol} and "
        f"atol={atol}."
    )


def combine(base: Tensor, step: Tensor, factors: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Return base + step * sum_i factors_i slopes_i, with `step` (B,) aligned to the state."""
    total = sum(factor * slope for factor, slope in zip(factors, slopes, strict=True) if factor)
    return base + align(step.to(base.dtype), base) * total


def _attempt(y: State, slope: State, times: Tensor, step: Tensor) -> Generator[Ask, State, tuple[State, State, State]]:
    """Return the new state, its slope, and the difference of the two orders."""
    slopes, new = [slope], y
    for node, row in zip(NODES[1:], MATRIX, strict=True):
        new = tuple(combine(part, step, row, [k[i] for k in slopes]) for i, part in enumerate(y))
        slopes.append((yield Ask(new, times + node * step)))
    error = tuple(combine(torch.zeros_like(part), step, ERROR, [k[i] for k in slopes]) for i, part in enumerate(y))
    return new, slopes[-1], error


def _where(accepted: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(align(accepted, a), a, b) for a, b in zip(new, old, strict=True))


@torch.no_grad()
def _first_size(y: State, slope: State, span: float, rtol: float, atol: float) -> Tensor:
    """A step (B,), signed, along which the state changes by a hundredth of its own size."""
    state = largest(error_ratio(part, part, part, rtol, atol) for part in y)
    speed = largest(error_ratio(k, part, part, rtol, atol) for k, part in zip(slope, y, strict=True))
    size = torch.where((state < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * state / speed.clamp(min=1e-300))
    return size.clamp(max=abs(span)) * math.copysign(1.0, span)


def _check_progress(size: Tensor, times: Tensor, s: float, span: float) -> None:
    stuck = (times != s) & ~(size.abs() > _SMALLEST * span)
    if bool(stuck.any()):
        raise UndiffuseError(
            f"the step size of {int(stuck.sum())} of {len(times)} samples vanished at t={float(times[stuck][0]):.6g}: "
            "the slope is not finite or not smooth there; end the integration at schedule.t_min, or check the network."
        )


def _slowest(times: Tensor, s: float) -> float:
    return float(times[(times - s).abs().argmax()])

"""Constraints: what must hold along the way, as one protocol of the loop.

Known pixels, tokens and frames, and measurement steps, are constraints. A constraint sees every step three times:
`enter` before the first evaluation, `correct` at each answer of the denoiser, `leave` when the step is done. Where
`leave` edits the state, the loop clears the solver's memory: multistep extrapolation across an edit is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, align


class Constraint:
    """Base: does nothing. Override what you need.

    Attributes:
        known: Elements of the first state that `enter` supplies (B, *), bool; None for none.
        stateless: Whether what it does in a step depends on that step's arguments alone, so that steps may be computed
            in any order and more than once (`undiffuse.sampling.parallel`).
    """

    known: Tensor | None = None
    stateless: ClassVar[bool] = False

    def enter(self, x: Tensor, t: Time, k: int, noise: NoiseSource) -> Tensor:
        """Return the state with which step `k` starts at time `t`."""
        return x

    def correct(self, post: Any, x: Tensor, t: Time, s: Time) -> Any:
        """Return the posterior to use; `GaussianProcess.with_mean` says which noise goes with a new mean.

        Solvers with several evaluations per step ask at intermediate times; the last of them may have t = s.
        """
        return post

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """Return the state after step `k`, now at time `s`, and whether it was edited."""
        return x, False


class Known(Constraint):
    """Elements that are given, clean. Exact where their time is 0 throughout (frames of a grid from
    `process.grids.known`), and for absorbing processes, where a clean token is its own condition.

    Not for other categorical processes in which all tokens share one time: there a clean token looks like one that may
    have been replaced, which near t = 1 says nothing. Use `Replacement` with `Resampled` for these, or times of 0.

    Args:
        values: Given data in model units, broadcast to the state (B, *).
        mask: True where known, likewise.
    """

    stateless: ClassVar[bool] = True

    def __init__(self, values: Tensor, mask: Tensor) -> None:
        self.values = values
        self.mask = self.known = mask

    def enter(self, x: Tensor, t: Time, k: int, noise: NoiseSource) -> Tensor:
        """Put the known elements in place."""
        return self.put(x)

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """Keep them; this is no edit, since they never moved."""
        return self.put(x), False

    def put(self, x: Tensor, where: Tensor | bool = True) -> Tensor:
        """Return `x` with the known values in place, of those elements that `where` allows."""
        self._move(x)
        return torch.where(self.mask & where, self.values, x)

    def _move(self, x: Tensor) -> None:
        """Bring values and mask to the device of the state, once."""
        self.values, self.mask = self.values.to(x.device, x.dtype), self.mask.to(x.device)


class Replacement(Known):
    """Known elements at the noise level of the rest: overwrites them by a draw of q(x_t | x_0) before each step.

    This is an approximation that loses most of the known elements' influence, whatever the number of steps
    (measured in `tests/oracles`): use times of 0 with `Known` where the model allows times per element, `Known` where
    the process is absorbing, and otherwise `resampling.Resampled`, with which the bias falls.

    Args:
        process: Process of the denoiser.
        values, mask: As for `Known`.
        eps: "same" noise in every step (fits deterministic solvers) or "fresh" noise per step; by default the same for
            Gaussian processes and fresh for tokens, whose solvers draw.

    Source: Song et al. 2021, arXiv:2011.13456, appendix I.
    """

    def __init__(
        self,
        process: GaussianProcess | CategoricalProcess,
        values: Tensor,
        mask: Tensor,
        eps: Literal["same", "fresh"] | None = None,
    ) -> None:
        super().__init__(values, mask)
        self.process = process
        self.eps = eps or ("fresh" if isinstance(process, CategoricalProcess) else "same")

    def enter(self, x: Tensor, t: Time, k: int, noise: NoiseSource) -> Tensor:
        """Overwrite the known elements at time `t`."""
        self._move(x)
        shape, step = tuple(x.shape[1:]), k if self.eps == "fresh" else 0
        tokens = isinstance(self.process, CategoricalProcess)
        z = noise.uniform("corrector", step, shape) if tokens else noise.normal("corrector", step, shape, x.dtype)
        return torch.where(self.mask, self.process.corrupt(self.values.expand_as(x), t, z), x)

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """At the clean end the known elements are the given ones."""
        clean = align(s.to(x.device) == 0, x) if isinstance(s, Tensor) else s == 0.0
        return self.put(x, clean), True


def enter_all(constraints: Sequence[Constraint], x: Tensor, t: Time, step: int, noise: NoiseSource) -> Tensor:
    """Return the state with which `step` starts."""
    for constraint in constraints:
        x = constraint.enter(x, t, step, noise)
    return x


def leave_all(
    constraints: Sequence[Constraint], x: Tensor, s: Time, step: int, noise: NoiseSource
) -> tuple[Tensor, bool]:
    """Return the state after `step`, and whether it was edited."""
    any_edited = False
    for constraint in constraints:
        x, edited = constraint.leave(x, s, step, noise)
        any_edited |= edited
    return x, any_edited


def own_state(process: Any, x: Tensor, post: Any, t: Time, frozen: Tensor | None = None) -> Tensor:
    """Return the state that a posterior with a noise of its own stands for, alpha mean + sigma eps; else `x`.

    Frozen elements stay.
    """
    if getattr(post, "eps", None) is None:
        return x
    own = process.corrupt(post.mean, t, post.eps)
    return own if frozen is None else torch.where(frozen, x, own)

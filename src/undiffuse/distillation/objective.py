"""`FlowMapObjective`: what the losses over a flow map have in common.

`prepare` draws clean rows, their noise and uniforms; which times these mean may depend on the steps done, so `score`
chooses them. Averages over the data then have x_0, eps and times as their only randomness.

A frozen teacher is no part of `state_dict`: it is named in the recipe, by path and hash. What an objective learns
itself (a target that follows the student, a round's teacher) is in submodules and buffers, which a run saves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.training.objectives import Corrupted, Objective
from undiffuse.training.time_samplers import stratified

FEW_VALUES = 64
"""Items of fewer values have errors whose length varies much from row to row; a loss that weighs a row by that length
then learns medians where means are meant."""

_OWN_DRAWS = 3  # "time" steps below it are those of `TimeSampler` and `FrameTimes`


class FlowMapObjective(Objective):
    """Base of objectives over a flow map; subclasses give `score`.

    Args:
        teacher: A frozen denoiser (or an exact flow map) to learn from; guidance is wrapped around it already.
        drop: Probability that a row's condition is replaced by its null.

    Attributes:
        spans: Which pairs of times the student is trained for; see `FlowMap`.
        uniforms: Number of uniforms per row that `prepare` draws; the first is stratified over a batch.
        done: Optimizer steps done; a buffer, saved with a run.
    """

    spans: ClassVar[Spans] = "any"
    uniforms: ClassVar[int] = 1
    done: Tensor

    def __init__(self, *, teacher: Denoiser | FlowMap | None = None, drop: float = 0.0) -> None:
        super().__init__(drop)
        self._frozen = (freeze(teacher),)  # inside a tuple, where modules do not look: it is not saved
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self._counted: tuple[Tensor | None, int, int] = (None, 0, 0)  # the buffer, its version, its value

    @property
    def steps_done(self) -> int:
        """`done` as a number; it waits for the device only where others wrote the buffer, as a checkpoint does."""
        buffer, version, value = self._counted
        if buffer is not self.done or version != self.done._version:
            value = int(self.done)
            self._counted = (self.done, self.done._version, value)
        return value

    @property
    def teacher(self) -> Denoiser | FlowMap | None:
        """The frozen teacher."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the teacher along."""
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def prepare(self, denoiser: FlowMap, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw noise (extras "eps") and uniforms (extras "u", float64 (N, uniforms)) for clean rows `x`."""
        x0: Tensor = batch["x"]
        columns = [stratified(noise, batch_size)]
        columns += [noise.uniform("time", _OWN_DRAWS + i, ()) for i in range(self.uniforms - 1)]
        extras = {"eps": noise.normal("data", 0, tuple(x0.shape[1:]), x0.dtype), "u": torch.stack(columns, dim=1)}
        return Corrupted(
            x=x0,
            t=columns[0],
            target=x0,
            weight=x0.new_empty(len(x0), 0),
            extras=extras,
            **self.conditions(batch, noise, denoiser.kept_conditions),
        )

    def after_step(self, denoiser: FlowMap, step: int) -> None:
        """Count."""
        self.done.fill_(step)
        self._counted = (self.done, self.done._version, step)


def freeze(held: Denoiser | FlowMap | None) -> Denoiser | FlowMap | None:
    """Return a network that no longer trains, itself."""
    return held if held is None else held.eval().requires_grad_(False)


@torch.no_grad()
def follow(target: FlowMap, student: FlowMap, decay: float) -> None:
    """Move a target's parameters towards the student's: target <- decay target + (1 - decay) student."""
    for own, now in zip(target.parameters(), student.parameters(), strict=True):
        own.lerp_(now.detach(), 1 - decay)


def embed(held: Denoiser | FlowMap, corrupted: Corrupted) -> Embedded | None:
    """Return the embedded conditions of a batch for a student or a teacher, dropped where `prepare` drew so."""
    return held.embed(corrupted.cond, len(corrupted.x), corrupted.drop)


def advance(held: Denoiser | FlowMap, x: Tensor, t: Tensor, s: Tensor, cond: Any, *, heun: bool = False) -> Tensor:
    """Return the state at `s` of the path through `x` at `t` (B,): a flow map's jump, or a step with a denoiser.

    A denoiser makes a DDIM step, or with `heun` a step of Heun's method in sigma / alpha.
    """
    if isinstance(held, FlowMap):
        return held(x, t, s, cond)
    process = gaussian(held)
    post = held(x, t, cond)
    moved = process.transition(x, post, t, s)
    if not heun:
        return moved
    # In rho = sigma / alpha the slope of x / alpha is the noise; Heun's step takes the mean of both ends.
    ahead = held(moved, s, cond)
    noise = (process.eps(x, post, t) + process.eps(moved, ahead, s)) / 2
    (alpha, sigma), (alpha_s, sigma_s) = process.coefficients(t, x), process.coefficients(s, x)
    return alpha_s / alpha * (x - sigma * noise) + sigma_s * noise


def gaussian(held: Denoiser | FlowMap) -> GaussianProcess:
    """Return the process.

    Raises:
        ValueError: It is categorical.
    """
    if not isinstance(held.process, GaussianProcess):
        raise ValueError("flow maps need a Gaussian process; a teacher of tokens cannot be distilled this way.")
    return held.process

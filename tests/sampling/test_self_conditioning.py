"""The loop tells a self-conditioned denoiser its last answer, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import Posterior
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import make_grid, pyramid
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.loop import Snapshot, sample
from undiffuse.sampling.registry import make_solver

PROCESS = process_of("trig")
GRID = make_grid(PROCESS.schedule, 5)
SOLVERS = [("ddim", {}), ("ddpm", {}), ("dpm++2m", {}), ("heun", {}), ("edm-heun", {"churn": 4.0})]


class Recording(Denoiser):
    """Answers from the state, the condition and the estimate, and notes what it was told."""

    self_conditioned = True  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.process = PROCESS
        self.told: list[Tensor | None] = []
        self.answers: list[Tensor] = []

    def embed(self, cond: Any, batch: int, drop: Any = None) -> Embedded:
        label = torch.zeros(batch, 1) if not cond else cond["label"].double()[:, None]
        return Embedded(vector=label.double())

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        assert cond is not None and cond.vector is not None
        self.told.append(cond.estimate)
        seen = torch.zeros_like(x) if cond.estimate is None else cond.estimate
        shift = cond.vector.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        self.answers.append(0.3 * torch.tanh(x) + 0.2 * shift + 0.1 * seen)
        return Posterior(self.answers[-1])


def draw(denoiser: Denoiser, solver: Any, n: int = 4, first: int = 0, **options: Any) -> Any:
    settings: dict[str, Any] = {"grid": GRID, "shape": (3,), "dtype": torch.float64} | options
    return sample(denoiser, noise=KeyedNoise(0, range(first, first + n)), solver=solver, **settings)


@pytest.mark.parametrize(("solver", "options"), SOLVERS)
def test_the_denoiser_is_told_its_last_answer(solver: str, options: dict[str, Any]) -> None:
    denoiser = Recording()
    result = draw(denoiser, make_solver(solver, **options))
    assert result.nfe == len(denoiser.told)  # it costs no evaluation
    assert denoiser.told[0] is None
    for told, answer in zip(denoiser.told[1:], denoiser.answers[:-1], strict=True):
        assert told is not None and torch.equal(told, answer)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("solver", "options"), SOLVERS[2:4])
def test_with_guidance_both_questions_are_told_the_guided_answer(
    solver: str, options: dict[str, Any], batched: bool
) -> None:
    denoiser, guided = Recording(), []
    draw(
        ClassifierFreeGuidance(denoiser, 2.5, batched=batched),
        make_solver(solver, **options),
        cond={"label": torch.arange(4)},
        callback=lambda seen: guided.append(seen.post.mean),
    )
    calls = 1 if batched else 2
    assert len(denoiser.told) == calls * len(guided)
    assert denoiser.told[:calls] == [None] * calls
    for i, told in enumerate(denoiser.told[calls:]):
        last = guided[i // calls]
        assert told is not None and torch.equal(told, torch.cat([last, last]) if batched else last)


def test_guidance_that_does_nothing_passes_the_estimate_on() -> None:
    for guide in (
        lambda d: ClassifierFreeGuidance(d, 1.0),
        lambda d: ClassifierFreeGuidance(d, 3.0, interval=(0.0, 1e-9)),
        Wrapper,
    ):
        denoiser, plain = Recording(), Recording()
        cond = {"label": torch.arange(4)}
        wrapped = draw(guide(denoiser), make_solver("ddim"), cond=cond).x
        assert torch.equal(wrapped, draw(plain, make_solver("ddim"), cond=cond).x)


@pytest.mark.parametrize(("solver", "options"), SOLVERS)
def test_a_batch_is_its_samples(solver: str, options: dict[str, Any]) -> None:
    rule = make_solver(solver, **options)
    together = draw(Recording(), rule, n=8).x
    alone = [draw(Recording(), rule, n=1, first=i).x for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


def test_a_correction_by_a_constraint_is_not_told() -> None:
    class Lift(Constraint):
        def correct(self, post: Any, x: Tensor, t: Time, s: Time) -> Any:
            return post.replace(mean=post.mean + 1)

    denoiser = Recording()
    seen: list[Snapshot] = []
    draw(denoiser, make_solver("ddim"), constraints=[Lift()], callback=seen.append)
    for told, answer, shot in zip(denoiser.told[1:], denoiser.answers, seen, strict=False):
        assert told is not None and torch.equal(told, answer)
        assert torch.equal(shot.post.mean, answer + 1)


def test_frozen_elements_are_told_like_others_and_stay() -> None:
    grid = pyramid(4, 3, 2)
    denoiser = Recording()
    states = draw(denoiser, make_solver("dpm++2m"), grid=grid, shape=(3, 2), trajectory=True).trajectory
    for k in range(len(grid) - 1):
        still = (grid[k] == grid[k + 1])[0]
        assert torch.equal(states[k + 1][:, still], states[k][:, still])
    for told, answer in zip(denoiser.told[1:], denoiser.answers[:-1], strict=True):
        assert told is not None and torch.equal(told, answer)


def test_a_run_differentiates_through_its_estimates() -> None:
    start = normals(2, 3).requires_grad_()
    gradients = []
    for grad in (True, "checkpoint"):
        end = draw(Recording(), make_solver("ddim"), n=2, start=start, grad=grad).x
        gradients.append(torch.autograd.grad(end.sum(), start)[0])
    step = 1e-6
    up, down = (draw(Recording(), make_solver("ddim"), n=2, start=start.detach() + d).x.sum() for d in (step, -step))
    torch.testing.assert_close(gradients[0].sum(), (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
    assert torch.equal(gradients[0], gradients[1])

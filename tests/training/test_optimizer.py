"""Learning rate, clipping and skipped steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undiffuse.training.optimizer import ClippedStep, learning_rate, make_optimizer
from undiffuse.training.options import TrainOptions


def test_the_rate_warms_up_and_decays():
    options = TrainOptions(steps=110, warmup=10, lr=2.0, decay="cosine")
    assert learning_rate(0, options) == pytest.approx(0.2)
    assert learning_rate(9, options) == learning_rate(10, options) == pytest.approx(2.0)
    assert learning_rate(60, options) == pytest.approx(1.0)
    assert learning_rate(110, options) == pytest.approx(0.0)
    assert learning_rate(60, TrainOptions(steps=110, warmup=10, lr=2.0, decay="linear", final_lr=0.5)) == pytest.approx(
        1.5
    )
    assert learning_rate(100, TrainOptions(steps=110, warmup=10, lr=2.0, decay="constant")) == 2.0


def two_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def with_gradients(parameters, scale: float):
    generator = torch.Generator().manual_seed(1)
    for p in parameters:
        p.grad = scale * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_step_equals_clipping_and_then_adamw(scale):
    options = TrainOptions(clip=1.0, weight_decay=0.1)
    ours, theirs = two_parameters(), two_parameters()
    step = ClippedStep(make_optimizer(ours, options), options.clip)
    reference = torch.optim.AdamW(theirs, lr=options.lr, betas=options.betas, weight_decay=0.1)
    for _ in range(3):
        with_gradients(ours, scale)
        with_gradients(theirs, scale)
        norm = nn.utils.clip_grad_norm_(theirs, 1.0)
        reference.step()
        report = step(torch.tensor(0.0), options.lr)
        assert float(report.grad_norm) == pytest.approx(float(norm), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # float32, three steps


@pytest.mark.parametrize("poison", ["loss", "gradient", "infinite"])
def test_a_step_that_is_not_finite_changes_nothing(poison):
    options = TrainOptions()
    parameters = two_parameters()
    step = ClippedStep(make_optimizer(parameters, options), options.clip)
    with_gradients(parameters, 1.0)
    step(torch.tensor(0.0), 0.1)
    before = [p.detach().clone() for p in parameters]
    moments = [step.optimizer.state[p]["exp_avg"].clone() for p in parameters]
    with_gradients(parameters, 1.0)
    if poison != "loss":
        parameters[0].grad[0] = float("nan") if poison == "gradient" else float("inf")
    report = step(torch.tensor(float("nan") if poison == "loss" else 0.0), 0.1)
    assert float(report.bad) == 1.0
    for p, old, moment in zip(parameters, before, moments, strict=True):
        assert torch.equal(p, old)
        assert torch.equal(step.optimizer.state[p]["exp_avg"], moment)
        assert float(step.optimizer.state[p]["step"]) == 1.0

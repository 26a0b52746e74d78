"""Learning rate, clipping and skipped steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undiffuse.errors import TrainingError
from undiffuse.networks import MLPOptions, TransformerOptions, UNetOptions, build_network
from undiffuse.spec import DataSpec
from undiffuse.training.optimizer import (
    MOMENTUM,
    ClippedStep,
    hidden_matrices,
    learning_rate,
    make_muon,
    make_optimizer,
)
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


def test_in_parts_of_a_run_the_rate_falls_anew():
    options = TrainOptions(steps=100, warmup=10, lr=2.0, decay="linear")
    assert learning_rate(5, options, (0, 50)) == learning_rate(5, options)
    assert learning_rate(10, options, (0, 50)) == learning_rate(50, options, (50, 100)) == pytest.approx(2.0)
    assert learning_rate(30, options, (0, 50)) == learning_rate(75, options, (50, 100)) == pytest.approx(1.0)
    assert learning_rate(99, options, (50, 100)) == pytest.approx(0.04)


def two_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def with_gradients(parameters, scale: float, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
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


def both(parameters, options: TrainOptions) -> ClippedStep:
    """The vector by AdamW, the matrix by Muon."""
    adam = make_optimizer(parameters[:1], options)
    return ClippedStep(adam, options.clip, muon=make_muon({"matrix": parameters[1]}, options))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_step_of_both_equals_clipping_by_the_common_norm_and_then_each(scale):
    options = TrainOptions(clip=1.0, weight_decay=0.1, optimizer="muon", lr=1e-3, muon_lr=0.02)
    ours, theirs = two_parameters(), two_parameters()
    step = both(ours, options)
    adam = torch.optim.AdamW(theirs[:1], lr=5e-4, betas=options.betas, weight_decay=0.1)
    muon = torch.optim.Muon(theirs[1:], lr=1e-2, weight_decay=0.1)
    for number, size in enumerate(
        (scale, 1.0, 3.0)
    ):  # other sizes and directions: only then the clipping matters to Muon
        with_gradients(ours, size, number)
        with_gradients(theirs, size, number)
        norm = nn.utils.clip_grad_norm_(theirs, 1.0)
        adam.step()
        muon.step()
        report = step(torch.tensor(0.0), 5e-4)  # half of lr: Muon's rate is halved too
        assert float(report.grad_norm) == pytest.approx(float(norm), rel=1e-6)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-7)
    # Muon orthogonalises in bfloat16 (2^-8): a gradient that rounds otherwise moves each step of 0.01 by a share of it.
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=3 * 0.01 * 2**-5)
    assert float((ours[1].detach() - 1.0).abs().max()) > 0.01


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_of_both_that_is_not_finite_changes_nothing(poison, first):
    options = TrainOptions(optimizer="muon", weight_decay=0.1)
    parameters = two_parameters()
    step = both(parameters, options)
    if not first:
        with_gradients(parameters, 1.0)
        step(torch.tensor(0.0), 0.1)
    before = [p.detach().clone() for p in parameters]
    momentum = step.muon.state[parameters[1]][MOMENTUM].clone()
    with_gradients(parameters, 1.0)
    if poison == "gradient":
        parameters[1].grad[0, 0] = float("nan")
    assert float(step(torch.tensor(float("nan") if poison == "loss" else 0.0), 0.1).bad) == 1.0
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert torch.equal(step.muon.state[parameters[1]][MOMENTUM], momentum)
    step.zero_grad()
    assert all(p.grad is None for p in parameters)


IMAGE = DataSpec(kind="image", shape=(3, 8, 8), classes=("a", "b"))
TEXT = DataSpec(kind="tokens", shape=(8,), vocabulary=tuple("abc"))
VECTOR = DataSpec(kind="vector", shape=(5,), classes=("a", "b"))


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (MLPOptions(width=16, depth=1), VECTOR),
        (TransformerOptions(width=16, depth=1, heads=2), TEXT),
        (UNetOptions(channels=8), IMAGE),
    ],
)
def test_muon_has_the_matrices_inside_the_network_and_no_others(options, spec):
    network = build_network(options, spec, states=4 if spec is TEXT else None)
    chosen = hidden_matrices(network)
    shapes = dict(network.named_parameters())
    assert chosen and all(shapes[name].ndim == 2 for name in chosen)
    assert not [name for name in chosen if "conditioners" in name or "embedding" in name or "table" in name]
    assert not [name for name in chosen if name.split(".")[0] in ("enter", "leave", "context")]
    inside = {name for name, p in shapes.items() if p.ndim == 2 and name.split(".")[0] in ("body", "down", "up", "mid")}
    assert inside <= chosen


def test_a_network_without_hidden_matrices_is_refused():
    with pytest.raises(TrainingError, match="use adamw"):
        make_muon({}, TrainOptions(optimizer="muon"))


def test_muon_does_not_go_with_slices_of_matrices():
    with pytest.raises(ValueError, match="whole matrices"):
        TrainOptions(optimizer="muon", shard=True)

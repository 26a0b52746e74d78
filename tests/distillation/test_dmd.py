"""Distribution matching: where it rests, where it pushes, its own denoiser, and Adam with its state in buffers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.distillation.exact import Tilted, batch_of, exact_denoiser, exact_map, law
from tests.distillation.tiny import mlp_denoiser
from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import GaussianFlowMap
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.dmd import DMD
from undiffuse.distillation.options import DMDOptions
from undiffuse.distillation.own_adam import OwnAdam
from undiffuse.noise import KeyedNoise
from undiffuse.process.times import align


@pytest.mark.parametrize("jumps", [1, 3])
@pytest.mark.parametrize("schedule", ["rf", "vp"])
def test_it_rests_where_samples_and_data_have_one_law(schedule, jumps):
    flow_map, exact = exact_map(schedule), exact_denoiser(schedule)
    objective = DMD(DMDOptions(jumps=jumps), teacher=exact, fake=copy.deepcopy(exact))
    assert float(objective.score(flow_map, batch_of(objective, flow_map)).per_sample.max()) == 0.0


@pytest.mark.parametrize("schedule", ["rf", "vp"])
def test_it_pushes_by_the_difference_of_scores(schedule):
    """The gradient of the loss by the samples is alpha (D_fake - D_real) / mean |D_real - x| / D, and points home."""
    (mean, cov), process = law(), process_of(schedule)
    shift = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    held = Tilted(GaussianFlowMap(mean + shift, cov, process))
    real, fake = GaussianDenoiser(mean, cov, process), GaussianDenoiser(mean + shift, cov, process)
    objective = DMD(DMDOptions(), teacher=real, fake=fake)
    corrupted = batch_of(objective, held, 300)
    made = objective.generate(held, corrupted, corrupted.extras["starts"][:, 0], corrupted.extras["u"][:, 1])
    objective.generate = lambda *_: made  # type: ignore[method-assign]
    gradient = torch.autograd.grad(objective.score(held, corrupted).per_sample.sum(), made)[0]
    t = 0.02 + 0.96 * corrupted.extras["u"][:, 0]
    noisy = process.corrupt(made, t, corrupted.extras["eps"])
    size = (real(noisy, t).mean - made).abs().mean(1)
    difference = fake(noisy, t).mean - real(noisy, t).mean
    wanted = align(process.schedule.alpha(t) / size, made) * difference / 3
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    assert ((gradient @ shift) > 0).float().mean() > 0.95


def test_it_begins_by_regressing_jumps_on_the_teacher_s_samples_from_the_same_noise():
    (mean, cov), process = law(), process_of("rf")
    shift, exact = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64), exact_denoiser("rf")
    right, shifted = exact_map("rf"), GaussianFlowMap(mean + shift, cov, process)
    options = DMDOptions(jumps=3, warmup=0.5, teacher_steps=200)
    objective = DMD(options, teacher=exact, fake=copy.deepcopy(exact), steps=10)
    corrupted = batch_of(objective, right)
    error = float(objective.score(right, corrupted).per_sample.max())
    assert 0 < error < 1e-4  # of the teacher's steps
    found = objective.score(shifted, corrupted).per_sample
    torch.testing.assert_close(found, torch.full_like(found, 0.5 * float(shift.square().mean())), rtol=0, atol=0.01)
    objective.after_step(right, 5)
    assert float(objective.score(right, corrupted).per_sample.max()) == 0.0


def test_several_jumps_are_trained_on_the_states_that_sampling_meets():
    """The exact map keeps the law of the data through every jump, so all rows have that law, to 4 standard errors."""
    flow_map, n = exact_map("rf"), 20_000
    objective = DMD(DMDOptions(jumps=3, updates=1), teacher=exact_denoiser("rf"), fake=exact_denoiser("rf"))
    made = batch_of(objective, flow_map, n)
    x = objective.generate(flow_map, made, made.extras["starts"][:, 0], made.extras["u"][:, 1])
    mean, cov = law()
    assert ((x.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    assert ((x.var(0) / cov.diagonal() - 1).abs() < 4 * (2 / n) ** 0.5).all()


def network_objective(**options: object) -> tuple[DMD, NetworkFlowMap]:
    denoiser = mlp_denoiser("v")
    student = NetworkFlowMap(denoiser, spans="clean")
    teacher = copy.deepcopy(denoiser)
    return DMD(DMDOptions(**options), teacher=teacher, fake=copy.deepcopy(denoiser)), student


def test_its_denoiser_learns_the_samples_and_nothing_else_changes():
    objective, student = network_objective(updates=20, fake_lr=3e-3)
    corrupted = objective.prepare(student, {"x": torch.zeros(256, 2)}, KeyedNoise(0, range(256)), 256)
    before = [copy.deepcopy(part.state_dict()) for part in (student, objective.teacher)]
    errors = [fake_error(objective, student)]
    for _ in range(3):
        objective.before_step(student, corrupted)
        errors.append(fake_error(objective, student))
    assert errors[3] < 0.8 * errors[0]
    for part, old in zip((student, objective.teacher), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in part.state_dict().items())
    assert not any(p.requires_grad for p in objective.parameters()) and int(objective.adam.count) == 60


def fake_error(objective: DMD, student: NetworkFlowMap) -> float:
    """Error of the means that the denoiser of samples gives, at one time."""
    eps, t = normals(2000, 2, seed=1).float(), torch.full((2000,), 0.6, dtype=torch.float64)
    with torch.no_grad():
        x = student(normals(2000, 2, seed=2).float(), 1.0, 0.0)
        return float((objective.fake(student.process.corrupt(x, t, eps), t).mean - x).square().mean())


def test_what_it_trains_itself_is_saved_and_the_teacher_is_not():
    objective, _ = network_objective()
    names = set(objective.state_dict())
    assert {"adam.first", "adam.second", "adam.count", "done"} <= names
    assert {name for name in names if name.startswith("fake.")} and not any("teacher" in name for name in names)


def test_adam_is_that_of_torch():
    start = [normals(4, 3, seed=1).float(), normals(5, seed=2).float()]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = torch.optim.Adam(theirs, lr=0.01, betas=(0.9, 0.99))
    ours = [p.clone() for p in start]
    adam = OwnAdam(ours, 0.01)
    for step in range(10):
        gradients: list[Tensor] = [normals(*p.shape, seed=10 + step).float() for p in start]
        adam.update(ours, gradients)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g
        optimizer.step()
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, their.detach(), rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing():
    p = [torch.ones(3)]
    adam = OwnAdam(p, 0.1)
    adam.update(p, [torch.full((3,), 2.0)])
    kept, state = p[0].clone(), copy.deepcopy(adam.state_dict())
    adam.update(p, [torch.tensor([1.0, torch.nan, 0.0])])
    assert torch.equal(p[0], kept) and all(torch.equal(value, state[name]) for name, value in adam.state_dict().items())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"jumps": 0}, "jumps"),
        ({"updates": 0}, "updates"),
        ({"fake_lr": 0.0}, "fake_lr"),
        ({"warmup": 1.5}, "warmup"),
        ({"teacher_steps": 0}, "teacher_steps"),
        ({"time_low": 0.99}, "time_low"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        DMDOptions(**options)

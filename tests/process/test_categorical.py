"""The categorical process against matrices: every law is checked by brute force over all states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.keep import (
    KEEP_SCHEDULES,
    CosineKeep,
    GeometricKeep,
    KeepSchedule,
    LinearKeep,
    LogLinearKeep,
    PolynomialKeep,
    keep_from_json,
    keep_to_json,
    make_keep,
)

KINDS = ("absorbing", "uniform", "mask-replace")
STEPS = [(1.0, 0.6), (0.8, 0.3), (0.8, 0.0), (1.0, 0.0), (0.31, 0.3)]


def random_probs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).softmax(-1)


def brute_force_reverse(process: CategoricalProcess, probs: Tensor, t: float, s: float) -> Tensor:
    """p(x_s | x_t) for every x_t by Bayes' rule with matrices: (states, states); rows of impossible x_t are NaN."""
    to_s, to_t = (process.transition_matrix(time, 0.0)[: process.classes] for time in (s, t))
    step = process.transition_matrix(t, s)
    # q(x_s | x_t, x_0 = j) q(x_t | x_0 = j) = q(x_s | j) q(x_t | x_s), indexed [x_t, j, x_s]
    joint = to_s[None] * step.T[:, None, :]
    law = joint / to_t.T[:, :, None]
    possible = to_t.T > 0
    weight = torch.where(possible, probs, 0.0)
    law = torch.where(possible[:, :, None], law, 0.0)
    return (weight[:, :, None] * law).sum(1) / weight.sum(-1, keepdim=True)


# -- keep schedules -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEEP_SCHEDULES)
def test_keep_starts_at_one_exactly_and_falls(name):
    keep = make_keep(name).keep(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert keep[0] == 1
    assert bool((keep.diff() < 0).all()) and keep[-1] >= 0


@pytest.mark.parametrize("name", ["linear", "cosine", "root-cosine", "polynomial"])
def test_own_schedules_end_at_zero_exactly(name):
    assert make_keep(name).keep(torch.tensor(1.0, dtype=torch.float64)) == 0


@pytest.mark.parametrize(
    ("name", "end"), [("loglinear", 1e-3), ("mdlm-cosine", 1e-3), ("cosine-squared", 1e-3), ("geometric", 0.36788)]
)
def test_mdlm_schedules_end_where_mdlm_ends_them(name, end):
    assert float(make_keep(name).keep(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(end, rel=1e-4)


def test_keep_formulas_at_a_third():
    t = torch.tensor(1 / 3, dtype=torch.float64)
    found = {name: float(make_keep(name).keep(t)) for name in KEEP_SCHEDULES}
    expected = {
        "linear": 2 / 3,
        "cosine": 0.5,  # 1 - cos(60 degrees)
        "root-cosine": 0.8619069725856341,  # cos(pi/2 (1/3 + .008) / 1.008) / cos(pi/2 .008 / 1.008)
        "polynomial": 8 / 9,
        "loglinear": 1 - 0.999 / 3,
        "mdlm-cosine": 0.001 + 0.999 * 3**0.5 / 2,
        "cosine-squared": 0.001 + 0.999 * 0.75,
        "mdlm-linear": 0.035673993347252395,  # exp(-10 / 3)
        "geometric": 0.990049833749168,  # exp(-0.01)
        "vq-diffusion": 0.99999 + 97 / 297 * (0.000009 - 0.99999),  # level 32 1/3 of 0..99
    }
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", KEEP_SCHEDULES)
def test_time_inverts_keep(name):
    schedule = make_keep(name)
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    # Where keep is flat the inverse is only as good as rounding in keep divided by the slope.
    bound = 1e-14 + 4e-16 / schedule.slope(t).abs().clamp(min=1e-8)
    assert bool(((schedule.time(schedule.keep(t)) - t).abs() <= bound).all())
    assert schedule.time(torch.ones((), dtype=torch.float64)) == 0


@pytest.mark.parametrize("name", KEEP_SCHEDULES)
def test_slope_is_the_derivative(name):
    schedule = make_keep(name)
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.keep(t).sum(), t)
    torch.testing.assert_close(schedule.slope(t).detach(), slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KEEP_SCHEDULES)
def test_drop_keeps_its_digits_near_the_clean_end(name):
    schedule = make_keep(name)
    t = torch.tensor([1e-9, 2e-9], dtype=torch.float64)
    drop = schedule.drop(t)
    power = {"polynomial": 2, "mdlm-cosine": 2, "cosine-squared": 2, "geometric": 0}.get(name, 1)
    assert float(drop[1] / drop[0]) == pytest.approx(2**power, rel=1e-7)


@pytest.mark.parametrize("name", KEEP_SCHEDULES)
def test_keep_schedule_survives_json(name):
    schedule = make_keep(name)
    assert keep_from_json(keep_to_json(schedule)) == schedule


def test_unknown_keep_schedule_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        make_keep("linaer")
    with pytest.raises(ValueError, match="does not take"):
        make_keep("linear", eps=0.1)
    with pytest.raises(ValueError, match="power"):
        PolynomialKeep(power=0.0)


# -- construction ---------------------------------------------------------------------------------


def test_states_and_mask_follow_the_kind():
    assert [CategoricalProcess(kind, 5).states for kind in KINDS] == [6, 5, 6]
    assert [CategoricalProcess(kind, 5).mask_id for kind in KINDS] == [5, None, 5]


@dataclass(frozen=True)
class RisingKeep(KeepSchedule):
    name: ClassVar[str] = "rising"

    def drop(self, t: Tensor) -> Tensor:
        return 4 * t * (1 - t)

    def slope(self, t: Tensor) -> Tensor:
        return 8 * t - 4

    def time(self, keep: Tensor) -> Tensor:
        return keep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "masking", "classes": 3}, "unknown"),
        ({"kind": "absorbing", "classes": 0}, "at least 1"),
        ({"kind": "mask-replace", "classes": 3, "mask_share": 1.0}, "absorbing"),
        ({"kind": "absorbing", "classes": 3, "keep": RisingKeep()}, "fall"),
        ({"kind": "uniform", "classes": 3, "keep": GeometricKeep()}, "prior"),
    ],
)
def test_bad_processes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CategoricalProcess(**arguments)


def test_absorbing_allows_schedules_that_stop_above_zero():
    assert CategoricalProcess("absorbing", 3, GeometricKeep()).states == 4


# -- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [LinearKeep(), CosineKeep(), PolynomialKeep(3.0)])
def test_forward_kernels_compose_and_are_stochastic(kind, keep):
    process = CategoricalProcess(kind, 4, keep)
    first, second, both = (process.transition_matrix(t, s) for t, s in ((0.4, 0.1), (0.9, 0.4), (0.9, 0.1)))
    torch.testing.assert_close(first @ second, both, rtol=0, atol=1e-14)
    assert bool((both >= 0).all())
    torch.testing.assert_close(both.sum(-1), torch.ones(process.states, dtype=torch.float64), rtol=0, atol=1e-14)


def test_mask_replace_loses_nine_to_masks_and_one_to_classes():
    law = CategoricalProcess("mask-replace", 4).transition_matrix(0.5, 0.0)[1]
    expected = torch.tensor([0.0125, 0.5125, 0.0125, 0.0125, 0.45], dtype=torch.float64)
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [(0.0, 0.0), (0.0, 0.35), (0.2, 0.7), (0.5, 1.0), (0.6, 0.6)])
def test_renoise_maps_uniforms_to_the_forward_law(kind, times):
    """On the midpoints of a fine grid of uniforms, frequencies are the law up to one cell per boundary."""
    process = CategoricalProcess(kind, 4)
    cells = 10_000
    uniform = (torch.arange(cells, dtype=torch.float64) + 0.5)[None] / cells
    for state in range(process.states):
        x = process.renoise(torch.full((1, cells), state), *times, uniform)
        found = torch.bincount(x[0], minlength=process.states) / cells
        law = process.transition_matrix(times[1], times[0])[state]
        torch.testing.assert_close(found.double(), law, rtol=0, atol=1.01 / cells)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_with_a_time_per_item_or_token_equals_float_times(kind):
    process = CategoricalProcess(kind, 5, CosineKeep())
    noise = KeyedNoise(0, range(3))
    x0 = (noise.uniform("data", 0, (7,)) * 5).long()
    uniform = noise.uniform("step", 0, (7,))
    times = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    rows = torch.stack([process.corrupt(x0[i : i + 1], float(times[i]), uniform[i : i + 1])[0] for i in range(3)])
    assert torch.equal(process.corrupt(x0, times, uniform), rows)
    per_token = torch.linspace(0, 1, 7, dtype=torch.float64).expand(3, 7)
    columns = [process.corrupt(x0[:, j : j + 1], float(per_token[0, j]), uniform[:, j : j + 1]) for j in range(7)]
    assert torch.equal(process.corrupt(x0, per_token, uniform), torch.cat(columns, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_clean_end_is_the_identity_and_noise_end_forgets(kind):
    process = CategoricalProcess(kind, 3)
    noise = KeyedNoise(1, range(4))
    x0, uniform = (noise.uniform("data", 0, (50,)) * 3).long(), noise.uniform("step", 0, (50,))
    assert torch.equal(process.corrupt(x0, 0.0, uniform), x0)
    assert torch.equal(process.corrupt(x0, 1.0, uniform), process.prior(uniform))
    assert torch.equal(process.corrupt(x0, 1.0, uniform), process.corrupt(2 - x0, 1.0, uniform))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_marginal_is_the_forward_matrix(kind, t):
    process = CategoricalProcess(kind, 4)
    probs = random_probs(2, 5, 4)
    expected = probs @ process.transition_matrix(t, 0.0)[:4]
    torch.testing.assert_close(process.marginal(probs, t), expected, rtol=0, atol=1e-15)
    per_item = process.marginal(probs, torch.full((2,), t, dtype=torch.float64))
    torch.testing.assert_close(per_item, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_outside_the_states_are_refused(kind):
    process = CategoricalProcess(kind, 4)
    for bad in (-1, process.states):
        x = torch.tensor([[0, bad]])
        with pytest.raises(ValueError, match="states 0 to"):
            process.corrupt(x, 0.5, torch.zeros(1, 2, dtype=torch.float64))
        with pytest.raises(ValueError, match="states 0 to"):
            process.reverse(x, random_probs(1, 2, 4), 0.5, 0.2)
    with pytest.raises(TypeError, match="int64"):
        process.corrupt(torch.zeros(1, 2), 0.5, torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="nothing"):
        process.corrupt(torch.zeros(1, 0, dtype=torch.int64), 0.5, torch.zeros(1, 0, dtype=torch.float64))


def test_forward_going_down_is_refused():
    process = CategoricalProcess("absorbing", 4)
    with pytest.raises(ValueError, match=r"forward from 0\.5 to 0\.2"):
        process.renoise(torch.zeros(1, 2, dtype=torch.int64), 0.5, 0.2, torch.zeros(1, 2, dtype=torch.float64))


# -- reverse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("keep", [LinearKeep(), CosineKeep()])
def test_reverse_is_bayes_rule(kind, t, s, keep):
    process = CategoricalProcess(kind, 4, keep, mask_share=0.7)
    x_t = torch.arange(process.states)[None]
    probs = random_probs(process.states, 4)
    found = process.reverse(x_t, probs[None], t, s)[0]
    expected = brute_force_reverse(process, probs, t, s)
    possible = expected.isfinite().all(-1)
    torch.testing.assert_close(found[possible], expected[possible], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(process.states, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_reverse_with_a_time_per_token_is_the_float_time_law_of_each(kind):
    process = CategoricalProcess(kind, 4)
    x_t = torch.tensor([[0, process.states - 1, 2, 3]])
    probs = random_probs(1, 4, 4)
    t = torch.tensor([[1.0, 0.9, 0.5, 0.3]], dtype=torch.float64)
    s = torch.tensor([[0.4, 0.9, 0.0, 0.2]], dtype=torch.float64)
    found = process.reverse(x_t, probs, t, s)
    for j in range(4):
        alone = process.reverse(x_t[:, j : j + 1], probs[:, j : j + 1], float(t[0, j]), float(s[0, j]))
        torch.testing.assert_close(found[:, j : j + 1], alone, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_a_step_to_the_same_time_is_the_identity(kind, t):
    process = CategoricalProcess(kind, 4)
    x_t = torch.arange(process.states)[None]
    identity = torch.eye(process.states, dtype=torch.float64)[None]
    probs = random_probs(1, process.states, 4)
    assert torch.equal(process.reverse(x_t, probs, t, t), identity)
    same = torch.full((1,), t, dtype=torch.float64)
    assert torch.equal(process.reverse(x_t, probs, same, same), identity)


def test_an_open_token_of_an_absorbing_process_stays_also_against_the_posterior():
    process = CategoricalProcess("absorbing", 3)
    probs = torch.tensor([[[0.0, 0.5, 0.5]]], dtype=torch.float64)
    for t in (1.0, 0.5):
        law = process.reverse(torch.tensor([[0]]), probs, t, 0.2)
        assert torch.equal(law, torch.tensor([[[1.0, 0, 0, 0]]], dtype=torch.float64))


def test_open_rate_is_the_share_of_masks_that_open():
    process = CategoricalProcess("absorbing", 3)
    assert process.open_rate(1.0, 0.75) == pytest.approx(0.25, abs=1e-15)
    assert process.open_rate(0.5, 0.0) == 1.0
    assert process.open_rate(0.0, 0.0) == 0.0
    rate = process.open_rate(torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.5]))
    assert torch.equal(rate, torch.tensor([0.25, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="reverse"):
        CategoricalProcess("mask-replace", 3).open_rate(1.0, 0.5)


def test_float32_probabilities_stay_float32():
    process = CategoricalProcess("mask-replace", 4)
    x_t = torch.tensor([[0, 4]])
    times = torch.tensor([0.9], dtype=torch.float64)
    exact = process.reverse(x_t, random_probs(1, 2, 4), 0.9, 0.5)
    for t, s in ((0.9, 0.5), (times, times - 0.4)):
        found = process.reverse(x_t, random_probs(1, 2, 4).float(), t, s)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


# -- SUBS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [3, 4])
def test_subs_carries_open_tokens_over_and_rules_the_mask_out(columns):
    process = CategoricalProcess("absorbing", 3)
    logits = torch.randn(2, 4, columns, generator=torch.Generator().manual_seed(0))
    x_t = torch.tensor([[0, 3, 2, 3], [3, 3, 1, 1]])
    probs = process.subs(logits, x_t).softmax(-1)
    assert probs.shape == (2, 4, 3)
    is_open = x_t < 3
    assert torch.equal(probs[is_open], torch.eye(3)[x_t[is_open]])
    torch.testing.assert_close(probs[~is_open], logits[..., :3].softmax(-1)[~is_open])


def test_open_tokens_have_no_loss_and_no_gradient():
    process = CategoricalProcess("absorbing", 3)
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x_t = torch.tensor([[0, 3, 2, 3]])
    x0 = torch.tensor([[0, 1, 2, 2]])
    loss = torch.nn.functional.cross_entropy(process.subs(logits, x_t).transpose(1, 2), x0, reduction="none")
    assert loss[0, 0] == 0 and loss[0, 2] == 0
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[0, [0, 2]], torch.zeros(2, 3))
    assert bool((logits.grad[0, [1, 3]] != 0).all())


def test_subs_belongs_to_absorbing_processes():
    with pytest.raises(ValueError, match="absorbing"):
        CategoricalProcess("uniform", 3).subs(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="columns"):
        CategoricalProcess("absorbing", 3).subs(torch.zeros(1, 1, 7), torch.zeros(1, 1, dtype=torch.int64))


def test_prior_of_each_kind():
    uniform = KeyedNoise(0, range(4)).uniform("init", 0, (2000,))
    assert bool((CategoricalProcess("absorbing", 3, LogLinearKeep()).prior(uniform) == 3).all())
    counts = torch.bincount(CategoricalProcess("uniform", 3).prior(uniform).flatten(), minlength=3) / 8000
    torch.testing.assert_close(counts, torch.full((3,), 1 / 3), rtol=0, atol=0.025)  # 4.7 standard errors
    counts = torch.bincount(CategoricalProcess("mask-replace", 3).prior(uniform).flatten()) / 8000
    torch.testing.assert_close(counts, torch.tensor([1 / 30] * 3 + [0.9]), rtol=0, atol=0.015)

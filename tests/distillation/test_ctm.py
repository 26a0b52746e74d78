"""Consistency trajectory models: where the losses are zero, what is compared, and what has a gradient."""

from __future__ import annotations

import pytest
import torch

from tests.distillation.exact import Tilted, batch_of, exact_denoiser, exact_map, expected_gradient
from undiffuse.distillation.ctm import CTM, ctm_times
from undiffuse.distillation.options import CTMOptions


@pytest.mark.parametrize("schedule", ["rf", "vp", "edm"])
def test_jumps_agree_at_the_exact_map_with_exact_paths(schedule):
    flow_map = exact_map(schedule)
    objective = CTM(flow_map, CTMOptions(denoising=0.0, levels=9), teacher=flow_map)
    losses = objective.score(flow_map, batch_of(objective, flow_map, 200))
    assert float(losses.per_sample.max()) < 1e-16
    assert losses.half_logsnr is not None and losses.half_logsnr.isfinite().all()


@pytest.mark.parametrize("taught", [True, False])
def test_paths_by_heun_err_less_with_more_levels(taught):
    """Heun's method has order 2, so squares fall as d^4: with doubled levels 16 times or so."""
    flow_map = exact_map("vp")
    means = []
    for levels in (16, 32):
        options = CTMOptions(denoising=0.0, levels=levels, solver_steps=1)
        objective = CTM(flow_map, options, teacher=exact_denoiser("vp") if taught else None)
        means.append(float(objective.score(flow_map, batch_of(objective, flow_map, 2000)).per_sample.mean()))
    assert means[0] / means[1] > 8


def test_the_teacher_walks_all_the_way_however_far_it_is():
    """Jumps over up to 63 levels agree as far as Heun's method is exact; a walk cut short would be far off."""
    flow_map = exact_map("vp")
    options = CTMOptions(denoising=0.0, levels=64, solver_steps=100)
    objective = CTM(flow_map, options, teacher=exact_denoiser("vp"))
    made = batch_of(objective, flow_map, 500)
    places = objective.places(made.extras["u"][:, 1:])
    assert int((places.t - places.u).max()) > 40
    assert float(objective.score(flow_map, made).per_sample.max()) < 1e-3


def test_the_expected_gradient_is_zero_at_the_exact_map():
    """The denoising loss within 3.5 standard errors (false alarm 0.2 %), the other exactly; a tilted map is far off."""
    held = Tilted(exact_map("rf"))
    objective = CTM(held, CTMOptions(levels=8), teacher=exact_map("rf"))
    mean, error = expected_gradient(objective, held)
    assert (mean.abs() < 3.5 * error + 1e-9).all()
    with torch.no_grad():
        held.tilt += 0.1
    mean, error = expected_gradient(objective, held, batches=10)
    assert float((mean / error).abs().max()) > 10


def test_jumps_alone_have_a_gradient_in_the_student_and_none_in_the_target():
    held = Tilted(exact_map("rf"))
    objective = CTM(held, CTMOptions(denoising=0.0), teacher=exact_map("rf"))
    with torch.no_grad():
        held.tilt += 0.1
    objective.score(held, batch_of(objective, held)).per_sample.mean().backward()
    assert held.tilt.grad is not None and float(held.tilt.grad.abs().min()) > 0
    assert all(p.grad is None for p in objective.parameters())


def test_places_are_in_order_and_near_each_other():
    objective = CTM(exact_map("rf"), CTMOptions(levels=6, solver_steps=2))
    u = batch_of(objective, exact_map("rf"), 2000).extras["u"]
    t, mid, s = objective.places(u[:, 1:])
    assert (t > mid).all() and (mid >= s).all() and (t - mid <= 2).all() and (mid >= 1).all()
    assert set(t.tolist()) == {2, 3, 4, 5, 6} and set(s.tolist()) == {0, 1, 2, 3, 4, 5}


def test_times_rise_from_clean_data_to_the_highest_level():
    schedule = exact_map("rf").process.schedule
    times = ctm_times(schedule, CTMOptions(levels=5, rho_min=0.01, rho_max=9.0))
    rho = torch.exp(-schedule.half_logsnr(times[1:]))
    assert float(times[0]) == 0 and (times.diff() > 0).all()
    torch.testing.assert_close(rho[[0, -1]], torch.tensor([0.01, 9.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"levels": 1}, "levels"), ({"solver_steps": 0}, "solver_steps"), ({"rho_min": 2.0, "rho_max": 1.0}, "rho_min"),
     ({"denoising": -1.0}, "denoising"), ({"target_decay": 1.0}, "decay")],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        CTMOptions(**options)

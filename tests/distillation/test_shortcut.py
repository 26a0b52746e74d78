"""Shortcut models: where their loss is zero, the grids of their steps, and how the target follows."""

from __future__ import annotations

import pytest
import torch

from tests.distillation.exact import SCHEDULES, Tilted, batch_of, exact_denoiser, exact_map, expected_gradient
from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import GaussianFlowMap
from undiffuse.distillation.options import ShortcutOptions
from undiffuse.distillation.shares import split_rows
from undiffuse.distillation.shortcut import Shortcut


def shortcut(schedule: str, **options) -> tuple[Shortcut, GaussianFlowMap]:
    flow_map = exact_map(schedule)
    return Shortcut(flow_map, ShortcutOptions(**options), teacher=exact_denoiser(schedule)), flow_map


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_jumps_are_one_at_the_exact_map(schedule):
    """Jumps above the finest and the diagonal have loss 0; the finest ones the error of one Euler step."""
    objective, flow_map = shortcut(schedule, share=0.5, finest=64)
    corrupted = batch_of(objective, flow_map, 128)
    t, s = objective.times(flow_map.process.schedule, corrupted.extras["u"], split_rows(corrupted))
    loss = objective.score(flow_map, corrupted).per_sample
    finest = (t - s > 0) & ((t - s) < 1.5 * 2 / 64)
    assert 0 < int(finest.sum()) < 64
    assert float(loss[~finest].max()) < 1e-15
    assert 1e-15 < float(loss[finest].max()) < 0.1


def test_the_error_of_the_finest_steps_falls_with_their_number():
    """An error of velocities of order d, squared: 4 times the steps bring 16 times less."""
    means = []
    for finest in (64, 256):
        objective, flow_map = shortcut("trig", share=0.5, finest=finest)
        corrupted = batch_of(objective, flow_map, 1024)
        t, s = objective.times(flow_map.process.schedule, corrupted.extras["u"], split_rows(corrupted))
        chosen = (t - s > 0) & ((t - s) * finest < 2.5)
        means.append(float(objective.score(flow_map, corrupted).per_sample[chosen].mean()))
    assert 9 < means[0] / means[1] < 25


def test_one_point_of_data_makes_every_step_exact():
    flow_map = GaussianFlowMap(normals(3, seed=3), torch.zeros(3, 3, dtype=torch.float64), process_of("rf"))
    objective = Shortcut(flow_map, ShortcutOptions(share=0.5, finest=4), teacher=flow_map)
    assert float(objective.score(flow_map, batch_of(objective, flow_map, 64)).per_sample.max()) < 1e-15


def test_from_data_the_expected_gradient_is_zero_at_the_exact_map():
    """Within 3.5 standard errors in 5 directions (false alarm 0.2 %) and Euler's 1e-9 at so many levels."""
    flow_map = exact_map("rf")
    held = Tilted(flow_map)
    objective = Shortcut(held, ShortcutOptions(finest=2**14))
    mean, error = expected_gradient(objective, held)
    assert (mean.abs() < 3.5 * error + 1e-9).all()
    with torch.no_grad():
        held.tilt += 0.1
    mean, error = expected_gradient(objective, held, batches=10)
    assert float((mean / error).abs().max()) > 10


def test_steps_are_those_of_grids_of_powers_of_two():
    objective, flow_map = shortcut("rf", finest=8)
    corrupted = batch_of(objective, flow_map, 512)
    rows, rest = split_rows(corrupted)
    t, s = objective.times(flow_map.process.schedule, corrupted.extras["u"], (rows, rest))
    jumps = (t - s)[rows]
    assert len(rows) == 128 and set(jumps.tolist()) == {1.0, 0.5, 0.25}
    assert ((t[rows] / jumps) % 1 == 0).all() and (s[rows] >= 0).all() and torch.equal(t[rest], s[rest])


def test_the_target_is_an_average_over_training():
    held = Tilted(exact_map("rf"))
    objective = Shortcut(held, ShortcutOptions(target_decay=0.75))
    with torch.no_grad():
        held.tilt += 1.0
    objective.after_step(held, 1)
    objective.after_step(held, 2)
    assert isinstance(objective.target, Tilted)
    torch.testing.assert_close(objective.target.tilt, torch.full_like(held.tilt, 1 - 0.75**2))
    assert not objective.target.tilt.requires_grad and int(objective.done) == 2
    assert Shortcut(held, ShortcutOptions(target_decay=0.0)).target is None


@pytest.mark.parametrize(
    ("options", "word"), [({"share": 1.0}, "share"), ({"finest": 100}, "finest"), ({"target_decay": 1.0}, "decay")]
)
def test_options_that_mean_nothing_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        ShortcutOptions(**options)

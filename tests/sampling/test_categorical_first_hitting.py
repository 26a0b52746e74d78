"""First-hitting sampling in the common loop: budgets, prefixes of different length, times, conditions, costs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from tests.networks.helpers import described
from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.errors import PlanError, UndiffuseError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.networks.transformer import Transformer
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import sample_categorical
from undiffuse.process.keep import CosineKeep
from undiffuse.sampling.constraints import Known
from undiffuse.sampling.first_hitting import FirstHitting
from undiffuse.sampling.loop import SampleResult, sample
from undiffuse.sampling.openings import group_bounds, opening_times

LENGTH = 6
MASK = 3
PREFIXES = torch.tensor(
    [
        [3, 3, 3, 3, 3, 3],
        [0, 1, 3, 3, 3, 3],
        [0, 1, 2, 2, 1, 3],
        [2, 2, 2, 1, 1, 0],  # fully known
        [3, 0, 3, 1, 3, 3],
    ]
)


def joint(classes: int = 3, length: int = LENGTH) -> JointDenoiser:
    logits = torch.randn((classes,) * length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return JointDenoiser(logits.flatten().softmax(0).reshape(logits.shape), CategoricalProcess("absorbing", classes))


class Recording(Wrapper):
    """Passes everything on and keeps the states and times it was asked about."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.times: list[Tensor] = []
        self.states: list[Tensor] = []

    def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
        self.times.append(torch.as_tensor(t).reshape(-1))
        self.states.append(x)
        return super().posterior(x, t, cond)  # type: ignore[arg-type, return-value]


def run(denoiser: Denoiser, items: range = range(5), start: Tensor | None = None, **options: object) -> SampleResult:
    names = [name for name in FirstHitting.__dataclass_fields__ if name in options]
    solver = FirstHitting(**{name: options.pop(name) for name in names})  # type: ignore[arg-type]
    return sample(
        denoiser,
        noise=KeyedNoise(0, items),
        shape=(LENGTH,),
        solver=solver,
        start=start,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("steps", range(1, LENGTH + 1))
def test_evaluations_are_the_steps_asked_for(steps):
    denoiser = Recording(joint())
    result = run(denoiser, steps=steps)
    assert result.nfe == len(denoiser.times) == steps
    assert bool((result.x < MASK).all())


def test_one_mask_opens_per_evaluation():
    result = run(joint(), trajectory=True)
    assert result.trajectory is not None
    assert (result.trajectory == MASK).sum(-1).tolist() == [[n] * 5 for n in range(LENGTH, -1, -1)]
    moved = result.trajectory[1:] != result.trajectory[:-1]
    assert bool((result.trajectory[:-1][moved] == MASK).all())  # an open token never changes


def test_groups_differ_by_at_most_one_mask():
    result = run(joint(), steps=4, trajectory=True)
    assert result.trajectory is not None
    left = (result.trajectory == MASK).sum(-1)[:, 0]
    assert (-left.diff()).tolist() == [2, 1, 2, 1]  # floor((j - 1) 4 / 6) = 0 0 1 2 2 3


def test_steps_that_equal_the_length_are_the_exact_sampler():
    assert torch.equal(run(joint()).x, run(joint(), steps=LENGTH).x)


def test_more_steps_than_tokens_are_cut_with_a_warning():
    with pytest.warns(UserWarning, match="6 evaluations are exact"):
        result = run(joint(), steps=50)
    assert result.nfe == LENGTH
    assert torch.equal(result.x, run(joint()).x)


# -- orders, groups, corrections ------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
def test_any_order_is_the_exact_sampler_where_masks_open_one_by_one(order):
    with pytest.warns(UserWarning, match="no effect"):
        assert torch.equal(run(joint(), order=order).x, run(joint()).x)


@pytest.mark.filterwarnings("ignore:order=")
@pytest.mark.parametrize("options", [{"order": 3}, {"order": 2, "space": "log"}, {"order": 2, "clock": "time"}])
def test_extrapolated_samples_do_not_depend_on_their_batch(options):
    """Rows with other numbers of masks, which take other numbers of steps, and corrections after them."""
    options = {**options, "steps": 3, "corrections": 2}
    together = run(joint(), start=PREFIXES, **options)
    for row in range(len(PREFIXES)):
        alone = run(joint(), range(row, row + 1), start=PREFIXES[row : row + 1], **options)
        assert torch.equal(alone.x[0], together.x[row])
        masks = int((PREFIXES[row] == MASK).sum())
        assert alone.nfe == (min(3, masks) + 2 if masks else 0)
    known = PREFIXES != MASK
    assert torch.equal(together.x[known], PREFIXES[known])


def test_the_clock_of_time_extrapolates_by_time():
    """Order 2 with a hand-made answer: p(tau) = p1 + (tau - t1) / (t1 - t0) (p1 - p0), clamped at 0."""
    solver, process = FirstHitting(steps=2, order=2, clock="time"), CategoricalProcess("absorbing", 3)
    plan = solver.prepare(process, None, torch.full((1, 4), 3), KeyedNoise(4, range(1)))
    stage = plan.stages[1]
    t0, t1 = (float(stage.t) for stage in plan.stages)
    tau = float(opening_times(process, torch.tensor([4]), KeyedNoise(4, range(1)).uniform("time", 0, (4,)))[0, 3])
    p0, p1 = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.6, 0.2, 0.2]))
    answers = tuple(p.log().expand(1, 4, 3) for p in (p1, p0))
    found = solver.law(stage, stage.positions, answers)
    torch.testing.assert_close(found[0, 0], p1)
    torch.testing.assert_close(found[0, 1], (p1 + (tau - t1) / (t1 - t0) * (p1 - p0)).clamp(min=0))


def test_cosine_groups_grow_and_every_evaluation_opens_one_at_least():
    count = torch.tensor([64, 9, 3, 0])
    bounds = group_bounds(count, 8, "cosine")
    widths = bounds.diff(dim=0)
    assert bounds[-1].tolist() == count.tolist()
    assert widths[:, 0].tolist() == [1, 4, 6, 8, 9, 12, 12, 12]  # 64 (1 - cos(pi k / 16)) rounded
    assert (widths[:, 1] > 0).all() and widths[:, 2].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert torch.equal(run(joint(), groups="cosine").x, run(joint()).x)


@pytest.mark.parametrize("wrong", [{"order": 4}, {"groups": "even"}, {"space": "logit"}, {"corrections": -1}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FirstHitting(**wrong)


# -- prefixes -------------------------------------------------------------------------------------


def test_rows_with_prefixes_of_different_length_are_each_the_row_alone():
    """Places, times, classes and cost of a row do not depend on the batch; finished rows wait."""
    for steps in (None, 3):
        together = run(joint(), start=PREFIXES, steps=steps, trajectory=True)
        assert together.trajectory is not None
        for row in range(len(PREFIXES)):
            alone = run(joint(), range(row, row + 1), start=PREFIXES[row : row + 1], steps=steps, trajectory=True)
            masks = int((PREFIXES[row] == MASK).sum())
            assert alone.nfe == min(steps or LENGTH, masks)
            assert alone.trajectory is not None
            assert torch.equal(together.trajectory[: alone.nfe + 1, row], alone.trajectory[:, 0])
            assert bool((together.trajectory[alone.nfe :, row] == alone.x).all())
        assert together.nfe == min(steps or LENGTH, LENGTH)


def test_known_positions_never_change():
    result = run(joint(), start=PREFIXES, trajectory=True)
    assert result.trajectory is not None
    known = PREFIXES != MASK
    assert bool((result.trajectory[:, known] == PREFIXES[known]).all())


def test_a_fully_known_start_is_returned_without_a_call():
    denoiser = Recording(joint())
    result = run(denoiser, range(1), start=PREFIXES[3:4])
    assert result.nfe == len(denoiser.times) == 0
    assert torch.equal(result.x, PREFIXES[3:4])


def test_a_constraint_on_known_tokens_equals_a_start_that_holds_them():
    started = run(joint(), start=PREFIXES, steps=3)
    constrained = run(joint(), constraints=[Known(PREFIXES, PREFIXES != MASK)], steps=3)
    assert torch.equal(started.x, constrained.x)
    assert started.nfe == constrained.nfe


def test_conditions_are_exact():
    """Two tokens that are always equal: the known one decides the other."""
    table = torch.eye(3, dtype=torch.float64) / 3
    start = torch.tensor([[0, 3], [3, 1], [2, 3]])
    result = sample(
        JointDenoiser(table, CategoricalProcess("absorbing", 3)),
        noise=KeyedNoise(0, range(3)),
        shape=(2,),
        solver=FirstHitting(),
        start=start,
    )
    assert result.x.tolist() == [[0, 0], [1, 1], [2, 2]] and result.nfe == 1


# -- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 4])
def test_a_call_is_made_at_the_first_opening_of_its_group(steps):
    """Times fall per row, agree with the exact run's at the first opening of each group, and end at 0 when done."""
    exact, grouped = Recording(joint()), Recording(joint())
    run(exact, start=PREFIXES[[0, 1]], items=range(2))
    run(grouped, start=PREFIXES[[0, 1]], items=range(2), steps=steps)
    times, called = torch.stack(exact.times), torch.stack(grouped.times)
    assert bool((times[:, 0].diff() < 0).all()) and bool((times > 0).sum(0).tolist() == [6, 4])
    firsts = {None: ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3]), 4: ([0, 2, 3, 5], [0, 1, 2, 3])}[steps]
    for row, first in enumerate(firsts):
        assert torch.equal(called[: len(first), row], times[first, row])
        assert bool((called[len(first) :, row] == 0).all())


def test_the_keep_schedule_changes_the_times_and_nothing_else():
    linear = Recording(joint())
    cosine = Recording(JointDenoiser(joint().table, CategoricalProcess("absorbing", 3, CosineKeep())))
    assert torch.equal(run(linear).x, run(cosine).x)
    drop = torch.sin(torch.pi / 2 * torch.stack(cosine.times))
    torch.testing.assert_close(drop, torch.stack(linear.times), rtol=0, atol=1e-14)


# -- batches, shapes, networks --------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 4])
def test_a_sample_does_not_depend_on_its_batch(steps):
    together = run(joint(), range(8), steps=steps).x
    alone = torch.cat([run(joint(), range(i, i + 1), steps=steps).x for i in range(8)])
    assert torch.equal(together, alone)


def test_one_token_is_plain_categorical_sampling_with_one_call():
    probs = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    noise = KeyedNoise(0, range(50))
    denoiser = JointDenoiser(probs, CategoricalProcess("absorbing", 3))
    result = sample(denoiser, noise=noise, shape=(1,), solver=FirstHitting())
    assert result.nfe == 1
    assert torch.equal(result.x[:, 0], sample_categorical(probs.expand(50, 3), noise.uniform("class", 0, (1,))[:, 0]))


class GridTokens(Denoiser):
    """Uniform classes on tokens of any shape."""

    def __init__(self, process: CategoricalProcess) -> None:
        super().__init__()
        self.process = process
        self.time_dependent = False

    def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
        return CategoricalPosterior(self.process.subs(torch.zeros(*x.shape, self.process.classes), x))


def test_tokens_may_lie_on_a_grid():
    denoiser = GridTokens(CategoricalProcess("absorbing", 4))
    result = sample(denoiser, noise=KeyedNoise(0, range(3)), shape=(2, 3), solver=FirstHitting(steps=4))
    assert result.x.shape == (3, 2, 3) and bool((result.x < 4).all()) and result.nfe == 4


def transformer(time_dependent: bool) -> CategoricalDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(3, 4, width=16, depth=1, heads=2, conditions=described(2), time_dependent=time_dependent)
        for parameter in network.parameters():  # the last layer starts at 0, which would hide the condition
            parameter.data = torch.randn_like(parameter) * 0.3
    return CategoricalDenoiser(network, CategoricalProcess("absorbing", 3), time_dependent=time_dependent)


@pytest.mark.parametrize("time_dependent", [False, True])
def test_guided_networks_sample_with_prefixes_at_twice_the_cost(time_dependent):
    denoiser = transformer(time_dependent)
    cond = {"label": torch.tensor([0, 1, 1, 0, 1])}
    plain = run(denoiser, start=PREFIXES, cond=cond)
    assert plain.nfe == LENGTH
    neutral = run(ClassifierFreeGuidance(denoiser, 1.0), start=PREFIXES, cond=cond)
    assert torch.equal(neutral.x, plain.x) and neutral.nfe == LENGTH
    guided = run(ClassifierFreeGuidance(denoiser, 3.0), start=PREFIXES, cond=cond)
    assert guided.nfe == 2 * LENGTH
    assert torch.equal(guided.x[PREFIXES != MASK], PREFIXES[PREFIXES != MASK])
    assert bool((guided.x < MASK).all())
    twice = run(ClassifierFreeGuidance(denoiser, 3.0, batched=False), start=PREFIXES, cond=cond)
    assert torch.equal(twice.x, guided.x)


# -- what does not fit ----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    with pytest.raises(PlanError, match="own times"):
        run(joint(), grid=torch.tensor([1.0, 0.0]))
    uniform = JointDenoiser(torch.full((3,) * LENGTH, 3.0**-LENGTH), CategoricalProcess("uniform", 3))
    with pytest.raises(PlanError, match="absorbing"):
        run(uniform)
    with pytest.raises(ValueError, match="states 0 to 3"):
        run(joint(), range(1), start=torch.tensor([[0, 1, 2, 3, 4, 3]]))
    with pytest.raises(ValueError, match="at least 1"):
        FirstHitting(steps=0)


def test_a_network_that_overflows_is_reported():
    class Broken(GridTokens):
        def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
            return CategoricalPosterior(torch.full((*x.shape, 3), torch.nan))

    with warnings.catch_warnings(), pytest.raises(UndiffuseError, match="5 of 5 samples"):
        run(Broken(CategoricalProcess("absorbing", 3)))

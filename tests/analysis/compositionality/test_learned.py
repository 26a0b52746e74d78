"""Learned weights of times: what must hold of any learner, and what this one finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from undiffuse.analysis.compositionality.labelled import labelled_task
from undiffuse.analysis.compositionality.learned import learn_on, learn_weights, split_items
from undiffuse.analysis.compositionality.measures import chosen_right
from undiffuse.analysis.compositionality.score import TaskErrors
from undiffuse.tasks.classify.table import ErrorTable

TIMES, CLASSES = 12, 4
PLACES = torch.linspace(3.0, -3.0, TIMES, dtype=torch.float64)


def noise(n: int, seed: int, informative: int | None = 5, lift: float = 3.0) -> tuple[Tensor, Tensor]:
    """Errors N(0, 1) of which one time tells the class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.randn(n, CLASSES, TIMES, generator=generator, dtype=torch.float64)
    answers = torch.randint(CLASSES, (n,), generator=generator)
    if informative is not None:
        errors[torch.arange(n), answers, informative] -= lift
    return errors, answers


def measured(errors: Tensor, answers: Tensor) -> TaskErrors:
    """The errors as those of a task."""
    task = labelled_task(torch.zeros(len(errors), 1), answers, [str(c) for c in range(CLASSES)])
    frame = ErrorTable(
        errors=torch.zeros(0, CLASSES, TIMES),
        times=torch.linspace(0.1, 0.9, TIMES, dtype=torch.float64),
        half_logsnr=PLACES,
        names=(),
        classes=torch.zeros(0),
        class_names=(),
        dims=1,
    )
    return TaskErrors(task=task, errors=tuple(e[None] for e in errors), null=None, frame=frame)


def values(errors: Tensor, answers: Tensor, steps: int = 60, **options: object) -> Tensor:
    """Learned weights; what is equal is so after few steps already."""
    return learn_weights(errors, answers, PLACES, steps=steps, **options).at(PLACES)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shots", "least"), [(40, 0.25), (200, 0.35)])
def test_the_informative_time_is_found(shots: int, least: float):
    """One of 12 times tells: it gets the largest weight, from 1/12, and accuracy on 2000 others rises above .85.

    The shares and accuracies of four draws lie well above the bounds (.35 and .44; .91 and .94).
    """
    unseen, right = noise(2000, seed=99)
    assert float(chosen_right(-unseen.mean(-1), right)[0].double().mean()) < 0.6
    for seed in range(2):
        found = values(*noise(shots, seed), steps=300, degree=None)
        assert int(found.argmax()) == 5 and float(found[5] / found.sum()) > least
        after = chosen_right(-(unseen * found).mean(-1), right)[0].double().mean()
        assert float(after) > 0.85


def test_noise_teaches_nothing():
    """1000 held-out items: the interval of what was learned holds chance at 4 standard errors."""
    found = learn_on(measured(*noise(1100, 3, informative=None)), shots=50, holdout=1000 / 1100)
    assert abs(found.learned.value - 1 / CLASSES) < 4 * found.learned.error
    assert found.learned.n == 1000


def test_constants_of_an_item_and_a_time_change_nothing():
    errors, answers = noise(40, 0)
    shift = 100 * torch.randn(40, 1, TIMES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(values(errors, answers), values(errors + shift, answers), atol=1e-6, rtol=0)
    # Other units of the errors change the temperature, which follows their spread.
    torch.testing.assert_close(values(errors, answers), values(1e-3 * errors, answers), atol=1e-6, rtol=0)


def test_polynomials_reach_from_equal_weights_to_free_ones():
    errors, answers = noise(40, 0)
    equal = values(errors, answers, degree=0)
    torch.testing.assert_close(equal, torch.ones_like(equal), atol=1e-9, rtol=0)
    free = values(errors, answers, degree=None)
    torch.testing.assert_close(values(errors, answers, degree=TIMES - 1), free, atol=1e-6, rtol=0)
    cubic = values(errors, answers, degree=3).log()
    cubes = torch.stack([PLACES**k for k in range(4)], 1)
    fit = cubes @ torch.linalg.lstsq(cubes, cubic[:, None]).solution
    torch.testing.assert_close(fit[:, 0], cubic, atol=1e-9, rtol=0)
    torch.testing.assert_close(values(errors, answers), values(errors, answers, degree=3))  # below 50 items
    assert float(free.mean()) == pytest.approx(1.0)
    assert bool((free > 0).all())


def test_items_with_fewer_candidates_count():
    """Candidates that are not there, NaN, change nothing: as if each item were alone with its own."""
    errors, answers = noise(30, 4)
    wide = torch.cat([errors, torch.full((30, 2, TIMES), torch.nan, dtype=torch.float64)], 1)
    torch.testing.assert_close(values(wide, answers), values(errors, answers), atol=1e-9, rtol=0)


def test_the_held_out_items_teach_nothing():
    found = measured(*noise(60, 5))
    test, _ = split_items(60, 0.5, 0)
    before = learn_on(found, shots=20)
    items = list(found.task.items)
    for i in test:
        items[i] = replace(items[i], answer=(items[i].answer + 1) % CLASSES)
    after = learn_on(replace(found, task=replace(found.task, items=tuple(items))), shots=20)
    assert after.weights == before.weights and after.learned != before.learned
    assert learn_on(found, shots=20, draw=1).weights != before.weights


def test_what_cannot_be_learned_from_is_refused():
    errors, answers = noise(40, 0)
    same = measured(errors, torch.zeros_like(answers))
    with pytest.raises(ValueError, match="all 20 shots are of one class"):
        learn_on(same)
    with pytest.warns(UserWarning, match="3 shots for 4 classes"):
        learn_on(measured(errors, answers), shots=3)
    with pytest.raises(ValueError, match="shots=21 must be from 1 to the 20"):
        learn_on(measured(errors, answers), shots=21)
    with pytest.raises(ValueError, match="the same errors"):
        values(torch.ones_like(errors), answers)
    with pytest.raises(ValueError, match="answer 4 of item 2 is out of range"):
        values(errors, answers.index_fill(0, torch.tensor([2]), 4))
    broken = errors.clone()
    broken[7, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="errors of item 7 are not numbers"):
        values(broken, answers)

"""Scores of tasks by models whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.classify.oracles import WIDE, ToldMean, draws, gaussian_classes, token_model
from undiffuse.analysis.compositionality.bench import ComposeReport, bench_compose, rows_of
from undiffuse.analysis.compositionality.gap import domain_gap, time_profile
from undiffuse.analysis.compositionality.labelled import labelled_task
from undiffuse.analysis.compositionality.score import score_task, spaced_times
from undiffuse.analysis.compositionality.task import Item, Task, read_task, text_key, write_task
from undiffuse.errors import UndiffuseError
from undiffuse.events import Advanced
from undiffuse.models.model import Model
from undiffuse.spec import DataSpec
from undiffuse.tasks.classify.weights import TimeWeights


@pytest.fixture(scope="module")
def model() -> Model:
    """Three Gaussian classes of equal covariance in 30 dimensions."""
    mixture = gaussian_classes([0.5, 0.5, 0.5])
    return Model(mixture, DataSpec(kind="vector", shape=(30,), classes=("a", "b", "c")))


@pytest.fixture(scope="module")
def classes(model: Model) -> Task:
    data, labels = draws(model.denoiser, 8)
    return labelled_task(data.float(), labels, model.spec.classes)


def test_weights_change_what_they_should(model: Model, classes: Task):
    found = score_task(model, classes, times=6)
    plain = found.scores()
    for one, other in zip(plain, found.scores([1.0] * 6), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert rows_of(found)[0].hits == rows_of(found, [3.5] * 6)[0].hits
    shifted = replace(found, errors=tuple(e + torch.rand(1, 1, 6) for e in found.errors))
    assert rows_of(shifted)[0].hits == rows_of(found)[0].hits


def test_equal_covariances_make_all_weights_equal(model: Model, classes: Task):
    """The expected error is alpha^2 sigma^2 |x - mu|^2 / q^2 and a constant: every positive weight decides as Bayes."""
    mixture = model.denoiser
    assert classes.data is not None
    times = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    alpha, sigma = WIDE.schedule.levels(times)
    apart = (
        (classes.data.double()[:, None] - torch.stack([part.mean for part in mixture.components])).square().sum(-1)
    )  # (n, C)
    expected = (alpha * sigma / (alpha**2 * 0.5 + sigma**2)) ** 2 * apart[..., None]
    found = score_task(model, classes, times=7)
    frame = replace(found.frame, half_logsnr=WIDE.schedule.half_logsnr(times))
    exact = replace(found, errors=tuple(expected[:, None].float()), frame=frame)
    nearest = apart.argmin(1)
    for seed in range(5):
        weights = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
        chosen = torch.stack([score[0].argmax() for score in exact.scores(weights.tolist())])
        assert torch.equal(chosen, nearest)


def test_the_report_follows_the_seed_alone(model: Model, classes: Task):
    other = replace(classes.take(range(5)), name="few")
    report = bench_compose(model, [classes, other], times=4, seed=3)
    again = bench_compose(model, [other, classes], times=4, seed=3, batch_size=5)
    assert report.row("classes") == again.row("classes") and report.row("few") == again.row("few")
    assert report.row("classes").hits[:5] == report.row("few").hits
    assert ComposeReport.from_json(report.to_json()).rows == report.rows
    assert report.csv().splitlines()[1].startswith("classes,object,accuracy,24,0.333")
    first = {"tasks": {"classes": report.settings["tasks"]["classes"]}}
    resumed = bench_compose(
        model, [classes, other], times=4, seed=3, before=replace(report, rows=report.rows[:1], settings=first)
    )
    assert resumed.rows == report.rows and set(resumed.errors) == {"few"}
    moved = replace(classes, data=classes.data + 0.1)  # type: ignore[operator]
    asked_anew = bench_compose(model, [moved], times=4, seed=3, before=report)
    assert set(asked_anew.errors) == {"classes"}  # other items under the same name
    with pytest.raises(ValueError, match="classes has other items in the other report"):
        report.compare(asked_anew)
    with pytest.raises(ValueError, match="two tasks are called few"):
        bench_compose(model, [other, other])


def told(types: str) -> Task:
    """Pictures at two places of ToldMean, and the texts that say which."""
    places = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    texts = tuple({"where": place} for place in places)
    items = {
        "pair": Item(images=(0, 1), texts=texts, type="pair"),
        "text_to_image": Item(images=(0, 1), texts=texts[1:], type="text_to_image", answer=1),
        "bias": Item(images=(0, 0, 1, 1), texts=texts, type="bias", image_groups=(0, 0, 1, 1), text_groups=(0, 1)),
    }
    # The second picture is far from everything: without contrast no text seems to fit it as well as the first.
    return Task(name=types, items=(items[types],), data=torch.stack([places[0], places[1] + 0.8]))


def test_pictures_are_compared_by_contrast():
    denoiser = ToldMean()
    model = Model(denoiser, denoiser.spec)
    for types in ("pair", "text_to_image"):
        rows = rows_of(score_task(model, told(types), times=8))
        assert all(row.value == 1.0 for row in rows), types
    raw = rows_of(score_task(model, told("text_to_image"), times=8, contrast=False))
    assert raw[0].value == 0.0
    (bias,) = rows_of(score_task(model, told("bias"), times=8))
    assert bias.value > 1 and bias.chance is None


def test_the_gap_of_pairs_compares_errors_not_contrasts():
    denoiser = ToldMean()
    model = Model(denoiser, denoiser.spec)
    found = score_task(model, told("pair"), times=4)
    errors = replace(found, null=None).choices()[0]
    torch.testing.assert_close(time_profile(found).right, (errors[0, 0] + errors[1, 1]) / 2)


def test_embeddings_that_print_alike_are_different_texts():
    one, other = torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1e-6])
    assert text_key({"where": one}) != text_key({"where": other})


def test_progress_moves_within_a_chunk_of_items(model: Model, classes: Task):
    heard: list[Any] = []
    score_task(model, classes.take(range(10)), times=3, batch_size=20, listener=heard.append)
    steps = [event.done for event in heard if isinstance(event, Advanced)]
    assert steps == sorted(steps) and steps[-1] == 10 and len(set(steps)) > 5


def test_norms_are_roots_of_the_squares(model: Model, classes: Task):
    few = classes.take([0, 9])
    squares, norms = (score_task(model, few, times=3, loss=word) for word in ("l2", "rms"))
    for a, b in zip(squares.errors, norms.errors, strict=True):
        torch.testing.assert_close(a.sqrt(), b)
    with pytest.raises(ValueError, match="belongs to squared errors"):
        norms.scores("x0")
    weights = TimeWeights.of(squares.half_logsnr, torch.ones(3), loss="l2")
    with pytest.raises(ValueError, match="loss='l2'"):
        norms.scores(weights)


def test_weights_fit_other_grids_and_are_refused_outside(model: Model, classes: Task):
    found = score_task(model, classes.take([0]), times=5)
    inside = TimeWeights.of(torch.tensor([-9.0, 9.0]), torch.ones(2))
    torch.testing.assert_close(found.scores(inside)[0], found.scores()[0])
    with pytest.raises(ValueError, match="outside the nodes"):
        found.scores(TimeWeights.of(torch.tensor([-0.1, 0.1]), torch.ones(2)))


def test_tokens_are_matched_too(tmp_path: Path):
    """Of tokens that are independent given the class, the bound of many draws decides as the likelihood does."""
    model = token_model("absorbing")
    tokens = torch.cat([model.denoiser.table[c].argmax(1)[None] for c in range(3)])  # type: ignore[union-attr,operator]
    task = labelled_task(tokens, torch.arange(3), model.spec.classes, "tokens")
    found = bench_compose(model, [task], times=6)
    likely = model.denoiser.log_prob(tokens).argmax(1)  # type: ignore[union-attr,operator]
    assert found.row("tokens").hits == tuple((likely == torch.arange(3)).tolist())
    again = read_task(write_task(task, tmp_path))
    assert bench_compose(model, [again], times=6).rows == found.rows


def test_the_grid_of_sd3():
    times, _ = spaced_times("shifted", 30)
    assert isinstance(times, list)
    assert [1000 * t for t in (*times[:3], times[-1])] == pytest.approx([66.0, 151.1, 226.7, 993.2], abs=0.5)
    assert sum(t > 0.74 for t in times) == 15  # half of them at high noise
    skewed, _ = spaced_times("logit-normal", 9)
    assert isinstance(skewed, list)
    assert skewed[4] == pytest.approx(0.5) and len(set(skewed)) == 9
    with pytest.raises(ValueError, match="use t, logsnr, shifted"):
        spaced_times("even", 3)


def test_single_times_and_the_gap(model: Model, classes: Task):
    found = score_task(model, classes, times=8)
    profile = time_profile(found)
    errors, answers = found.choices()
    assert float(profile.accuracy[3]) == float((errors[..., 3].argmin(1) == answers).double().mean())
    assert profile.best_time in profile.times.tolist()
    assert classes.data is not None
    far = replace(classes, name="far", data=classes.data + 1.0)
    near, gap = (domain_gap(model, task, found, times=8) for task in (classes, far))
    assert near.error_ratio == 1.0 and near.frechet == pytest.approx(0.0, abs=1e-6)
    assert gap.error_ratio > 1.5 and gap.frechet > gap.frechet_floor
    with pytest.raises(ValueError, match="measured at other times"):
        domain_gap(model, classes, found, times=4)


def test_an_error_that_is_no_number_names_its_item(model: Model, classes: Task):
    assert classes.data is not None
    data = classes.data.clone()
    data[7, 0] = torch.inf
    with pytest.raises((UndiffuseError, ValueError), match="item 7"):
        score_task(model, replace(classes, data=data), times=2)

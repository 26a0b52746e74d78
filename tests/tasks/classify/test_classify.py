"""Pruning, promises, invariances, candidates of all kinds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tasks.classify.oracles import DIMS, Counting, draws, gaussian_classes, log_joint, vector_model
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.errors import UndiffuseError
from undiffuse.events import Advanced, Started
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models.model import Model
from undiffuse.spec import DataSpec
from undiffuse.tasks.classify import classify, error_table
from undiffuse.tasks.classify.results import lead

COUNT = 6


@pytest.fixture(scope="module")
def hard() -> tuple[MixtureDenoiser, Tensor]:
    """Overlapping classes, so that rounds disagree."""
    mixture = gaussian_classes([0.5] * COUNT, spread=0.2)
    return mixture, draws(mixture, 6)[0]


def labelled_model(mixture: MixtureDenoiser) -> Model:
    names = tuple(f"class {c}" for c in range(len(mixture.components)))
    return Model(mixture, DataSpec(kind="vector", shape=mixture.shape, classes=names))


# -- pruning ----------------------------------------------------------------------------------------


def test_rounds_that_keep_all_change_no_bit(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    """Check 4."""
    mixture, x = hard
    full = classify(mixture, x, range(COUNT), times=24, keep=1)
    pruned = classify(mixture, x, range(COUNT), times=(4, 9, 24), keep=(COUNT, COUNT, 1))
    assert torch.equal(full.table.errors, pruned.table.errors)
    assert torch.equal(full.logits, pruned.logits)
    assert bool((pruned.rounds == 3).all())


@pytest.mark.parametrize("order", ["corput", "reference"])
def test_pruning_costs_what_it_promises_and_never_changes_a_winner_that_survives(
    hard: tuple[MixtureDenoiser, Tensor], order: Any
) -> None:
    """Check 4: NFE = sum over rounds of the candidates left times new times; twice for antithetic noise."""
    mixture = gaussian_classes([0.3, 0.4, 0.5, 0.6, 0.7, 0.8], spread=0.2)
    x = hard[1]
    full = classify(mixture, x, range(COUNT), times=30, keep=1)
    counting = Counting(mixture)
    found = classify(counting, x, range(COUNT), times=(1, 2, 30), keep=(4, 2, 1), order=order)
    added = {"corput": (1, 1, 28), "reference": (1, 2, 27)}[order]
    assert found.nfe == found.promised == COUNT * added[0] + 4 * added[1] + 2 * added[2]
    assert counting.rows == len(x) * found.nfe
    assert found.calls.tolist() == [found.nfe] * len(x)
    assert torch.equal(found.rounds.sort(1).values, torch.tensor([1, 1, 2, 2, 3, 3]).expand(len(x), -1))
    rows = torch.arange(len(x))
    stayed = found.rounds[rows, full.label] == 3
    assert 0 < int((~stayed).sum()) < len(x)  # otherwise this says nothing
    assert torch.equal(found.label[stayed], full.label[stayed])
    assert torch.equal(found.ranking[:, 0], found.label)
    assert bool((found.rounds.gather(1, found.ranking).diff(dim=1) <= 0).all())
    logits = found.logits.gather(1, found.ranking)
    assert float(logits.max()) == 0.0
    known = found.table.errors.isnan().logical_not().sum(-1)
    assert set(known[found.rounds == 1].tolist()) == {added[0]}
    assert set(known[found.rounds == 3].tolist()) == {30}


def test_a_race_asks_less_and_finds_the_same(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    full = classify(mixture, x, range(COUNT), times=40, keep=1, antithetic=True)
    counting = Counting(mixture)
    raced = classify(counting, x, range(COUNT), times=40, race=4, antithetic=True)
    assert counting.rows == int(raced.calls.sum())
    assert raced.nfe <= raced.promised
    assert float(raced.calls.double().mean()) < 0.6 * full.nfe
    assert float((raced.label == full.label).double().mean()) >= 1 - 1 / len(x)
    assert bool((raced.confidence > 4).any())


def test_a_race_gives_up_what_lags_by_so_many_standard_errors(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    """After the first round: whoever lags by more than 3 of them is out, and nobody else is."""
    mixture, x = hard
    raced = classify(mixture, x, range(COUNT), times=40, race=3)
    checked = 0
    for errors, rounds in zip(raced.table.errors, raced.rounds, strict=True):
        first = errors.isfinite().all(0)  # where somebody is given up at once, the times of the first round
        if bool((rounds == 1).any()) and int(first.sum()) == 5:
            means = errors[:, first].mean(1)
            leads = torch.tensor([lead((own - errors[means.argmin()])[first].double()) for own in errors])
            assert torch.equal(leads > 3, rounds == 1)
            checked += 1
    assert checked > 3


def test_defaults_are_a_quarter_for_all_then_the_better_half(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    found = classify(mixture, x[:2], range(COUNT))
    assert (found.settings["times"], found.settings["keep"]) == ((10, 40), (3, 1))
    assert found.nfe == 10 * COUNT + 30 * 3


# -- invariances ------------------------------------------------------------------------------------


def test_nothing_depends_on_the_order_of_candidates_items_or_batches(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    """Checks 5 and 6."""
    mixture, x = hard
    plain = error_table(mixture, x, range(COUNT), times=6)
    turned = error_table(mixture, x.flip(0), [3, 1, 0, 5, 2, 4], times=6, batch_size=7)
    torch.testing.assert_close(turned.errors.flip(0), plain.errors[:, [3, 1, 0, 5, 2, 4]], rtol=1e-12, atol=0)
    alone = error_table(mixture, x[4:5], range(COUNT), times=6)
    torch.testing.assert_close(alone.errors, plain.errors[4:5], rtol=1e-12, atol=0)
    other = error_table(mixture, x[:2], range(COUNT), times=6, seed=1)
    assert not torch.allclose(other.errors, plain.errors[:2])


def test_equal_candidates_tie_exactly_are_asked_once_and_are_flagged(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    """Check 5."""
    mixture, x = hard
    found = classify(mixture, x, [0, 1, 0, 2], times=8, keep=1)
    assert torch.equal(found.table.errors[:, 0], found.table.errors[:, 2])
    assert found.nfe == 3 * 8
    zero = found.label == 0
    assert bool(zero.any()) and not bool((found.label == 2).any())
    assert torch.equal(found.ties, zero)
    assert "several best classes" in found.notes[0]
    assert not bool(classify(mixture, x, [0, 1, 2], times=8, keep=1).ties.any())


def test_contrast_and_guidance(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    """The unconditional error is the same for all candidates; guidance costs two answers, as counted."""
    mixture, x = hard
    plain = classify(mixture, x, range(COUNT), times=8, keep=1)
    contrast = classify(mixture, x, range(COUNT), times=8, keep=1, contrast=True)
    assert torch.equal(contrast.label, plain.label)
    assert contrast.nfe == contrast.promised == (COUNT + 1) * 8
    null = contrast.table.null
    assert null is not None
    torch.testing.assert_close(contrast.scores - plain.scores, null.double().mean(-1, keepdim=True).expand(-1, COUNT))
    x_t = mixture.process.corrupt(x, 0.5, torch.zeros_like(x))
    assert not torch.allclose(
        mixture.mean(x_t, 0.5), mixture.mean(x_t, 0.5, mixture.embed({"label": torch.zeros(len(x)).long()}, len(x)))
    )
    guided = classify(mixture, x, range(COUNT), times=8, keep=1, wrap=lambda d: ClassifierFreeGuidance(d, 2.0))
    assert guided.nfe == 2 * plain.nfe
    assert not torch.equal(guided.table.errors, plain.table.errors)
    neutral = classify(mixture, x, range(COUNT), times=8, keep=1, wrap=lambda d: ClassifierFreeGuidance(d, 1.0))
    torch.testing.assert_close(neutral.table.errors, plain.table.errors)


# -- candidates -------------------------------------------------------------------------------------


def test_classes_by_name_by_number_and_by_default_are_the_same(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    model = labelled_model(mixture)
    found = classify(model, x[:4].float(), times=4, keep=1)
    assert found.class_names == tuple(f"class {c}" for c in range(COUNT))
    named = classify(model, x[:4].float(), ["class 4", "class 0"], times=4, keep=1)
    torch.testing.assert_close(named.table.errors, found.table.errors[:, [4, 0]])
    assert named.names == [("class 4", "class 0")[number] for number in named.label.tolist()]
    groups = classify(model, x[:4].float(), [[0, 1], 4], times=4, keep=1)
    assert groups.class_names == ("class 0", "class 4") and groups.table.classes.tolist() == [0, 0, 1]
    spoken = groups.class_logits()
    assert torch.equal(spoken[:, 0], groups.logits[:, :2].amax(1))
    mean = classify(model, x[:4].float(), [[0, 1], 4], times=4, keep=1, reduce="mean")
    torch.testing.assert_close(mean.class_logits()[:, 0], mean.logits[:, :2].exp().mean(1).log())


def test_vectors_are_candidates_and_further_conditions_hold_for_all() -> None:
    """N(scale m_c, v I) with exact denoisers: the nearest mean wins."""
    model = vector_model()
    means = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, -1.0, 0]])
    x = 2 * means + 0.1
    found = classify(model, x, means, condition="where", cond={"scale": [2.0]}, times=4, keep=1, antithetic=True)
    assert found.label.tolist() == [0, 1, 2] and found.class_names[0] == "1 0 0 0"
    scales = torch.tensor([[2.0], [1.0], [2.0]])
    options = {"times": 4, "keep": 1, "antithetic": True, "contrast": True}
    each = classify(model, means * scales + 0.05 * scales, {"where": means}, cond={"scale": scales}, **options)
    assert each.label.tolist() == [0, 1, 2]
    assert each.table.null is not None and bool((each.scores.amax(1) > 0).all())  # better than without the condition
    with pytest.raises(ValueError, match="say which the candidates are of"):
        classify(model, x, means)
    with pytest.raises(ValueError, match="by the candidates"):
        classify(model, x, {"where": means, "scale": torch.ones(3, 1)}, cond={"scale": [1.0]})


@pytest.mark.parametrize("contrast", [False, True])
def test_progress_counts_questions_batch_by_batch(hard: tuple[MixtureDenoiser, Tensor], contrast: bool) -> None:
    mixture, x = hard
    heard: list[Any] = []
    classify(
        mixture, x[:5], range(COUNT), times=(2, 6), keep=(2, 1), contrast=contrast, batch_size=7, listener=heard.append
    )
    total = 5 * (2 * (COUNT + contrast) + 4 * (2 + contrast))
    steps = [event.done for event in heard if isinstance(event, Advanced)]
    assert heard[0] == Started("classify", total, "question") and steps[-1] == total
    assert all(0 < b - a <= 7 for a, b in zip([0, *steps], steps, strict=False))


def test_probabilities_know_temperature_and_figures_know_the_truth(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    found = classify(mixture, x, range(COUNT), times=8, keep=1)
    truth = log_joint(mixture, x).argmax(1)
    torch.testing.assert_close(found.probabilities(3.0), (found.logits / 3.0).softmax(1))
    torch.testing.assert_close(found.scores * DIMS - found.scores.amax(1, keepdim=True) * DIMS, found.logits)
    share = found.accuracy(truth)
    confusion = found.confusion(truth)
    assert (
        share.value == float(confusion.trace()) / len(x)
        and confusion.sum(1).tolist() == torch.bincount(truth, minlength=COUNT).tolist()
    )
    assert 0 <= share.low < share.value < share.high <= 1
    assert found.accuracy(found.label).high == 1 > found.accuracy(found.label).low  # all right is not sure
    assert found.to_json(errors=True)["table"]["dims"] == DIMS
    with pytest.raises(ValueError, match="temperature"):
        found.probabilities(0.0)
    for said in (found.accuracy, found.confusion):
        with pytest.raises(ValueError, match=r"labels have shape .* give one each"):
            said(truth[:, None])
        with pytest.raises(ValueError, match=r"outside 0 to 5"):
            said(truth + COUNT)


# -- what is refused --------------------------------------------------------------------------------


class Broken(Denoiser):
    """Answers NaN to class 2."""

    def __init__(self, inner: MixtureDenoiser) -> None:
        super().__init__()
        self.inner, self.process = inner, inner.process

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Any:
        post = self.inner(x, t, cond)
        return post.replace(mean=torch.where(cond.vector[:, 2:3] > 0, torch.nan, post.mean))

    def embed(self, cond: Any, batch: int, drop: Any = None) -> Any:
        return self.inner.embed(cond, batch, drop)


def test_an_error_that_is_no_number_names_candidate_and_time(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    with pytest.raises(UndiffuseError, match=r"candidate '2' at t=0\.5 is not a number"):
        classify(Broken(mixture), x, range(COUNT), times=1, keep=1)


def test_one_candidate_is_the_answer_with_a_warning(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    with pytest.warns(UserWarning, match="only candidate"):
        found = classify(mixture, x, [3], times=4)
    assert found.label.tolist() == [0] * len(x) and bool(found.scores.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": []}, "no candidates"),
        ({"candidates": "class 0"}, "one word"),
        ({"candidates": [0, 9]}, "0 to 5"),
        ({"candidates": ["class 0", "clas 1"]}, "Did you mean 'class 1'"),
        ({"candidates": [[]]}, "no prompts"),
        ({"template": "a {}"}, "reads no words"),
        ({"condition": "lable"}, "Did you mean 'label'"),
        ({"times": (8, 4), "keep": (2, 1)}, "rise"),
        ({"times": 0}, "rise"),
        ({"times": 2.5}, "whole number"),
        ({"keep": 2.5}, "keep=2.5 must be a whole number"),
        ({"times": (4, 8), "keep": (2.5, 1)}, "keep=2.5 must be a whole number"),
        ({"times": (4, 8), "keep": (2, 3)}, "must not rise"),
        ({"times": (4, 8), "keep": (3, 2)}, "end in 1"),
        ({"times": (4, 8), "keep": 1}, "as long as each other"),
        ({"loss": "l3"}, "choose one of l2, l1, huber"),
        ({"target": "noise"}, "choose one of eps"),
        ({"weight": "elb"}, "Did you mean 'elbo'"),
        ({"weight": "elbo", "loss": "l1"}, "squared errors"),
        ({"weight": [1.0, 2.0]}, "each of 40 times"),
        ({"order": "random"}, "corput"),
        ({"race": 0.0}, "standard errors"),
        ({"reduce": "sum"}, "'max' or 'mean'"),
        ({"between": (0.8, 0.2)}, "lower first"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"sample": 4}, "unknown option"),
        ({"method": "vlb"}, "choose one of errors, ode, elbo"),
        ({"method": "ode", "loss": "l1"}, "loss does not belong"),
        ({"method": "ode", "order": "reference"}, "order does not belong"),
        ({"method": "ode", "cond": {"label": [0]}}, "given in cond and by the candidates"),
        ({"likelihood": {}}, "method='ode'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    hard: tuple[MixtureDenoiser, Tensor], options: dict[str, Any], message: str
) -> None:
    mixture, x = hard
    with pytest.raises(ValueError, match=message) as caught:
        classify(labelled_model(mixture), x[:2].float(), **options)
    assert "\n" not in str(caught.value)


def test_data_and_models_that_do_not_fit_are_refused(hard: tuple[MixtureDenoiser, Tensor]) -> None:
    mixture, x = hard
    model = labelled_model(mixture)
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        classify(model, x[:2, :7].float())
    with pytest.raises(ValueError, match="item 1 of the data is not finite"):
        classify(model, torch.stack([x[0], x[0] * torch.nan]).float())
    with pytest.raises(ValueError, match="trained without conditions"):
        classify(Model(mixture, DataSpec(kind="vector", shape=(DIMS,))), x[:2].float())
    with pytest.raises(TypeError, match="not int"):
        classify(3, x)

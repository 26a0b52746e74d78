from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.networks.helpers import randomise
from undiffuse.analysis import log_likelihood
from undiffuse.data import TensorDataset, TextDataset, open_data, split
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.errors import DataError
from undiffuse.events import Advanced, Event, Started
from undiffuse.metrics import Evaluation, evaluate, ngram_bits
from undiffuse.metrics.evaluation import conditions_to_ask
from undiffuse.metrics.tokens import MOST_WINDOWS
from undiffuse.models import Model
from undiffuse.networks import TransformerOptions, build_network
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.spec import ConditionSpec, DataSpec


class Replay:
    """A perfect model: it draws from given real items, in data units; with labels, of the class asked for."""

    def __init__(self, spec: DataSpec, x: Tensor, labels: Tensor | None = None, noise: float = 0.0) -> None:
        self.spec, self.x, self.labels, self.noise = spec, x, labels, noise
        self.calls: list[dict[str, Any]] = []

    def sample(self, n: int, *, seed: int = 0, cond: Any = None, guidance: Any = None, **rest: Any) -> Tensor:
        self.calls.append({"n": n, "seed": seed, "cond": cond, "guidance": guidance, **rest})
        rng = np.random.default_rng(seed)
        if cond is None or self.labels is None:
            rows = rng.integers(0, len(self.x), n)
        else:
            rows = np.array(
                [rng.choice(np.flatnonzero(self.labels.numpy() == label)) for label in cond["label"].tolist()]
            )
        x = self.x[torch.from_numpy(rows)]
        return x if self.spec.is_discrete else x + self.noise * torch.from_numpy(rng.normal(size=x.shape)).float()


class Coin(Replay):
    """A token model whose bound is one nat per token; it remembers what it was asked about."""

    def elbo(self, tokens: Tensor) -> tuple[float, float]:
        assert tokens.dtype == torch.int64 and tokens.ndim == 2
        self.read = tokens.numpy()
        return 1.0, 0.01


def _points(n: int, seed: int, shift: float = 0.0) -> TensorDataset:
    data = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) + shift
    return TensorDataset(data=data, spec=DataSpec(kind="vector", shape=(2,)))


@pytest.fixture(scope="module")
def digits() -> Evaluation:
    train, held_out = split(open_data("digits"))
    batch = train.batch(torch.arange(len(train)))
    model = Replay(train.spec, train.spec.from_model(batch["x"]), batch["cond"]["label"], noise=0.5)
    return evaluate(model, train, held_out=held_out, n=500, seed=3, guidance=[1.0, 2.0], steps=20)


def test_digits_get_agreement_distance_and_memorisation_at_each_scale(digits):
    names = ["label agreement", "Frechet distance / floor", "Frechet distance", "KID", "precision", "recall"]
    names += ["nearest distance, train / held-out", "closer to train", "near-duplicates"]
    assert [(row.name, row.scale) for row in digits.rows] == [(name, scale) for scale in (1.0, 2.0) for name in names]
    assert digits["label agreement"].value > 0.98
    own = digits["label agreement"].floor
    assert own == pytest.approx(0.99, abs=0.02)
    assert f"is right for {own:.4f} ±" in digits["label agreement"].note  # the judge states its own accuracy
    assert 0.3 < digits["Frechet distance / floor"].value < 1.5
    assert digits["near-duplicates"].value > 400  # a model that replays its training set is found out
    assert digits["closer to train"].value > 0.55


def test_digits_come_with_pictures_and_curves(digits):
    assert list(digits.pictures) == ["samples, guidance 1", "samples, guidance 2", "real training data"]
    assert all(grid.dtype == np.uint8 and grid.ndim == 3 for grid in digits.pictures.values())
    assert digits.series["guidance"]["scale"] == [1.0, 2.0]
    assert len(digits.series["nearest"]["to_train"]) == 500
    assert digits.settings == {"steps": 20}


def test_the_table_has_a_cell_for_each_column_and_json_gives_the_evaluation_back(digits):
    assert all(len(row) == len(Evaluation.columns) for row in digits.table())
    again = Evaluation.from_json(json.loads(json.dumps(digits.to_json(), allow_nan=False)))
    assert (again.rows, again.series, again.n) == (digits.rows, digits.series, 500)
    assert again.table() == digits.table()


def test_labels_are_asked_for_in_the_proportions_of_the_data():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    x = torch.randn(100, 1, 3, 3, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    dataset = TensorDataset(
        data=x, spec=DataSpec(kind="image", shape=(1, 3, 3), classes=("a", "b", "c")), labels=labels
    )
    model = Replay(dataset.spec, x, labels)
    evaluate(model, dataset, held_out=dataset, n=50, metrics=["agreement"])
    (call,) = model.calls
    assert call["guidance"] == 1.0 and call["n"] == 50
    assert torch.bincount(call["cond"]["label"]).tolist() == [30, 15, 5]


def test_vectors_get_energy_and_sliced_wasserstein_beside_their_floor():
    train, held_out = _points(3000, 0), _points(1000, 1)
    fresh = evaluate(Replay(train.spec, _points(1000, 2).data), train, held_out=held_out)
    away = evaluate(Replay(train.spec, _points(1000, 2, shift=0.5).data), train, held_out=held_out)
    for name in ("energy distance / floor", "sliced Wasserstein / floor"):
        assert fresh[name].value < 2.0 < away[name].value
        assert "real v real" in fresh[name].note
    assert abs(fresh["energy distance"].value) < 0.01 < 0.1 < away["energy distance"].value
    assert set(fresh.series["scatter"]) == {"samples_x", "samples_y", "data_x", "data_y"}


def test_images_without_labels_use_principal_components():
    x = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(data=x, spec=DataSpec(kind="image", shape=(1, 4, 4)))
    model = Replay(dataset.spec, x)
    found = evaluate(model, *split(dataset, 0.25)[:1], held_out=split(dataset, 0.25)[1], n=100)
    assert found.rows[0].name == "Frechet distance / floor" and "principal" in found.rows[0].note
    assert model.calls[0]["cond"] is None and model.calls[0]["guidance"] is None


def _text(n: int = 20_000) -> tuple[TextDataset, TextDataset]:
    chain = np.cumsum(np.random.default_rng(0).random(n) < 0.2) % 3
    spec = DataSpec(kind="tokens", shape=(20,), vocabulary=("a", "b", "\n"))
    train, held_out = split(TextDataset(tokens=torch.from_numpy(chain.astype(np.uint8)), spec=spec))
    return train, held_out


def test_tokens_get_bits_ngrams_and_the_statistics_of_samples():
    train, held_out = _text()
    model = Coin(train.spec, held_out.batch(torch.arange(len(held_out)))["x"])
    found = evaluate(model, train, held_out=held_out, n=60)
    rate = -0.8 * math.log2(0.8) - 0.2 * math.log2(0.2)
    assert found["held-out text"].value == pytest.approx(1 / math.log(2))
    assert found["held-out text"].error == pytest.approx(0.01 / math.log(2))
    assert found["held-out text, 2-gram"].value == pytest.approx(rate, abs=0.1)
    assert found["unigram entropy"].value == pytest.approx(math.log2(3), abs=0.05)
    # Both distances are sums over the six bigrams that occur, each with a relative spread of about a third.
    assert 0.3 < found["bigram distance / floor"].value < 3.0
    assert found["samples under the 3-gram"].value == pytest.approx(found["samples under the 3-gram"].floor, abs=0.15)
    assert len(found.texts) == 4 and all(len(text) == 20 and set(text) <= set("ab\n") for text in found.texts)


def test_a_model_that_repeats_itself_is_found_out_though_each_sample_is_plausible():
    train, held_out = _text()
    model = Coin(train.spec, torch.zeros(1, 20, dtype=torch.int64))
    found = evaluate(model, train, held_out=held_out, n=60, metrics=["unigrams", "bigrams", "plausibility"])
    assert found["unigram entropy"].value == 0.0 < 1.5 < found["unigram entropy"].floor
    assert found["bigram distance / floor"].value > 5
    assert found["samples under the 3-gram"].value < found["samples under the 3-gram"].floor - 0.3


def test_bits_alone_need_no_samples():
    train, held_out = _text()
    model = Coin(train.spec, torch.zeros(0, 20, dtype=torch.int64))
    found = evaluate(model, train, held_out=held_out, metrics="bits")
    assert model.calls == [] and found.texts == () and len(found.rows) == 4
    assert found.rows[1].value == pytest.approx(2 ** found.rows[0].value)


def test_the_model_and_the_ngrams_read_the_same_held_out_text_however_many_samples_are_drawn():
    train, held_out = _text()
    model = Coin(train.spec, torch.zeros(0, 20, dtype=torch.int64))
    found = evaluate(model, train, held_out=held_out, n=7, metrics="bits")
    assert len(model.read) == len(held_out) == 100  # all of it
    for order in (2, 3):
        expected = ngram_bits(train.tokens, model.read, 3, order)
        assert found[f"held-out text, {order}-gram"].value == pytest.approx(expected, abs=1e-12)


def test_of_much_held_out_text_a_part_is_read():
    train, held_out = _text(20 * MOST_WINDOWS * 11)
    model = Coin(train.spec, torch.zeros(0, 20, dtype=torch.int64))
    assert len(held_out) > MOST_WINDOWS
    evaluate(model, train, held_out=held_out, metrics="bits")
    assert model.read.shape == (MOST_WINDOWS, 20)


def test_a_source_is_opened_and_split_as_in_training():
    train, held_out = split(open_data("moons"))
    model = Replay(train.spec, train.spec.from_model(held_out.batch(torch.arange(len(held_out)))["x"]))
    sampling = {"n": 200, "metrics": ["sliced-wasserstein"]}
    assert evaluate(model, "moons", **sampling).rows == evaluate(model, train, held_out=held_out, **sampling).rows


def test_progress_is_reported_once_per_metric_and_scale():
    events: list[Event] = []
    train = _points(50, 0)
    evaluate(Replay(train.spec, train.data), train, held_out=_points(50, 1), n=20, listener=events.append)
    assert [event.total for event in events if isinstance(event, Started)] == [2]
    assert [event.done for event in events if isinstance(event, Advanced)] == [1, 2]


def test_bad_requests_are_refused_in_words():
    train, held_out = _points(50, 0), _points(50, 1)
    model = Replay(train.spec, train.data)
    with pytest.raises(ValueError, match="Did you mean 'energy'"):
        evaluate(model, train, held_out=held_out, metrics=["enrgy"])
    with pytest.raises(ValueError, match="leave guidance out"):
        evaluate(model, train, held_out=held_out, guidance=[2.0])
    with pytest.raises(ValueError, match="leave 'agreement' out"):
        evaluate(model, train, held_out=held_out, metrics="agreement")
    with pytest.raises(ValueError, match="at least 2 samples"):
        evaluate(model, train, held_out=held_out, n=1)
    with pytest.raises(DataError, match="larger holdout"):
        evaluate(model, train, held_out=_points(1, 1))
    with pytest.raises(DataError, match="vector items of shape"):
        evaluate(Replay(DataSpec(kind="vector", shape=(3,)), train.data), train, held_out=held_out)
    with pytest.raises(ValueError, match="no elbo"):
        tokens, unseen = _text()
        evaluate(Replay(tokens.spec, torch.zeros(5, 20, dtype=torch.int64)), tokens, held_out=unseen, metrics="bits")


def test_samples_that_are_not_numbers_stop_the_evaluation():
    train = _points(50, 0)
    with pytest.raises(ValueError, match="NaN or infinite values in 20 of 20 rows"):
        evaluate(Replay(train.spec, train.data * math.nan), train, held_out=_points(50, 1), n=20)


SHAPES = {"image": (1, 4, 4), "video": (3, 1, 4, 4), "volume": (1, 3, 4, 4), "signal": (2, 12)}


def _normal(kind: str, n: int, seed: int) -> TensorDataset:
    shape = SHAPES[kind]
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(data=x, spec=DataSpec(kind=kind, shape=shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(SHAPES))
def test_every_kind_gets_figures_beside_those_of_real_data(kind):
    train, held_out = _normal(kind, 400, 0), _normal(kind, 200, 1)
    model = Replay(train.spec, _normal(kind, 5000, 2).data)  # so many that hardly any is drawn twice
    names = ["frechet", "kid", "precision-recall", "density-coverage", "mmd", "two-sample"]
    found = evaluate(model, train, held_out=held_out, n=150, metrics=names)
    assert 0.5 < found["Frechet distance / floor"].value < 2.0
    row = found["Frechet distance"]
    assert row.interval is not None and row.floor is not None
    assert abs(row.value) < 5 * row.error and row.interval[1] - row.interval[0] == pytest.approx(2 * 1.96 * row.error)
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name].value == pytest.approx(found[name].floor, abs=0.35)
    assert found["told from real"].value == pytest.approx(0.5, abs=0.12) and "p = " in found["told from real"].note
    away = evaluate(Replay(train.spec, model.x + 1.0), train, held_out=held_out, n=150, metrics=names)
    for name in ("KID", "MMD²"):
        assert away[name].value > 5 * away[name].error > 0 and abs(found[name].value) < 5 * found[name].error
    assert away["told from real"].value > 0.9
    assert away["Frechet distance"].interval[0] > found["Frechet distance"].interval[1]


def test_video_is_compared_by_clips_and_by_frames():
    train, held_out = _normal("video", 200, 0), _normal("video", 100, 1)
    found = evaluate(Replay(train.spec, _normal("video", 100, 2).data), train, held_out=held_out, n=80)
    assert "changes between their frames" in found["Frechet distance / floor"].note
    assert 0.3 < found["Frechet distance of frames / floor"].value < 3.0
    with pytest.raises(ValueError, match="leave 'frames' out"):
        points = _normal("signal", 100, 0)
        evaluate(Replay(points.spec, points.data), points, held_out=points, metrics="frames")


def test_few_images_are_warned_of_and_hardly_any_refused():
    train, held_out = _normal("image", 3000, 0), _normal("image", 2100, 1)
    model = Replay(train.spec, train.data)
    few = evaluate(model, train, held_out=held_out, n=100, metrics="frechet")
    assert len(few.warnings) == 1 and "read it by its interval" in few.warnings[0]
    assert evaluate(model, train, held_out=held_out, n=2048, metrics="frechet").warnings == ()
    with pytest.raises(ValueError, match="has no interval"):
        evaluate(model, train, held_out=held_out, n=3, metrics="frechet")


def test_intervals_stand_in_the_table_and_survive_json():
    train, held_out = _normal("image", 100, 0), _normal("image", 50, 1)
    found = evaluate(Replay(train.spec, train.data), train, held_out=held_out, n=50, metrics="frechet")
    low, high = found["Frechet distance"].interval
    assert found.table()[1][3] == f"{low:.3g} to {high:.3g}"
    again = Evaluation.from_json(json.loads(json.dumps(found.to_json())))
    assert (again.rows, again.warnings) == (found.rows, found.warnings)


def test_the_order_of_real_items_changes_nothing_but_rounding():
    data = open_data("digits")
    train, held_out = split(data)
    model = Replay(train.spec, train.spec.from_model(held_out.batch(torch.arange(len(held_out)))["x"]))
    turned = held_out.take(torch.arange(len(held_out)).flip(0))
    first, second = (
        evaluate(model, train, held_out=unseen, n=100, metrics="kid", features="pca") for unseen in (held_out, turned)
    )
    assert first["KID"].value == second["KID"].value


def test_held_out_data_may_be_another_source_and_features_another_extractor(tmp_path):
    train, held_out = _points(60, 0), _points(40, 1)
    np.save(tmp_path / "held-out.npy", held_out.data.numpy())
    model = Replay(train.spec, train.data)
    expected = evaluate(model, train, held_out=held_out, n=30, metrics="frechet", features="pca")
    found = evaluate(model, train, held_out=str(tmp_path / "held-out.npy"), n=30, metrics="frechet", features="pca")
    assert [row.value for row in found.rows] == pytest.approx([row.value for row in expected.rows])

    class First:
        def fit(self, x, labels=None):
            raise AssertionError("given extractors are fitted")

        def features(self, x):
            return np.asarray(x, dtype=float)[:, :1]

    given = evaluate(model, train, held_out=held_out, n=30, metrics="kid", features=First())
    assert "First features" in given["KID"].note
    with pytest.raises(ValueError, match="use pca"):
        evaluate(model, train, held_out=held_out, features="dinov2:x", metrics="frechet")


def test_samples_are_asked_for_with_the_conditions_of_real_items() -> None:
    """Each asked row is the conditions of one item, labels rise, and what is never dropped is left alone."""
    age = ConditionSpec(kind="vector", width=1)
    augment = ConditionSpec(kind="vector", width=2, null="zero")
    spec = DataSpec(kind="vector", shape=(1,), classes=("a", "b"), cond={"age": age, "augment": augment})
    numbers = torch.arange(10.0)[:, None]
    data = TensorDataset(
        data=numbers, spec=spec, labels=torch.arange(10) % 2, cond={"age": numbers, "augment": torch.zeros(10, 2)}
    )
    asked = conditions_to_ask(spec, data, (torch.arange(10) % 2).numpy(), 25, seed=0)
    assert set(asked) == {"label", "age"} and len(asked["age"]) == 25
    assert torch.equal(asked["label"], asked["age"][:, 0].long() % 2)
    assert bool((asked["label"].diff() >= 0).all()) and len(asked["age"].unique()) == 10


def test_a_model_of_other_conditions_than_labels_is_evaluated_over_guidance_scales() -> None:
    spec = DataSpec(kind="vector", shape=(2,), cond={"age": ConditionSpec(kind="vector", width=1)})
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(data=x, spec=spec, cond={"age": x[:, :1]})
    model = Replay(spec, x)
    evaluate(model, data, holdout=20, n=20, guidance=(1.0, 2.0), metrics=["energy"])
    assert [call["guidance"] for call in model.calls] == [1.0, 2.0]
    assert all(set(call["cond"]) == {"age"} for call in model.calls)


def test_bits_of_a_conditional_token_model_are_those_given_the_conditions():
    """By hand: the mean of a bound per label, each row given its own; the null would be another figure."""
    spec = DataSpec(kind="tokens", shape=(5,), vocabulary=tuple("abc"), classes=("x", "y"))
    process = CategoricalProcess("absorbing", 3)
    backbone = randomise(build_network(TransformerOptions(width=16, depth=1, heads=2), spec, states=4))
    model = Model(CategoricalDenoiser(backbone, process, spec=spec), spec)
    tokens = torch.randint(0, 3, (40, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    train = TensorDataset(data=tokens[:20], spec=spec, labels=labels[:20])
    held_out = TensorDataset(data=tokens[20:], spec=spec, labels=labels[20:])
    row = evaluate(model, train, held_out=held_out, metrics="bits", n=2)["held-out text"]
    order = torch.from_numpy(np.random.default_rng(0).permutation(20)) + 20
    told, null = model.elbo(tokens[order], cond={"label": labels[order]}), model.elbo(tokens[order])
    assert row.value == pytest.approx(told.mean / math.log(2)) and row.error == pytest.approx(
        told.standard_error / math.log(2)
    )
    assert "given their conditions" in row.note
    assert abs(told.mean - null.mean) > 1e-3
    one_by_one = [model.elbo(tokens, draws=4, cond={"label": name}) for name in ("x", "y")]
    found = log_likelihood(model, tokens, draws=4, cond={"label": "y"})
    assert found.nats.mean / 5 == pytest.approx(one_by_one[1].mean, rel=1e-5) != pytest.approx(one_by_one[0].mean)
    with pytest.raises(ValueError, match="label 'z' does not exist"):
        model.elbo(tokens, cond={"label": "z"})

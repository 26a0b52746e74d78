from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.data import TensorDataset, TextDataset, open_data, split
from undiffuse.errors import DataError
from undiffuse.events import Advanced, Event, Started
from undiffuse.metrics import Evaluation, evaluate, ngram_bits
from undiffuse.metrics.tokens import MOST_WINDOWS
from undiffuse.spec import DataSpec


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
    names = ["label agreement", "Frechet distance / floor", "nearest distance, train / held-out"]
    names += ["closer to train", "near-duplicates"]
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
    assert model.calls == [] and found.texts == () and len(found.rows) == 3


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

"""The held-out loss: the right number, the same draws every time, and nothing else disturbed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.tiny import images, tiny_trainer, vectors
from undiffuse.data import TensorDataset
from undiffuse.denoisers import CategoricalDenoiser, GaussianDenoiser
from undiffuse.process import GaussianProcess, make_schedule
from undiffuse.spec import DataSpec
from undiffuse.training.denoising import DenoisingObjective
from undiffuse.training.log import read_log
from undiffuse.training.options import TrainOptions
from undiffuse.training.run import train
from undiffuse.training.time_samplers import FrameTimes, ImportanceTimes, TimeSampler, UniformTimes
from undiffuse.training.validation import Validation, make_validation
from undiffuse.training.weights import LossWeight
from undiffuse.words import plain_json

PROCESS = GaussianProcess(make_schedule("cosine"))


def gaussian(dim: int = 2) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(dim), torch.eye(dim), PROCESS)


def points(n: int = 50) -> TensorDataset:
    return replace(vectors(n), labels=None, spec=DataSpec(kind="vector", shape=(2,)))


def objective(law, weight: str = "data") -> DenoisingObjective:
    return DenoisingObjective(LossWeight(name=weight), TimeSampler(law))


def test_the_loss_of_the_exact_denoiser_is_the_posterior_variance():
    uniform = UniformTimes(PROCESS.schedule)
    found = Validation(objective(uniform), points(4000), items=4000)(gaussian())
    t = uniform(torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]).t
    variance = PROCESS.schedule.sigma(t) ** 2  # of standard normal data on the circle alpha^2 + sigma^2 = 1
    noise = (
        4 * 3**0.5 / (2 * 4000) ** 0.5 * 0.7
    )  # four standard errors: a squared normal times sigma^2, of rms below 0.7
    assert found["loss"] == pytest.approx(float(variance.mean()), abs=noise)
    assert sum(found["levels"]["count"]) == found["items"] == 4000


def test_levels_show_where_the_loss_is():
    found = Validation(objective(UniformTimes(PROCESS.schedule)), points(2000), items=2000)(gaussian())
    levels = found["levels"]
    middle = np.append(levels["edges"], 6.5) - 0.25
    sigma_square = 1 / (1 + np.exp(2 * middle))
    full = np.array(levels["count"]) > 100
    assert full.sum() >= 5
    np.testing.assert_allclose(np.array(levels["loss"])[full], sigma_square[full], rtol=0.6)  # 100 squares: 4 x 0.14


def test_adaptive_times_give_the_loss_of_uniform_ones():
    adaptive = objective(ImportanceTimes(PROCESS.schedule))
    assert isinstance(adaptive.times.law, ImportanceTimes)
    adaptive.times.law.update(torch.rand(10_000, dtype=torch.float64), torch.rand(10_000))
    uniform = DenoisingObjective(adaptive.weight, TimeSampler(UniformTimes(PROCESS.schedule)), importance=True)
    a, b = (Validation(one, points(), items=64)(gaussian()) for one in (adaptive, uniform))
    assert plain_json(a) == plain_json(b)


def test_every_measurement_draws_the_same_and_few_items_are_drawn_several_times():
    seen = []

    class Watching(GaussianDenoiser):
        def posterior(self, x, t, cond):
            seen.append((x.clone(), torch.as_tensor(t).clone()))
            return super().posterior(x, t, cond)

    measure = Validation(objective(UniformTimes(PROCESS.schedule)), points(7), items=50)
    denoiser = Watching(torch.zeros(2), torch.eye(2), PROCESS)
    assert plain_json(measure(denoiser)) == plain_json(measure(denoiser))
    first, second = seen
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    gaps = first[1].sort().values.diff()
    assert len(first[0]) == 50 and float(gaps.min()) > 0 and float(gaps.max()) < 3 / 50  # golden: at most 2.62 / n


def test_a_batch_does_not_mix_buckets():
    class Bucketed:
        """Two shapes in one data set; every second item is wide."""

        order, spec = "bucketed", images().spec

        def __len__(self):
            return 9

        def groups(self):
            return torch.arange(9) % 2

        def batch(self, index):
            (kind,) = (index % 2).unique().tolist()
            return {"x": torch.zeros(len(index), 1, 4, 4 + 4 * kind), "cond": {}, "index": index}

    measure = Validation(objective(UniformTimes(PROCESS.schedule)), Bucketed(), items=20)
    batches = list(measure._batches(measure.held_out))
    assert [len(positions) for _, positions in batches] == [11, 9]  # 9 items in turn, of which 5 are even
    assert sorted(torch.cat([rows for rows, _ in batches]).tolist()) == list(range(20))
    assert all(len((positions % 2).unique()) == 1 for _, positions in batches)


def test_frames_may_have_times_of_their_own():
    times = FrameTimes(TimeSampler(UniformTimes(PROCESS.schedule)), p_async=0.5, per="batch")
    found = Validation(DenoisingObjective(LossWeight(name="data"), times), points(), items=16)(gaussian())
    assert math.isfinite(found["loss"])


def test_text_is_measured_by_its_bound(tmp_path):
    small = ["model.width=16", "model.depth=1", "data.length=16", "data.limit=4000"]
    short = {"steps": 4, "batch_size": 8, "checkpoint_every": 2, "preview_every": 0, "validate_items": 64}
    run = train("prose", out=tmp_path, overrides=small, **short)
    rows = [row["validation"] for row in read_log(tmp_path / "log.jsonl") if "validation" in row]
    vocabulary = len(run.model.spec.vocabulary)
    assert isinstance(run.model.denoiser, CategoricalDenoiser)
    assert [set(row) for row in rows] == [{"loss", "train_loss", "items"}] * 2
    assert all(0.5 * math.log(vocabulary) < row["loss"] < 2 * math.log(vocabulary) for row in rows)  # nats per token


def test_the_log_has_it_at_every_checkpoint_and_training_is_not_disturbed(tmp_path):
    plain = tiny_trainer(tmp_path / "plain", "mlp", 25)
    measured = tiny_trainer(tmp_path / "measured", "mlp", 25)
    measured.validation = make_validation(
        measured.objective, vectors(20), measured.stream.dataset, TrainOptions(), torch.device("cpu")
    )
    plain.run()
    measured.run()
    for a, b in zip(plain.state.parameters, measured.state.parameters, strict=True):
        assert torch.equal(a, b)
    rows = [row for row in read_log(tmp_path / "measured" / "log.jsonl") if "validation" in row]
    assert [row["step"] for row in rows] == [10, 20, 25]
    assert rows[0]["validation"]["loss"] > rows[-1]["validation"]["loss"]
    assert abs(rows[0]["validation"]["train_loss"] / rows[0]["validation"]["loss"] - 1) < 0.5


def test_overfitting_is_seen(tmp_path):
    trainer = tiny_trainer(tmp_path, "mlp", 100, lr=3e-2, checkpoint_every=100)
    few = trainer.stream.dataset.take(torch.arange(2))
    trainer.stream.dataset, trainer.stream.order.count = few, 2
    trainer.validation = Validation(trainer.objective, vectors(50).take(torch.arange(2, 50)), few, items=128)
    trainer.run()
    last = [row["validation"] for row in read_log(tmp_path / "log.jsonl") if "validation" in row][-1]
    assert last["train_loss"] < 0.5 * last["loss"]


def test_it_can_be_left_out():
    for held_out, every in ((None, None), (vectors(), 0)):
        options = TrainOptions(validate_every=every)
        assert make_validation(objective(UniformTimes(PROCESS.schedule)), held_out, vectors(), options, "cpu") is None
    assert TrainOptions(checkpoint_every=70).validation_steps == 70

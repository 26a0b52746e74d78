"""The rate that goes by the loss, against PyTorch's own; clipping for a while; and both in a run that is resumed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.test_resume import assert_same_run
from tests.training.tiny import tiny_trainer
from undiffuse.errors import CheckpointError
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.log import read_log
from undiffuse.training.options import TrainOptions
from undiffuse.training.plateau import Plateau

STEPS = 40
GOOD, BAD = torch.tensor(0.0), torch.tensor(1.0)


def losses(count: int, seed: int = 0) -> list[float]:
    """A course that falls, stays, falls again and ends below zero, with noise."""
    t = torch.arange(count, dtype=torch.float64) / count
    noise = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1.5 - 2 * (t * 3).floor() / 3 - torch.exp(-20 * t) + 0.1 * noise).tolist()


def pytorch_rates(values: list[float], **options) -> list[float]:
    """The rate after each value, as a share of the first."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **options)
    rates = []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("factor", "patience", "least"), [(0.5, 7, 0.0), (0.3, 0, 0.01), (0.9, 20, 0.5)])
def test_the_rates_are_those_of_pytorch(factor, patience, least):
    course = losses(400)
    positive = [value + 2 for value in course]  # below zero PyTorch's bound is above the best
    options = TrainOptions(
        decay="plateau",
        warmup=0,
        plateau_every=1,
        plateau_factor=factor,
        plateau_patience=patience,
        plateau_threshold=0.02,
        final_lr=least,
    )
    plateau, rates = Plateau(options), []
    for step, value in enumerate(positive):
        plateau.note(step, torch.tensor(value, dtype=torch.float64), GOOD)
        rates.append(plateau.share)
    theirs = pytorch_rates(positive, factor=factor, patience=patience, threshold=0.02, min_lr=least)
    assert rates == pytest.approx(theirs, rel=1e-12)
    assert len(set(rates)) > 3  # it fell more than twice, so that this says something


def test_means_of_several_steps_are_compared_and_bad_steps_are_left_out():
    every, warmup, values = 10, 5, losses(600)
    options = TrainOptions(
        decay="plateau", warmup=warmup, plateau_every=every, plateau_patience=45, plateau_threshold=0.0
    )
    plateau, rates = Plateau(options), []
    for step in range(warmup):
        plateau.note(step, torch.tensor(-100.0), GOOD)  # the warm-up is not looked at
    for number, value in enumerate(values):
        poisoned = number % every == 3
        loss = torch.tensor(float("nan") if poisoned else value, dtype=torch.float64)
        plateau.note(warmup + number, loss, BAD if poisoned else GOOD)
        rates.append(plateau.share)
    parts = [values[at : at + every] for at in range(0, len(values), every)]
    means = [sum(part[:3] + part[4:]) / (every - 1) for part in parts]
    theirs = pytorch_rates(means, factor=0.5, patience=45 // every, threshold=0.0)
    assert rates[every - 1 :: every] == pytest.approx(theirs)
    assert len(set(rates)) > 3


def test_below_zero_better_means_below_the_best():
    plateau = Plateau(TrainOptions(decay="plateau", warmup=0, plateau_every=1, plateau_patience=0))
    for step, value in enumerate((-1.0, -1.005)):  # better by half of the threshold of a hundredth
        plateau.note(step, torch.tensor(value), GOOD)
    assert plateau.best == -1.0 and plateau.share == 0.5
    plateau.note(2, torch.tensor(-1.02), GOOD)
    assert plateau.best == pytest.approx(-1.02) and plateau.share == 0.5


def test_a_mean_of_skipped_steps_alone_is_no_improvement():
    plateau = Plateau(TrainOptions(decay="plateau", warmup=0, plateau_every=2, plateau_patience=0))
    for step in range(2):
        plateau.note(step, torch.tensor(float("nan")), BAD)
    assert plateau.share == 0.5 and plateau.best == float("inf")


def test_a_course_that_is_taken_up_anywhere_is_the_same_course():
    options = TrainOptions(decay="plateau", warmup=2, plateau_every=4, plateau_patience=8, plateau_threshold=0.0)
    course = [torch.tensor(value - step / 20, dtype=torch.float64) for step, value in enumerate(losses(60))]

    def states(plateau: Plateau, first: int) -> list[torch.Tensor]:
        found = []
        for step in range(first, len(course)):
            plateau.note(step, course[step], GOOD)
            found.append(torch.cat(list(plateau.state().values())))
        return found

    whole = states(Plateau(options), 0)
    for cut in range(1, 12):
        begun = Plateau(options)
        for step in range(cut):
            begun.note(step, course[step], GOOD)
        again = Plateau(options)
        again.load(begun.state())
        assert all(torch.equal(a, b) for a, b in zip(states(again, cut), whole[cut:], strict=True))


PUBLISHED = {
    "decay": "plateau",
    "plateau_every": 3,
    "plateau_patience": 4,
    "plateau_threshold": 0.1,
    "clip_steps": 25,
    "clip": 0.05,
    "ema_every": 4,
    "snapshot_every": 7,
}


def test_a_resumed_run_is_the_whole_run_bit_for_bit(tmp_path):
    tiny_trainer(tmp_path / "whole", "mlp", STEPS, **PUBLISHED).run()
    for until in (3, 16, 27):  # in the warm-up, and with a mean of losses that has begun
        trainer = tiny_trainer(tmp_path / "parts", "mlp", STEPS, **PUBLISHED)
        trainer.resume()
        while trainer.state.step < until:
            trainer.step()
            trainer._after_step(trainer.clock())
            trainer.state.model()  # whoever looks at the average leaves it as it is
        trainer.save()
    tiny_trainer(tmp_path / "parts", "mlp", STEPS, **PUBLISHED).run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    files = sorted(path.name for path in (tmp_path / "whole" / "ema").iterdir())
    assert files and all(
        (tmp_path / "whole" / "ema" / name).read_bytes() == (tmp_path / "parts" / "ema" / name).read_bytes()
        for name in files
    )
    rates = [row["lr"] for row in read_log(tmp_path / "whole" / "log.jsonl") if "lr" in row]
    assert rates == sorted(rates, reverse=True) and rates[-1] <= 0.25 * rates[0]  # it fell twice at least


def test_a_checkpoint_without_a_course_is_refused(tmp_path):
    tiny_trainer(tmp_path, "mlp", 10).run()
    with pytest.raises(CheckpointError, match="plateau"):
        tiny_trainer(tmp_path, "mlp", 20, decay="plateau").run()
    assert not any(
        name.startswith("plateau") for name in read_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1]).tensors
    )


def test_gradients_are_clipped_in_the_first_steps_only(tmp_path):
    """AdamW's first moment tells what gradient it was given: m_n = b m_(n-1) + (1 - b) g."""
    trainer = tiny_trainer(tmp_path, "mlp", 10, clip=0.01, clip_steps=3, betas=(0.5, 0.9))
    trainer.resume()
    before, given = None, []
    for _ in range(5):
        trainer.step()
        moments = [trainer.state.optimizer.state[p]["exp_avg"].double() for p in trainer.state.parameters]
        now = torch.cat([moment.flatten() for moment in moments])
        given.append(float((now if before is None else now - 0.5 * before).norm() / 0.5))
        before = now
    assert given[:3] == pytest.approx([0.01] * 3, rel=1e-4)
    assert min(given[3:]) > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"plateau_patience": 5}, "belongs to decay=plateau"),
        ({"decay": "plateau", "plateau_factor": 1.0}, r"inside \(0, 1\)"),
        ({"decay": "plateau", "plateau_every": 0}, "at least 1"),
        ({"decay": "plateau", "plateau_threshold": 1.0}, "plateau_threshold"),
        ({"decay": "plateau", "final_lr": 2.0}, "final_lr"),
        ({"clip": 0.0, "clip_steps": 5}, "set clip"),
        ({"clip_steps": 0}, "clip_steps"),
        ({"ema_every": 0}, "ema_every"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TrainOptions(**options)

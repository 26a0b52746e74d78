"""What the loop does when things go wrong, and what it reports."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.test_resume import ROOT
from tests.training.tiny import tiny_trainer, vectors
from undiffuse.errors import TrainingError
from undiffuse.events import Advanced, Message
from undiffuse.noise import permutation, permutations
from undiffuse.training import lock, order
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.lock import locked
from undiffuse.training.log import RunLog, read_log
from undiffuse.training.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, number):
    events = []
    trainer = tiny_trainer(tmp_path, "mlp", 1000, events.append)
    step = trainer.step

    def interrupted() -> None:
        step()
        if trainer.state.step == 13:
            os.kill(os.getpid(), number)

    trainer.step = interrupted
    outcome = trainer.run()
    assert (outcome.step, outcome.finished) == (13, False)
    assert checkpoints_in(tmp_path / "checkpoints")[-1].name == "step-00000013"
    last = [event for event in events if isinstance(event, Message)][-1]
    assert "same command" in last.text and number.name in last.text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_process_that_is_terminated_stops_cleanly(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("tiny.py")), str(tmp_path), "mlp", "100000", "sleep"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
    assert "stopped" in rest
    step = read_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1]).facts["step"]
    assert f"stopped {step}" in rest


def test_the_second_signal_acts_as_usual():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def poison(trainer, bad_steps: set[int]) -> None:
    """Make the losses of some steps NaN."""
    prepare = trainer.stream.step

    def poisoned(step: int):
        corrupted = prepare(step)
        return (
            corrupted
            if step not in bad_steps
            else type(corrupted)(**{**vars(corrupted), "target": corrupted.target * float("nan")})
        )

    trainer.stream.step = poisoned


def test_bad_steps_are_skipped_counted_and_reported(tmp_path):
    events = []
    trainer = tiny_trainer(tmp_path, "mlp", 21, events.append)
    poison(trainer, {3, 4, 15})
    trainer.run()
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert [row["bad_steps"] for row in rows] == [2, 2, 3]
    assert all(row["loss"] is not None for row in rows)
    assert all(p.isfinite().all() for p in trainer.state.parameters)
    assert sum("not finite" in event.text for event in events if isinstance(event, Message)) == 2


def test_too_many_bad_steps_in_a_row_stop_the_run_and_keep_the_checkpoint(tmp_path):
    trainer = tiny_trainer(tmp_path, "mlp", 100, max_bad_steps=10)
    poison(trainer, set(range(12, 100)))
    with pytest.raises(TrainingError, match="step 20 is kept"):
        trainer.run()
    kept = read_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1])
    assert kept.facts["step"] == 20
    assert all(tensor.isfinite().all() for name, tensor in kept.tensors.items() if not name.startswith("window/"))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    tiny_trainer(tmp_path, "mlp", 20).run()
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(TrainingError, match=r"cannot write the .* intact") as caught:
            tiny_trainer(tmp_path, "mlp", 40).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    after = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert after == before
    assert tiny_trainer(tmp_path, "mlp", 40).run().finished


def test_a_second_run_into_one_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(TrainingError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    with locked(tmp_path):  # free again, though the file is still there
        assert (tmp_path / ".lock").exists()


def test_the_log_is_cut_back_to_the_checkpoint_and_survives_half_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 15, "loss": 2.0}\n{"step": 2')
    log = RunLog(path, step=10)
    log.append({"step": 12, "loss": float("nan"), "levels": {"loss": [float("nan"), 1.0]}})
    assert read_log(path) == [
        {"step": 5, "loss": 1.0},
        {"step": 12, "loss": None, "levels": {"loss": [None, 1.0]}},
    ]


def test_progress_and_levels_are_reported(tmp_path):
    events = []
    tiny_trainer(tmp_path, "mlp", 30, events.append).run()
    assert max(event.done for event in events if isinstance(event, Advanced)) == 30
    assert any("to go" in event.text for event in events if isinstance(event, Message))
    levels = [row["levels"] for row in read_log(tmp_path / "log.jsonl") if "levels" in row]
    assert [sum(row["count"]) for row in levels] == [160.0] * 3
    assert len(levels[0]["loss"]) == len(levels[0]["edges"]) + 1


def test_the_steps_after_the_last_checkpoint_are_in_the_levels_too(tmp_path):
    tiny_trainer(tmp_path, "mlp", 25).run()
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "levels" in row]
    assert [(row["step"], sum(row["levels"]["count"])) for row in rows] == [(10, 160.0), (20, 160.0), (25, 80.0)]


def test_a_model_behind_its_checkpoint_is_written_again(tmp_path):
    published = []
    tiny_trainer(tmp_path, "mlp", 10).run()
    for step_in_folder in (None, 5, 10):
        trainer = tiny_trainer(tmp_path, "mlp", 10)
        trainer.publish, trainer.published = lambda model, step: published.append(step), lambda: step_in_folder  # noqa: B023
        trainer.run()
    assert published == [10, 10]


def test_the_published_model_has_the_buffers_of_now(tmp_path):
    published = {}
    trainer = tiny_trainer(tmp_path, "mlp", 10)
    for denoiser in (trainer.denoiser, trainer.state.averaged):
        denoiser.register_buffer("count", torch.zeros(1))
    trainer.denoiser.count += 3
    trainer.publish = lambda model, step: published.update(model.state_dict())
    trainer.save()
    assert published["count"] == 3


def test_tiny_data_take_one_call_for_all_epochs_of_a_block(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, "mlp", 10)
    calls = []
    monkeypatch.setattr(order, "permutations", lambda *of: calls.append(of) or permutations(*of))
    trainer.stream.order = order.Permuted(0, 3)
    chosen = trainer.stream.indices(torch.arange(6000, 9000))
    assert len(calls) == 1
    expected = [permutation(0, epoch, 3) for epoch in range(2000, 3000)]
    assert torch.equal(chosen, torch.cat(expected))


def test_without_file_locks_the_error_names_the_systems_that_have_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(TrainingError, match="Linux and macOS"), lock.locked(tmp_path):
        pass


def test_every_epoch_visits_every_item_once(tmp_path):
    trainer = tiny_trainer(tmp_path, "mlp", 10)
    seen = trainer.stream.indices(torch.arange(150))
    for epoch in range(3):
        part = seen[50 * epoch : 50 * epoch + 50]
        assert torch.equal(part, permutation(0, epoch, 50))
        assert torch.equal(part.sort().values, torch.arange(50))


def test_the_published_model_is_the_first_average(tmp_path):
    published = {}
    trainer = tiny_trainer(tmp_path, "mlp", 10)
    trainer.publish = lambda denoiser, step: published.update({step: denoiser.state_dict()})
    trainer.run()
    for name, tensor in zip(trainer.state.named, trainer.state.averages[0].average, strict=True):
        assert torch.equal(published[10][name], tensor)
        if trainer.state.named[name].grad_fn is None and tensor.numel() > 100:
            assert not torch.equal(tensor, trainer.state.named[name])


def test_training_learns(tmp_path):
    trainer = tiny_trainer(tmp_path, "mlp", 150, log_every=50)
    trainer.run()
    losses = [row["loss"] for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert losses[-1] < 0.97 * losses[0]
    assert len(vectors()) == 50

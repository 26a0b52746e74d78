"""2n steps equal n steps, an unkind end, and n more: bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.tiny import tiny_trainer
from undiffuse.errors import CheckpointError
from undiffuse.events import Message
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.log import read_log

ROOT = Path(__file__).parents[2]
STEPS = 40


def run_script(folder: Path, kind: str, *how: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, str(Path(__file__).with_name("tiny.py")), str(folder), kind, str(STEPS), *how]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def final_state(folder: Path):
    checkpoint = read_checkpoint(checkpoints_in(folder / "checkpoints")[-1])
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(folder / "log.jsonl")]
    return checkpoint.tensors, {k: v for k, v in checkpoint.facts.items() if k != "seconds"}, rows


def assert_same_run(a: Path, b: Path) -> None:
    (tensors_a, facts_a, rows_a), (tensors_b, facts_b, rows_b) = final_state(a), final_state(b)
    assert facts_a == facts_b and facts_a["step"] == STEPS
    assert tensors_a.keys() == tensors_b.keys()
    different = [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])]
    assert not different
    assert rows_a == rows_b and len([row for row in rows_a if "loss" in row]) == 6


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("mlp", ("die-at-step", "27")),
        ("mlp", ("die-in-checkpoint", "20")),
        ("importance", ("die-at-step", "23")),
        pytest.param("dropout", ("die-at-step", "20"), marks=pytest.mark.slow),
        ("watched", ("die-at-step", "28")),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, kind, how):
    tiny_trainer(tmp_path / "whole", kind, STEPS).run()
    killed = run_script(tmp_path / "killed", kind, *how)
    assert killed.returncode == -9, killed.stderr
    if how[0] == "die-in-checkpoint":
        names = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
        assert names == [".writing-00000020", "step-00000010"]
    tiny_trainer(tmp_path / "killed", kind, STEPS).run()
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".writing*"))
    assert snapshots(tmp_path / "killed") == snapshots(tmp_path / "whole")
    assert len(snapshots(tmp_path / "whole")) == (6 if kind == "watched" else 0)  # 7, 14, ..., 35, 40


def snapshots(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "ema").glob("*")}


def test_a_stop_at_any_step_leaves_no_trace_in_the_log(tmp_path):
    tiny_trainer(tmp_path / "whole", "mlp", STEPS).run()
    for until in (3, 18, 33):
        trainer = tiny_trainer(tmp_path / "parts", "mlp", STEPS)
        trainer.resume()
        while trainer.state.step < until:
            trainer.step()
            trainer._after_step(trainer.clock())
        trainer.save()
    tiny_trainer(tmp_path / "parts", "mlp", STEPS).run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    tiny_trainer(tmp_path, "mlp", STEPS).run()
    before = final_state(tmp_path)[2]
    outcome = tiny_trainer(tmp_path, "mlp", STEPS).run()
    assert outcome.finished and outcome.step == STEPS
    assert final_state(tmp_path)[2] == before


def test_only_the_last_checkpoints_are_kept(tmp_path):
    tiny_trainer(tmp_path, "mlp", STEPS, keep=3).run()
    assert [path.name for path in checkpoints_in(tmp_path / "checkpoints")] == [f"step-000000{n}" for n in (20, 30, 40)]


def test_a_change_of_thread_count_is_warned_about(tmp_path):
    tiny_trainer(tmp_path, "mlp", 10).run()
    events = []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        tiny_trainer(tmp_path, "mlp", 20, events.append).run()
    finally:
        torch.set_num_threads(threads)
    warnings = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert any("thread" in text and f"OMP_NUM_THREADS={threads}" in text for text in warnings)


def test_a_damaged_checkpoint_is_named_with_a_remedy(tmp_path):
    tiny_trainer(tmp_path, "mlp", 10).run()
    path = checkpoints_in(tmp_path / "checkpoints")[-1] / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="delete this folder"):
        tiny_trainer(tmp_path, "mlp", 20).run()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    tiny_trainer(tmp_path, "mlp", 10).run()
    with pytest.raises(CheckpointError, match="another recipe"):
        tiny_trainer(tmp_path, "dropout", 10).run()


def test_accumulation_changes_the_result_by_rounding_only(tmp_path):
    whole, parts = tiny_trainer(tmp_path / "a", "mlp", 10), tiny_trainer(tmp_path / "b", "mlp", 10, accumulate=4)
    whole.run()
    parts.run()
    for a, b in zip(whole.state.parameters, parts.state.parameters, strict=True):
        # AdamW divides by the gradient's size, so that rounding of tiny gradients can move a weight by a share of lr.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)

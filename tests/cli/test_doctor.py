"""What doctor says of the machine."""

from __future__ import annotations

import pytest

from undiffuse.cli.doctor import would_use


def test_doctor_says_what_a_training_would_use(monkeypatch: pytest.MonkeyPatch):
    for variable in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    assert would_use(0) == "one process on the CPU"
    assert would_use(1) == "one process on the GPU"
    assert would_use(4).endswith("accelerate launch --multi_gpu --num_processes 4 -m undiffuse train DATA")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert would_use(4) == "4 processes, of which this is number 2"

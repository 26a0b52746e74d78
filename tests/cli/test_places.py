from __future__ import annotations

import pytest
import torch

from undiffuse.cli.doctor import devices
from undiffuse.cli.places import choose_device


def test_a_device_without_float64_is_neither_chosen_nor_offered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    assert list(devices()) == ["cpu"]
    with pytest.raises(ValueError, match=r"'mps' has no float64.*use auto or one of cpu\."):
        choose_device("mps")


def test_the_accelerator_goes_before_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"'cuda:2' is not available here; use auto or one of cpu, cuda:0, cuda:1\."):
        choose_device("cuda:2")
    for variable, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")

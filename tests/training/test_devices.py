"""Where a run computes."""

from __future__ import annotations

import os

import pytest
import torch

from undiffuse.errors import TrainingError
from undiffuse.training import devices
from undiffuse.training.devices import choose_device


@pytest.fixture
def two_cuda_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def a_mac(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_devices_are_chosen_by_name(two_cuda_devices):
    chosen = {name: str(choose_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")}
    assert chosen == {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}
    for name in ("cuda:2", "cuda:x", "gpu", "cpu:1", "cuda:-1"):
        with pytest.raises(TrainingError, match=r"train\.device=.*auto"):
            choose_device(name)


def test_without_float64_there_is_no_training(a_mac):
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(TrainingError, match=r"no float64.*train\.device=cpu"):
        choose_device("mps")


def test_one_device_of_several_is_named_to_accelerate_and_forgotten(monkeypatch):
    monkeypatch.delenv(devices._DEVICE_VARIABLE, raising=False)
    with devices._named_device(torch.device("cuda:1")):
        assert os.environ[devices._DEVICE_VARIABLE] == "cuda:1"
    assert devices._DEVICE_VARIABLE not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="several processes"), devices._named_device(torch.device("cuda:1")):
        pass

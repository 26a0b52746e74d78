"""A training step never waits for the device; only log lines do."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.peers import make_trainer
from tests.waiting import META, NoWaiting
from undiffuse.training import optimizer
from undiffuse.training.devices import Devices
from undiffuse.training.options import TrainOptions
from undiffuse.training.trainer import Trainer


class OnMeta(Devices):
    """Devices that put everything where there are no numbers."""

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(options)
        self.device = META

    def prepare(self, module: Any) -> Any:
        return module

    def no_sync(self, module: Any) -> Any:
        return nullcontext()


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on "meta", with an optimizer that does nothing: there is no fused kernel for it."""
    monkeypatch.setattr("undiffuse.training.trainer.Devices", OnMeta)
    plain = lambda parameters, options: torch.optim.AdamW(parameters, lr=options.lr, foreach=True)  # noqa: E731
    monkeypatch.setattr("undiffuse.training.state.make_optimizer", plain)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)


def steps(trainer: Trainer, count: int) -> None:
    with NoWaiting():
        for _ in range(count):
            trainer.step()


@pytest.mark.parametrize("kind", ["mlp", "importance", "tokens", "unet"])
def test_a_step_does_not_wait(on_meta: None, tmp_path: Path, kind: str):
    trainer = make_trainer(tmp_path, kind)
    steps(trainer, 3)
    assert trainer.state.step == 3


@pytest.mark.parametrize("kind", ["mlp", "importance", "tokens", "unet"])
def test_data_on_the_device_stay_there(on_meta: None, tmp_path: Path, kind: str):
    trainer = make_trainer(tmp_path, kind)
    trainer.stream.dataset = trainer.stream.dataset.to(META)
    steps(trainer, 3)
    assert trainer.state.step == 3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mlp", "importance", "tokens", "unet"])
def test_no_synchronisation_on_a_gpu(tmp_path: Path, kind: str):
    trainer = make_trainer(tmp_path, kind, device="cuda")
    trainer.step()  # kernels are built, coefficients cached
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(trainer.update, optimizer.ClippedStep)

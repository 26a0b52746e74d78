"""What several processes share, and what a launcher may not decide."""

from __future__ import annotations

import pytest
import torch

from undiffuse.errors import PeerError, TrainingError
from undiffuse.models.processes import Processes, fail_together, lost_peers
from undiffuse.training.devices import Devices
from undiffuse.training.options import TrainOptions


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_accelerate_is_told_is_not_ignored(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(TrainingError, match=r"train\.shard=true"):
        Devices(TrainOptions(device="cpu"))


def test_the_precision_of_the_launcher_must_be_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(TrainingError, match=r"train\.precision=bfloat16"):
        Devices(TrainOptions(device="cpu"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    Devices(TrainOptions(device="cpu", precision="bfloat16"))


def test_one_process_shares_everything_with_itself():
    devices = Devices(TrainOptions(device="cpu", shard=True))
    x = torch.arange(3.0)
    assert devices.device == torch.device("cpu")
    assert torch.equal(devices.mean(x), x) and torch.equal(devices.gather(x), x)
    alone = Processes()
    assert alone.share({"n": 3}) == {"n": 3} and alone.largest(4) == 4
    assert alone.fetch(x, 0) is x
    with pytest.raises(KeyError), alone.agree():
        raise KeyError("own")


@pytest.mark.parametrize(
    ("flags", "rank", "raised"),
    [
        ([False, False], 0, None),
        ([False, True], 0, PeerError),
        ([True, True], 1, PeerError),
        ([False, True], 1, KeyError),
    ],
)
def test_the_first_process_that_failed_speaks(flags: list[bool], rank: int, raised: type[Exception] | None):
    def run() -> None:
        with fail_together(lambda own: flags, rank):
            if flags[rank]:
                raise KeyError("own")

    if raised is None:
        return run()
    with pytest.raises(raised):
        run()


def test_a_lost_connection_is_one_line():
    with pytest.raises(PeerError, match="another process of this run ended") as caught, lost_peers():
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert not caught.value.told
    with pytest.raises(RuntimeError, match="shapes"), lost_peers():
        raise RuntimeError("shapes do not fit")

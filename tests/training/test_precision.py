"""bfloat16 inside the network, float32 outside of it."""

from __future__ import annotations

import pytest
import torch

from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.log import read_log
from undiffuse.training.run import train

SHORT = {"steps": 4, "batch_size": 16, "log_every": 1, "checkpoint_every": 2, "warmup": 2, "device": "cpu"}
NETWORKS = {
    "mlp": ("moons", ["model.width=32", "data.limit=200"]),
    "unet": ("digits", ["model.channels=8", "model.multipliers=1,2", "model.blocks=1", "data.limit=200"]),
    "transformer": ("prose", ["model.width=32", "model.depth=2", "model.heads=2", "data.length=32"]),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_in_bfloat16_is_training(tmp_path, network, optimizer):
    source, small = NETWORKS[network]
    losses = {}
    for precision in ("float32", "bfloat16"):
        options = {**SHORT, "precision": precision, "optimizer": optimizer, "validate_items": 32, "preview_every": 0}
        run = train(source, out=tmp_path / precision, overrides=small, **options)
        losses[precision] = torch.tensor(run.losses)
    # A bfloat16 has 8 bits: an output, and so the root of the loss, is off by some 2^-8 per layer, at random.
    torch.testing.assert_close(losses["bfloat16"], losses["float32"], rtol=0.05, atol=0.0)
    assert not torch.equal(losses["bfloat16"], losses["float32"])
    tensors = read_checkpoint(checkpoints_in(tmp_path / "bfloat16" / "checkpoints")[-1]).tensors
    state = {tensor.dtype for name, tensor in tensors.items() if name.startswith(("model/", "ema", "adam/", "muon/"))}
    assert state == {torch.float32}
    rows = [row["validation"] for row in read_log(tmp_path / "bfloat16" / "log.jsonl") if "validation" in row]
    assert [row["loss"] is not None for row in rows] == [True, True]

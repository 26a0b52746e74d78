"""Several processes on the CPU train what one does: data parallel, sharded, resumed by another number of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.training import peers
from tests.training.peers import launch, losses_of, make_trainer, run_scenario
from undiffuse.noise import KeyedNoise
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.lock import locked
from undiffuse.training.log import read_log
from undiffuse.training.run import train
from undiffuse.training.share import Share, ShareNoise, over_batches
from undiffuse.training.stream import BatchStream

SCRIPT = Path(peers.__file__)
ALIKE = ("mlp", "mlp-float64", "mlp-plateau", "importance", "tokens")
SHARDED = ("mlp-shard", "mlp-plateau-shard", "unet-shard", "tokens-shard")
# Sums over processes are made in another order: a few roundings per step, which fifty steps hardly amplify.
RELATIVE = {"float32": 1e-5, "float64": 1e-12}


def launched(folder: Path, *names: str) -> Path:
    done = launch(SCRIPT, folder, *names)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for name in (*ALIKE, "unet"):
        (folder / f"{name}.json").write_text(json.dumps(run_scenario(folder, name)))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory, alone: Path) -> Path:
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(alone / "mlp", folder / "mlp-back")
    return launched(folder, *ALIKE, "mlp-back-more")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, alone: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(alone / "mlp", folder / "mlp-shard-back")
    return launched(folder, *SHARDED, "mlp-shard-back-more")


def losses(folder: Path, name: str) -> list[float]:
    return json.loads((folder / f"{name}.json").read_text())


def newest(folder: Path):
    return read_checkpoint(checkpoints_in(folder / "checkpoints")[-1])


def figures(folder: Path) -> list[dict]:
    return [
        {key: row[key] for key in ("loss", "grad_norm", "levels") if key in row}
        for row in read_log(folder / "log.jsonl")
    ]


# -- data parallel ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_what_one_does(alone: Path, pair: Path, name: str):
    tolerance = RELATIVE["float64" if "float64" in name else "float32"]
    assert len(losses(pair, name)) == 50
    assert losses(pair, name) == pytest.approx(losses(alone, name), rel=tolerance, abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "importance"])
def test_two_processes_write_the_log_of_one(alone: Path, pair: Path, name: str):
    one, two = figures(alone / name), figures(pair / name)
    assert len(one) == len(two) == 6
    for mine, theirs in zip(one, two, strict=True):
        levels, others = mine.pop("levels", None), theirs.pop("levels", None)
        assert theirs == pytest.approx(mine, rel=1e-4)
        if levels is not None:  # of the rows of both processes
            assert others["count"] == levels["count"] and sum(levels["count"]) == 50 * 16
            seen = [(a, b) for a, b in zip(levels["loss"], others["loss"], strict=True) if a is not None]
            assert [b for _, b in seen] == pytest.approx([a for a, _ in seen], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "mlp-plateau", "importance", "tokens"])
def test_two_processes_write_the_weights_and_averages_of_one(alone: Path, pair: Path, name: str):
    one, two = newest(alone / name).tensors, newest(pair / name).tensors
    assert one.keys() == two.keys()
    kept = [key for key in one if key.startswith(("model/", "ema"))]
    for key in kept:
        # As for sharded runs. A network as it was before the first step differs by 0.01 and more.
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_the_rate_falls_where_it_does_in_one_process(alone: Path, pair: Path, sharded: Path):
    one, *others = (newest(at).tensors["plateau/course"] for at in (alone / "mlp-plateau", pair / "mlp-plateau"))
    others.append(newest(sharded / "mlp-plateau-shard").tensors["plateau/course"])
    assert one[1] >= 2  # falls
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[float]:
    """The losses of steps 51 to 70, in one process that was never stopped."""
    return losses_of(make_trainer(tmp_path_factory.mktemp("whole"), "mlp", steps=70))[50:]


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one(pair: Path, whole: list[float]):
    # The float32 state of 50 steps differs in its last digits.
    assert losses(pair, "mlp-back-more") == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(tmp_path: Path, pair: Path, whole: list[float]):
    shutil.copytree(pair / "mlp", tmp_path / "mlp")
    assert run_scenario(tmp_path, "mlp-more") == pytest.approx(whole, rel=1e-4)


def test_batches_of_shares_are_the_batch_of_one(tmp_path: Path):
    for kind in ("mlp", "tokens"):
        trainer = make_trainer(tmp_path / kind, kind)

        def batches(share: Share, trainer=trainer):
            stream = BatchStream(
                trainer.stream.dataset, trainer.objective, trainer.denoiser, seed=0, batch_size=12, share=share
            )
            return [stream.step(step) for step in range(7)]

        whole = batches(Share())
        parts = [batches(Share(rank, 3)) for rank in range(3)]
        for step, batch in enumerate(whole):
            for name in ("x", "t", "target", "weight"):
                joined = torch.cat([getattr(part[step], name) for part in parts])
                torch.testing.assert_close(joined, getattr(batch, name), rtol=1e-6, atol=1e-7)


def test_what_is_drawn_per_batch_is_drawn_for_all_of_it():
    def draw(noise, rows):
        return noise.uniform("time", 0, ()).view(-1, rows).cumsum(1).reshape(-1)

    whole = draw(KeyedNoise(3, range(24)), 8)
    for rank in range(4):
        items = torch.arange(24).view(3, 4, 2)[:, rank].reshape(-1)
        noise = ShareNoise(3, items, batch_size=8, share=Share(rank, 4))
        assert torch.equal(over_batches(noise, 2, draw), whole.view(3, 4, 2)[:, rank].reshape(-1))
    assert torch.equal(over_batches(KeyedNoise(3, range(24)), 8, draw), whole)


# -- sharded ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_run_trains_what_one_process_does(alone: Path, sharded: Path, name: str):
    assert losses(sharded, name) == pytest.approx(losses(alone, name.removesuffix("-shard")), rel=1e-5, abs=0)
    one, two = figures(alone / name.removesuffix("-shard")), figures(sharded / name)
    assert [row["grad_norm"] for row in two if "loss" in row] == pytest.approx(
        [row["grad_norm"] for row in one if "loss" in row], rel=1e-4
    )
    assert max(row["grad_norm"] for row in one if "loss" in row) > peers.DEFAULTS["clip"], "nothing was clipped"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_run_writes_the_checkpoint_of_one(alone: Path, sharded: Path, name: str):
    one, two = newest(alone / name.removesuffix("-shard")), newest(sharded / name)
    assert one.tensors.keys() == two.tensors.keys()
    for key, tensor in one.tensors.items():
        assert two.tensors[key].shape == tensor.shape, key
        # Weights of about 0.1; Adam's first steps have the sign of a gradient, which rounding may turn where it is 0.
        torch.testing.assert_close(two.tensors[key], tensor, rtol=1e-3, atol=1e-4)
    assert two.facts["processes"] == 2


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_that_of_one_process(sharded: Path, whole: list[float]):
    assert losses(sharded, "mlp-shard-back-more") == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_one_process_goes_on_with_a_sharded_run(tmp_path: Path, sharded: Path, whole: list[float]):
    shutil.copytree(sharded / "mlp-shard", tmp_path / "mlp")
    assert run_scenario(tmp_path, "mlp-more") == pytest.approx(whole, rel=1e-4)


# -- the whole of `train` ---------------------------------------------------------------------------

OPTIONS = {"steps": 6, "batch_size": 16, "log_every": 1, "warmup": 1, "accumulate": 2, "device": "cpu"}
OVERRIDES = ["model.width=16", "model.depth=1", "data.limit=100"]
TRAIN = f"""
import os, sys
from pathlib import Path
from undiffuse.errors import UndiffuseError
from undiffuse.training.run import train
try:
    train("moons", out=sys.argv[1], overrides={OVERRIDES!r} + sys.argv[2:], **{OPTIONS!r})
except UndiffuseError as error:
    Path(sys.argv[1], os.environ["RANK"] + ".txt").write_text(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(TRAIN)
    return path


@pytest.mark.parametrize("sharding", ["train.shard=false", pytest.param("train.shard=true", marks=pytest.mark.slow)])
def test_a_recipe_of_two_processes_is_that_of_one(tmp_path: Path, script: Path, sharding: str):
    done = launch(script, tmp_path / "two", sharding)
    assert done.returncode == 0, done.stderr[-2000:]
    one = train("moons", out=tmp_path / "one", overrides=OVERRIDES, **OPTIONS)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    two = [row["loss"] for row in read_log(tmp_path / "two" / "log.jsonl") if row.get("loss") is not None]
    assert two == pytest.approx(list(one.losses), rel=1e-5)
    assert (tmp_path / "two" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["train.shard=false", "train.shard=true"])
def test_latents_of_two_processes_are_those_of_one(tmp_path: Path, script: Path, sharding: str):
    """Both train the autoencoder together, and then the denoiser on the same latents."""
    codec = ["codec.kind=autoencoder", "codec.halvings=1", "codec.width=8", "codec.steps=4", "codec.batch_size=16"]
    overrides = ["data.limit=100", "model.channels=8", *codec]
    code = script.read_text().replace('"moons"', '"digits"').replace(repr(OVERRIDES), repr(overrides))
    script.write_text(code)
    done = launch(script, tmp_path / "two", sharding)
    assert done.returncode == 0, done.stderr[-2000:]
    one = train("digits", out=tmp_path / "one", overrides=overrides, **OPTIONS)
    two = [row["loss"] for row in read_log(tmp_path / "two" / "log.jsonl") if row.get("loss") is not None]
    assert two == pytest.approx(list(one.losses), rel=1e-4)  # of 4 + 6 steps in float32
    assert (tmp_path / "two" / "codec.safetensors").is_file()


@pytest.mark.slow
def test_what_stops_one_process_stops_all(tmp_path: Path, script: Path):
    with locked(tmp_path):
        done = launch(script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "another run" in (tmp_path / "0.txt").read_text()
    assert "another process of this run failed" in (tmp_path / "1.txt").read_text()

"""Every network trains on every kind of data it is made for; what only some networks do, in real runs."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.continuous import process_of, spec_mixture
from undiffuse.config import resolve, to_dict
from undiffuse.data import TensorDataset
from undiffuse.errors import CheckpointError, ConfigError, TrainingError
from undiffuse.models import load
from undiffuse.networks import Backbone
from undiffuse.networks import compilation as compilation_module
from undiffuse.spec import DataSpec
from undiffuse.training.blocks import prepare_blocks
from undiffuse.training.memory import footprint
from undiffuse.training.options import TrainOptions
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.run import train
from undiffuse.training.trainer import Trainer

SHORT = {
    "steps": 4,
    "batch_size": 8,
    "log_every": 2,
    "checkpoint_every": 2,
    "preview_every": 0,
    "validate_every": 0,
    "warmup": 1,
}
UNET = ["model.channels=8", "model.multipliers=1,2", "model.blocks=1"]
DIT = ["model=dit", "model.width=16", "model.depth=3", "model.heads=2"]
ROUTED = [*DIT, "model.route=0.5", "model.route_first=1", "model.route_last=1"]
SHAPES = {"signal": (2, 16), "image": (1, 8, 8), "volume": (1, 4, 6, 4), "video": (3, 1, 8, 8)}


def data_of(kind: str, classes: tuple[str, ...] = ()) -> TensorDataset:
    """Give smooth waves: each item a phase of its own."""
    shape = SHAPES[kind]
    phase = torch.rand(40, *[1] * len(shape), generator=torch.Generator().manual_seed(0))
    x = torch.sin(6.0 * (phase + torch.linspace(0, 1, shape[-1])).expand(40, *shape))
    labels = torch.arange(40) % len(classes) if classes else None
    return TensorDataset(data=x.contiguous(), spec=DataSpec(kind=kind, shape=shape, classes=classes), labels=labels)


def weights_of(folder) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load(folder).denoiser.parameters()])


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
def test_networks_of_space_learn_every_kind_of_space(tmp_path, kind, model):
    run = train(data_of(kind), "image", out=tmp_path, overrides=model, **{**SHORT, "steps": 16, "lr": 1e-2})
    assert run.finished and run.losses[-1] < 0.9 * run.losses[0]
    back = load(tmp_path)
    assert back.sample(2, steps=2).shape == (2, *SHAPES[kind])
    saved, kept = run.model.denoiser.state_dict(), back.denoiser.state_dict()
    assert saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in kept)


@pytest.mark.parametrize("model", [["model=mlp"], ["model=transformer"]])
def test_other_networks_are_refused_with_what_would_do(tmp_path, model):
    with pytest.raises(ConfigError, match=r"model=unet(, dit| or dit)"):
        train(data_of("image"), "image", out=tmp_path, overrides=model, **SHORT)


def test_sizes_that_patches_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sizes \(8, 8\) do not divide into patches of side 3"):
        train(data_of("image"), "image", out=tmp_path, overrides=[*DIT, "model.patch=3"], **SHORT)


# -- starting a video network from an image network -------------------------------------------------


@pytest.mark.parametrize(("model", "more"), [(UNET, ["model.temporal=true"]), (DIT, [])], ids=["unet", "dit"])
def test_a_video_run_may_start_from_an_image_model(tmp_path, model, more):
    train(data_of("image", ("a", "b")), "image", out=tmp_path / "image", overrides=model, **SHORT)
    still = {**SHORT, "lr": 1e-30, "init": str(tmp_path / "image")}
    train(data_of("video", ("a", "b")), "image", out=tmp_path / "video", overrides=[*model, *more], **still)
    image, video = (load(tmp_path / name).denoiser for name in ("image", "video"))
    x, t = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.rand(2, 3).double()
    with torch.no_grad():
        clips = video(x, t, video.embed({"label": torch.tensor([0, 1])}, 2)).mean
        frames = image(x.flatten(0, 1), t.flatten(), image.embed({"label": torch.tensor([0, 0, 0, 1, 1, 1])}, 6)).mean
    torch.testing.assert_close(clips.flatten(0, 1), frames, rtol=1e-6, atol=1e-6)  # averages of equal weights round


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["model.heads=4"], r"model\.heads is 2 in the image network and 4 in the video network"),
        (["model.width=32"], r"model\.width is 16"),
        (["process.prediction=noise"], r"process\.prediction"),
    ],
)
def test_an_image_model_that_does_not_match_is_refused(tmp_path, more, match):
    train(data_of("image"), "image", out=tmp_path / "image", overrides=DIT, **SHORT)
    with pytest.raises(CheckpointError, match=match):
        start = {**SHORT, "init": str(tmp_path / "image")}
        train(data_of("video"), "image", out=tmp_path / "video", overrides=[*DIT, *more], **start)


# -- how blocks run ---------------------------------------------------------------------------------


def test_stopping_and_computing_twice_change_no_bit_of_a_run_with_dropout_and_routing(tmp_path, monkeypatch):
    model = [*ROUTED, "model.dropout=0.2"]
    train(data_of("image"), "image", out=tmp_path / "kept", overrides=model, **SHORT)
    train(data_of("image"), "image", out=tmp_path / "plain", overrides=DIT, **SHORT)
    again = {"out": tmp_path / "twice", "overrides": model, "checkpoint_activations": True, **SHORT}
    step = Trainer.step

    def some_steps(trainer: Trainer) -> None:
        if trainer.state.step == 3:
            raise SystemError
        step(trainer)

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(Trainer, "step", some_steps)
        train(data_of("image"), "image", **again)
    assert train(data_of("image"), "image", **again).finished
    assert torch.equal(weights_of(tmp_path / "kept"), weights_of(tmp_path / "twice"))
    assert not torch.equal(weights_of(tmp_path / "kept"), weights_of(tmp_path / "plain"))


def test_a_share_of_zero_is_the_network_without_routing(tmp_path):
    for name, share in (("none", []), ("zero", ["model.route=0", "model.route_first=1"])):
        train(data_of("image"), "image", out=tmp_path / name, overrides=[*DIT, *share], **SHORT)
    assert torch.equal(weights_of(tmp_path / "none"), weights_of(tmp_path / "zero"))


def test_the_footprint_knows_that_activations_are_computed_twice():
    recipe = resolve(Recipe, recipe_layer("image"), ["model=dit", "train.batch_size=256"])
    twice = resolve(Recipe, to_dict(recipe), {"train.checkpoint_activations": True})
    spec = DataSpec(kind="image", shape=(3, 32, 32))
    assert footprint(twice, spec).bytes < 0.3 * footprint(recipe, spec).bytes


def test_compiling_reaches_the_network_that_trains_and_may_change_on_resumption(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compilation_module, "_obstacle", lambda device: "")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: asked.append(type(self).__name__))
    train(data_of("image"), "image", out=tmp_path, overrides=DIT, compile=True, **SHORT)
    assert asked == ["TransformerBlock"] * 3
    train(data_of("image"), "image", out=tmp_path, overrides=DIT, checkpoint_activations=True, **SHORT)
    assert len(asked) == 3
    load(tmp_path).compile()
    assert len(asked) == 6 and isinstance(load(tmp_path).denoiser.backbone, Backbone)


def test_compile_and_shard_do_not_go_together():
    with pytest.raises(ValueError, match="leave one of them off"):
        TrainOptions(compile=True, shard=True)


def test_where_nothing_can_be_compiled_the_run_goes_on_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_module, "_obstacle", lambda device: "no compiler.")
    with pytest.warns(UserWarning, match="the network runs as it is: no compiler"):
        run = train(data_of("image"), "image", out=tmp_path, overrides=DIT, compile=True, **SHORT)
    assert run.finished


def test_a_denoiser_without_blocks_cannot_be_compiled():
    with pytest.raises(TrainingError, match="named blocks"):
        prepare_blocks(spec_mixture(process_of("rf")), TrainOptions(compile=True))

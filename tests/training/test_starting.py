"""Training networks of diffusers: from scratch, bit for bit after a stop, and from a folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretrained import tiny
from tests.pretrained.trained import UNET, made
from undiffuse.config import resolve
from undiffuse.errors import CheckpointError
from undiffuse.models import load
from undiffuse.pretrained.convert import write_diffusers
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.fine_tuning import start_from
from undiffuse.training.recipe import Recipe
from undiffuse.training.run import choose, train
from undiffuse.training.starting import recipe_of

diffusers = pytest.importorskip("diffusers")
WORDS = (
    "model=diffusers-unet", "model.channels=8", "model.groups=4", "model.multipliers=[1,2]", "model.blocks=1",
    "model.head=4", "process.schedule=ddpm", "process.prediction=noise",
)  # fmt: skip
SPEC = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 16), classes=("a", "b"))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a pipeline of grey pictures, with or without classes."""

    def write(classes: int | None = None, **betas: Any) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = tiny.unet(diffusers, in_channels=1, out_channels=1, num_class_embeds=classes, norm_eps=1e-6)
        place = tmp_path / f"theirs{classes}"
        scheduler = diffusers.DDPMScheduler(**betas)
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(place)
        return place

    return write


@pytest.mark.slow
def test_training_resumes_bit_for_bit_and_ends_in_a_folder_of_diffusers(tmp_path: Path):
    quick: dict[str, Any] = {"batch_size": 4, "checkpoint_every": 2, "preview_every": 0}
    whole = train("digits", out=tmp_path / "whole", overrides=WORDS, steps=4, **quick)
    train("digits", out=tmp_path / "parts", overrides=WORDS, steps=2, **quick)
    parts = train("digits", out=tmp_path / "parts", overrides=WORDS, steps=4, **quick)
    assert (whole.folder / "model.safetensors").read_bytes() == (parts.folder / "model.safetensors").read_bytes()
    model = whole.model
    start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {"start": start, "cond": {"label": [1, 7]}, "guidance": 2.0, "steps": 4, "solver": "ddim"}
    again = load(write_diffusers(model, tmp_path / "out"))
    drawn = [one.sample(2, grid="logsnr", **asked) for one in (model, again)]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-4 * 16)
    assert again.spec == model.spec


def test_a_recipe_follows_from_the_folder_and_what_one_says_goes_first(folder: Callable[..., Path]):
    place = folder(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200, prediction_type="v_prediction")
    for asked in ([f"train.init={place}"], [f"train.init={place}", "process.prediction=data", "model.blocks=2"]):
        recipe, _ = choose("digits", None, [asked])
        process: Any = recipe.process
        model: Any = recipe.model
        assert (process.schedule, process.levels) == ("cosine-table", 200)
        assert (process.prediction, model.blocks) == (("v", 1) if len(asked) == 1 else ("data", 2))
        assert model.kind == "diffusers-unet" and model.settings == '{"norm_eps": 1e-06}'
    recipe, _ = choose("digits", "image", [[f"train.init={place}"]])
    assert recipe.model.kind == "diffusers-unet" and recipe.train.batch_size == 64
    assert recipe_of(str(place))["data"] == {"size": 8, "channels": "grey"}
    assert recipe_of("digits") == recipe_of("") == {}


def test_only_what_is_unusual_of_a_table_is_said_so_that_another_schedule_may_take_its_place(
    folder: Callable[..., Path],
):
    assert recipe_of(str(folder()))["process"] == {"kind": "gaussian", "prediction": "noise", "schedule": "ddpm"}
    recipe, _ = choose("digits", None, [[f"train.init={folder()}", "process.schedule=cosine-table"]])
    assert recipe.process.schedule == "cosine-table"  # type: ignore[union-attr]
    odd = recipe_of(str(folder(beta_schedule="scaled_linear", beta_end=0.03)))["process"]
    assert {name: odd[name] for name in ("beta_min", "beta_max")} == {"beta_min": 1e-4, "beta_max": 0.03}


def test_a_learned_variance_is_trained_on(tmp_path: Path):
    model = made(UNET, SPEC, variance=True, schedule="ddpm", prediction="noise")
    place = write_diffusers(model, tmp_path / "out")
    recipe = resolve(Recipe, recipe_of(str(place)))
    ours = build_denoiser(recipe, SPEC)
    start_from(ours, str(place))
    assert all(torch.equal(part, model.module.state_dict()[name]) for name, part in ours.state_dict().items())


def test_a_transformer_in_latents_begins_as_it_was(tmp_path: Path):
    """With its codec, the size of its pictures, its variance and its labels."""
    tiny.dit(tmp_path, diffusers, None).save_pretrained(tmp_path)
    taken = recipe_of(str(tmp_path))
    assert taken["codec"] == {"kind": "pretrained", "path": str(tmp_path)}
    assert taken["data"] == {"size": 16, "channels": "rgb"} and taken["objective"]["learn_variance"]
    spec = DataSpec(kind="image", shape=(4, 8, 8), classes=tuple(map(str, range(1000))))
    theirs, ours = load(tmp_path).denoiser, build_denoiser(resolve(Recipe, taken), spec)
    start_from(ours, str(tmp_path))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = {"label": torch.tensor([7, 999])}
    with torch.no_grad():
        for given in (labels, None):
            answers = [one(x, 0.5, one.embed(given, 2)) for one in (theirs, ours)]
            torch.testing.assert_close(answers[1].raw, answers[0].raw, rtol=0, atol=1e-5)
            torch.testing.assert_close(answers[1].extras["variance"], answers[0].extras["variance"], rtol=0, atol=1e-5)


def test_a_home_folder_is_one(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    place = folder()
    monkeypatch.setenv("HOME", str(place.parent))
    assert recipe_of(f"~/{place.name}") == recipe_of(str(place))


def test_a_run_begins_as_the_model_and_new_labels_change_nothing(folder: Callable[..., Path]):
    place = folder(beta_end=0.03)
    theirs, ours = load(place), build_denoiser(resolve(Recipe, recipe_of(str(place))), SPEC)
    start_from(ours, str(place))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = theirs.denoiser(x, 0.5).raw
        for labels in ({"label": torch.tensor([0, 1])}, None):
            torch.testing.assert_close(ours(x, 0.5, ours.embed(labels, 2)).raw, exact, rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_a_table_of_labels_gets_a_row_for_none(folder: Callable[..., Path]):
    place = folder(2)
    theirs, ours = load(place), build_denoiser(resolve(Recipe, recipe_of(str(place))), SPEC)
    start_from(ours, str(place))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = {"label": torch.tensor([1, 0])}
    with torch.no_grad():
        exact = theirs.denoiser(x, 0.5, theirs.denoiser.embed(labels, 2)).raw
        torch.testing.assert_close(ours(x, 0.5, ours.embed(labels, 2)).raw, exact, rtol=0, atol=1e-5)
    table = ours.state_dict()["backbone.network.class_embedding.weight"]
    torch.testing.assert_close(table[2], table[:2].mean(0))
    other = DataSpec(kind="image", shape=(1, 8, 8), classes=("a", "b", "c"))
    with pytest.raises(CheckpointError, match="class_embedding"):
        start_from(build_denoiser(resolve(Recipe, recipe_of(str(place))), other), str(place))


def test_what_was_written_here_can_be_started_from(tmp_path: Path):
    """Its table has the row for no label, which is not taken for a class."""
    model = made(UNET, SPEC, schedule="ddpm", prediction="noise")
    place = write_diffusers(model, tmp_path / "out")
    ours = build_denoiser(resolve(Recipe, recipe_of(str(place))), SPEC)
    start_from(ours, str(place))
    assert all(torch.equal(part, model.module.state_dict()[name]) for name, part in ours.state_dict().items())


def test_models_that_are_not_tuned_here_are_refused_with_the_way_out(folder: Callable[..., Path], tmp_path: Path):
    files = {
        "model_index.json": {"_class_name": "DDPMPipeline"},
        "unet/config.json": {"_class_name": "UNet1DModel"},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"UNet1DModel are not trained here.*those with prompts"):
        choose("digits", None, [[f"train.init={tmp_path}"]])
    with pytest.raises(CheckpointError, match="none of linear, scaled_linear, squaredcos_cap_v2"):
        recipe_of(str(folder(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3)))
    place = folder()
    diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500).save_pretrained(place / "scheduler")
    with pytest.raises(CheckpointError, match="counts 500 training steps on the straight line, those here 1000"):
        recipe_of(str(place))

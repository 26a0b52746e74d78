"""What is loaded, refused, captured, saved and written back; and that tasks work on such models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.analysis import decode_noise, encode_noise, log_likelihood
from undiffuse.cli.main import run
from undiffuse.errors import CheckpointError
from undiffuse.models import load
from undiffuse.networks.hooks import capture, edit
from undiffuse.operators import parse_operator
from undiffuse.pretrained.convert import write_diffusers
from undiffuse.pretrained.loading import hub_id
from undiffuse.tasks.restore import restore

Pipelines = Callable[[str], tuple[Any, Path]]


@pytest.fixture
def copy(pipelines: Pipelines, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a pipeline and changes one of its JSON files."""

    def change(name: str, file: str = "", **fields: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(pipelines(name)[1], folder)
        if file:
            found = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(found | fields))
        return folder

    return change


def test_time_is_told_as_diffusers_counts_it(pipelines: Pipelines):
    table, flow = (load(pipelines(name)[1], size=16).denoiser for name in ("stable", "sd3"))
    x = torch.zeros(2, 4, 8, 8)
    assert table.noise_level(0.5, x).tolist() == [499.0, 499.0]
    assert table.noise_level(torch.tensor([1.0, 0.0]), x).tolist() == [999.0, 0.0]
    assert flow.noise_level(0.25, x).tolist() == [250.0, 250.0]
    with pytest.raises(ValueError, match="one time for each item"):
        table(x, torch.full((2, 4), 0.5))


def test_rows_do_not_depend_on_each_other_nor_on_the_form_of_the_time(pipelines: Pipelines):
    model = load(pipelines("sdxl")[1])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = {"prompt": torch.full((2, 4), -1)}
    cond["prompt"][0, :2] = torch.tensor([97, 98])
    both = model.denoiser(x, torch.tensor([0.3, 0.8]), model.denoiser.embed(cond, 2)).mean
    one = {name: rows[1:] for name, rows in cond.items()}
    torch.testing.assert_close(both[1:], model.denoiser(x[1:], 0.8, model.denoiser.embed(one, 1)).mean)
    dropped = model.denoiser.embed(cond, 2, {"prompt": torch.tensor([True, False])})
    torch.testing.assert_close(dropped.tokens[0], torch.zeros_like(dropped.tokens[0]))  # sdxl: no prompt is zeros


def test_embeddings_of_a_prompt_are_kept(pipelines: Pipelines):
    reader = load(pipelines("stable")[1]).denoiser.reader
    first = reader.texts("a cat")
    assert reader.texts("a cat").tokens is first.tokens
    reader.double()
    assert reader.texts("a cat").tokens.dtype == torch.float64


def test_a_prompt_that_is_too_long_is_cut_and_the_count_told(pipelines: Pipelines):
    model = load(pipelines("stable")[1])
    with pytest.warns(UserWarning, match=r"is 6 tokens too long for tokenizer .* reads 12"):
        model.sample(1, steps=1, cond={"prompt": "a b c d e f g h i j k l m n o p"})


def test_blocks_are_captured_and_edited(pipelines: Pipelines):
    for name, block, shape in (("stable", "down1.attention0", (1, 16, 4, 4)), ("sd3", "block0", (1, 16, 16))):
        model = load(pipelines(name)[1])
        network, x = model.module.backbone, torch.ones(1, 4, 8, 8)
        plain = model.denoiser(x, 0.5).mean
        with capture(network, list(network.blocks)) as taken:
            model.denoiser(x, 0.5)
        assert all(isinstance(value, torch.Tensor) for value in taken.values())
        assert taken[block].shape == shape
        with edit(network, {block: lambda value: 2 * value}):
            changed = model.denoiser(x, 0.5).mean
        assert (changed - plain).abs().max() > 1e-5
        torch.testing.assert_close(model.denoiser(x, 0.5).mean, plain)


def test_tasks_work_in_latents_and_in_pixels(pipelines: Pipelines):
    for name in ("stable", "ddim"):
        model = load(pipelines(name)[1])
        data = torch.rand(2, *model.spec.shape, generator=torch.Generator().manual_seed(0)) * 255
        found = log_likelihood(model, data, integrator="heun", steps=2, probes=2)
        assert found.log_p.shape == (2,) and found.log_p.isfinite().all()
        assert model.sample(2, steps=2, solver="heun", grid="karras").shape == data.shape
        assert decode_noise(model, encode_noise(model, data, steps=2), steps=2).shape == data.shape
        measure = parse_operator("downsample:2", model.spec.shape)
        y = measure(model.spec.to_model(data))
        restored = restore(model, y, measure, noise_std=0.1, samples=1, steps=2)
        assert restored.mean.shape == data.shape and restored.mean.isfinite().all()


def test_a_model_is_saved_by_reference(copy: Callable[..., Path], tmp_path: Path):
    folder = copy("ddim")
    model = load(folder)
    model.defaults["steps"] = 2
    again = load(model.save(tmp_path / "kept"))
    assert again.defaults["steps"] == 2
    assert torch.equal(again.sample(1), model.sample(1))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="has changed"):
        load(tmp_path / "kept")


def test_written_back_and_read_again(pipelines: Pipelines, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import diffusers

    folder = pipelines("ddim")[1]
    assert run(["convert", str(folder), str(tmp_path / "out"), "--json"]) == 0
    assert torch.equal(load(tmp_path / "out").sample(1, steps=2), load(folder).sample(1, steps=2))
    assert isinstance(diffusers.DDIMPipeline.from_pretrained(tmp_path / "out"), diffusers.DDIMPipeline)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path)
    bare = load(folder / "unet", scheduler=tmp_path / "scheduler_config.json")  # a network without its pipeline
    again = load(write_diffusers(bare, tmp_path / "bare"))
    assert torch.equal(again.sample(1, steps=2), load(folder).sample(1, steps=2))
    corrected = json.loads((tmp_path / "scheduler_config.json").read_text()) | {"prediction_type": "v_prediction"}
    other = load(write_diffusers(load(folder, scheduler=corrected), tmp_path / "corrected"))
    assert other.denoiser.prediction == "v"
    with pytest.raises(CheckpointError, match="no counterpart in diffusers"):
        write_diffusers(load("digits"), tmp_path / "ours")
    capsys.readouterr()
    assert run(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_the_command_takes_the_folder(pipelines: Pipelines, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(pipelines("stable")[1])
    words = ["sample", folder, "-n", "1", "--steps", "1", "--prompt", "a cat", "--guidance", "2"]
    assert run([*words, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cond"] == {"prompt": "a cat"}
    assert run(["info", folder]) == 0
    said = capsys.readouterr().out
    assert "StableDiffusionPipeline of diffusers" in said and "prompt (text)" in said and "DPMSolver" in said


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("model_index.json", {"_class_name": "StableVideoPipeline"}, "this version loads DDPMPipeline, DDIMPipeline"),
        ("model_index.json", {"unet": ["their_code", "UNet"]}, "is never run here"),
        ("scheduler/scheduler_config.json", {"_class_name": "RePaintScheduler"}, "scheduler='scheduler_config.json'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "x"}, "prediction_type='x'"),
        ("unet/config.json", {"sample_size": None}, r"load\(folder, size=512\)"),
        ("unet/config.json", {"block_out_channels": [8, 4]}, "cannot be loaded"),
    ],
)
def test_folders_that_are_refused(file: str, fields: dict[str, Any], words: str, copy: Callable[..., Path]):
    with pytest.raises(CheckpointError, match=words):
        load(copy("ddim", file, **fields))


def test_weights_that_are_refused(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    folder = copy("ddim")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert run(["sample", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "a pickle" in said and "save_pretrained(" in said
    weights.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(folder)


def test_words_that_are_refused(pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = pipelines("ddim")[1]
    for options, words in (({"offload": "disk"}, "offload"), ({"dtype": "int8"}, "dtype"), ({"size": -1}, "size")):
        with pytest.raises(ValueError, match=words):
            load(folder, **options)
    with pytest.raises(ValueError, match="option of pretrained pipelines"):
        load("digits", size=4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install peft"):
        load(folder, lora=str(tmp_path))
    shutil.copytree(folder / "unet", tmp_path / "alone")
    with pytest.raises(CheckpointError, match="says nothing about its noise levels"):
        load(tmp_path / "alone")
    model = load(pipelines("dit")[1])
    with pytest.raises(ValueError, match="label 1000 does not exist"):
        model.sample(1, cond={"label": 1000})
    with pytest.raises(ValueError, match="label for every item"):
        load(pipelines("consistency")[1]).sample(1)


def test_without_a_network_the_folder_is_named(monkeypatch: pytest.MonkeyPatch):
    import diffusers

    def unreachable(*args: Any, **options: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", unreachable)
    for name in ("hf://nobody/nothing", "nobody/nothing"):
        with pytest.raises(CheckpointError, match=r"no route.*undiffuse.load\('FOLDER'\)"):
            load(name)


@pytest.mark.parametrize(
    "name", ["./nobody/nothing", "~/nobody", "nobody/nothing.safetensors", "/nobody/nothing", "a/b/c", "runs/nothing"]
)
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import diffusers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *args, **options: pytest.fail("asked the hub"))
    assert run(["sample", name]) == 1
    assert "there is no model" in capsys.readouterr().err
    assert hub_id(name) is None and hub_id("owner/model-v1.5") == "owner/model-v1.5" == hub_id("hf://owner/model-v1.5")
    (tmp_path / "models").mkdir()
    assert hub_id("models/name") is None and hub_id("owner/FLUX.1-dev") == "owner/FLUX.1-dev"

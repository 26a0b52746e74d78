"""Pipelines with prompts are tuned by our trainer, and diffusers draws with what was learned."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import undiffuse as ud
from undiffuse.cli.main import run
from undiffuse.errors import CheckpointError, ConfigError, UndiffuseError
from undiffuse.models import load
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.pretrained.convert import write_diffusers
from undiffuse.pretrained.denoiser import DiffusersDenoiser
from undiffuse.pretrained.tunable import tuned_size
from undiffuse.pretrained.tuning import TunedDenoiser, tuned_denoiser
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.checkpoints import newest_checkpoint
from undiffuse.training.starting import recipe_of

pytest.importorskip("diffusers")
pytest.importorskip("peft")
Pipelines = Callable[[str], tuple[Any, Path]]
QUICK = {"batch_size": 2, "preview_every": 0, "validate_every": 0, "lr": 1e-2, "warmup": 0}
SIDE = 16
CAPTIONED = {"caption": ConditionSpec(kind="text", length=8)}
LATENT = DataSpec(kind="image", shape=(4, 8, 8), cond=CAPTIONED)
FILES = {"lora": "pytorch_lora_weights.safetensors", "network": "diffusion_pytorch_model.safetensors"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and green pictures, with captions that say so."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        colours = np.zeros((SIDE, SIDE, 3), np.uint8)
        colours[..., number % 2] = 150 + 10 * number
        Image.fromarray(colours).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(("red", "green")[number % 2])
    return folder


@pytest.fixture(scope="module")
def tuned(pipelines: Pipelines, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ud.Run]:
    """Return a function from a family's name to a run that has tuned its pipeline by a LoRA of rank 3."""
    made: dict[str, ud.Run] = {}

    def get(name: str) -> ud.Run:
        if name not in made:
            out = tmp_path_factory.mktemp("tuned") / name
            made[name] = tune(pipelines(name)[1], photos, out, "model.rank=3")
        return made[name]

    return get


def tune(pipeline: Path, data: Path, out: Path, *keys: str, steps: int = 4, **train: Any) -> ud.Run:
    words = [f"train.init={pipeline}", f"data.size={SIDE}", *keys]
    return ud.train(str(data), overrides=words, out=out, steps=steps, **QUICK | train)


def answers(model: ud.Model, network: Any | None = None) -> torch.Tensor:
    """Return what a model says about a noisy latent and a prompt; with another network in its place if given."""
    denoiser = model.module
    assert isinstance(denoiser, DiffusersDenoiser)
    x = torch.randn(1, *model.state_spec.shape, generator=torch.Generator().manual_seed(0))
    cond = ud.models.conditions.fit_conditions({"prompt": "red"}, 1, model.state_spec, x.device)
    if network is not None:
        denoiser.backbone.network = network
    with torch.no_grad():
        return denoiser(x, 0.5, cond=denoiser.embed(cond, 1)).mean


@pytest.mark.parametrize("family", ["stable", "sdxl", "sd3", "flux"])
def test_diffusers_reads_what_was_learned(family: str, pipelines: Pipelines, tuned: Callable[[str], ud.Run]):
    import diffusers

    folder, result = pipelines(family)[1], tuned(family)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    before = answers(load(folder, size=SIDE), copy.deepcopy(getattr(pipe, part)))
    pipe.load_lora_weights(str(result.folder), weight_name=FILES["lora"])
    theirs = answers(load(folder, size=SIDE), getattr(pipe, part))
    ours = answers(result.model)
    scale = (ours - before).abs().max()
    assert scale > 1e-4
    assert (ours - theirs).abs().max() < 1e-3 * scale


def test_a_run_keeps_what_it_trains_and_nothing_else(tuned: Callable[[str], ud.Run]):
    checkpoint = newest_checkpoint(tuned("stable").folder / "checkpoints")
    assert checkpoint is not None
    kinds = ("model/", "ema0/", "ema1/", "adam/", "window/")
    assert all(name.startswith(kinds) for name in checkpoint.tensors)
    weights = [name for name in checkpoint.tensors if name.startswith("model/")]
    assert weights and all(".lora_" in name for name in weights)
    written = load_file(tuned("stable").folder / FILES["lora"])
    assert len(written) == len(weights)
    assert {tensor.shape[0] for name, tensor in written.items() if "lora_A" in name} == {3}


def test_the_pipeline_itself_stays_as_it_was(pipelines: Pipelines, tuned: Callable[[str], ud.Run]):
    pipe, folder = pipelines("stable")
    tuned("stable")
    found = load_file(folder / "unet" / FILES["network"])
    assert all(torch.equal(tensor, found[name]) for name, tensor in pipe.unet.state_dict().items())


def test_whole_networks_are_tuned(pipelines: Pipelines, photos: Path, tmp_path: Path):
    folder = pipelines("pixart")[1]
    result = tune(folder, photos, tmp_path / "run", "model.rank=0", lr=1e-3)
    assert (result.folder / FILES["network"]).is_file()
    learned = load_file(result.folder / FILES["network"])
    before = load_file(folder / "transformer" / FILES["network"])
    assert learned.keys() == before.keys()
    changed = [name for name in learned if not torch.equal(learned[name], before[name])]
    assert len(changed) > 0.5 * len(before)
    again = load(folder, size=SIDE, network=str(result.folder / FILES["network"]))
    assert torch.equal(answers(again), answers(result.model))


def test_it_learns_what_captions_say(pipelines: Pipelines, photos: Path, tmp_path: Path):
    """With the right prompt the errors about a picture end below those with the other's."""
    shutil.copytree(pipelines("stable")[1], folder := tmp_path / "pipe")
    place = folder / "vae" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "scaling_factor": 4.0}))  # latents of unit variance
    result = tune(folder, photos, tmp_path / "run", "model.rank=0", steps=200, batch_size=8, lr=1.5e-2)
    assert advantage(result.model, photos) > 0.05  # measured: 0.26
    assert abs(advantage(load(folder, size=SIDE), photos)) < 1e-3


def advantage(model: ud.Model, photos: Path) -> float:
    """Return by which share right prompts have smaller errors than wrong ones."""
    pictures = torch.stack(
        [torch.from_numpy(np.array(Image.open(photos / f"{n}.png"))).permute(2, 0, 1) for n in range(8)]
    )
    x = model.encode(pictures.float())
    names = [("red", "green")[n % 2] for n in range(8)]
    errors = []
    for shift in (0, 1):
        cond = {"prompt": [names[(n + shift) % 8] for n in range(8)]}
        rows = ud.models.conditions.fit_conditions(cond, 8, model.state_spec, x.device)
        embedded, total = model.denoiser.embed(rows, 8), 0.0
        for seed in range(6):
            eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                found = model.denoiser(model.process.corrupt(x, 0.7, eps), 0.7, cond=embedded).mean
            total += float((found - x).square().mean())
        errors.append(total)
    return (errors[1] - errors[0]) / errors[0]


def test_a_run_goes_on_bit_for_bit(pipelines: Pipelines, photos: Path, tmp_path: Path):
    folder = pipelines("stable")[1]
    whole = tune(folder, photos, tmp_path / "whole", steps=5, decay="constant", checkpoint_every=3)
    tune(folder, photos, tmp_path / "parts", steps=3, decay="constant", checkpoint_every=3)
    parts = tune(folder, photos, tmp_path / "parts", steps=5, decay="constant", checkpoint_every=3)
    found = [load_file(result.folder / FILES["lora"]) for result in (whole, parts)]
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_lora_changes_nothing_at_first(pipelines: Pipelines):
    denoiser = made(pipelines("stable")[1])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([[*b"red"], [*b"tan"]])
    embedded = denoiser.embed({"caption": rows}, 2)
    ours = denoiser(x, 0.5, cond=embedded).mean
    theirs = load(pipelines("stable")[1]).denoiser
    assert torch.equal(ours, theirs(x, 0.5, cond=theirs.embed({"prompt": rows}, 2)).mean)


def test_dropped_captions_are_no_prompt(pipelines: Pipelines):
    denoiser = made(pipelines("stable")[1])
    rows = torch.tensor([[*b"red"], [*b"tan"]])
    found = denoiser.embed({"caption": rows}, 2, {"caption": torch.tensor([False, True])})
    whole, none = denoiser.embed({"caption": rows}, 2), denoiser.embed(None, 2)
    assert found is not None and whole is not None and none is not None
    assert found.tokens is not None and whole.tokens is not None and none.tokens is not None
    assert torch.equal(found.tokens, torch.stack([whole.tokens[0], none.tokens[1]]))


def test_copies_share_what_is_frozen(pipelines: Pipelines):
    denoiser = made(pipelines("stable")[1])
    other = copy.deepcopy(denoiser)
    mine, theirs = dict(denoiser.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all((mine[name] is theirs[name]) == (name not in denoiser.trained) for name in mine)
    assert other.backbone.network is not denoiser.backbone.network and other.reader is denoiser.reader


@pytest.mark.parametrize("family", ["stable", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("rank", [0, 5])
def test_sizes_are_known_before_anything_is_loaded(family: str, rank: int, pipelines: Pipelines):
    folder = pipelines(family)[1]
    options = PretrainedNetworkOptions(rank=rank)
    channels = load(folder).state_spec.shape[0]
    denoiser = made(folder, rank=rank, channels=channels)
    counts = [sum(p.numel() for p in denoiser.parameters() if p.requires_grad is flag) for flag in (True, False)]
    trained, others = tuned_size(str(folder), denoiser.spec, options)
    fixed = sum(buffer.numel() for buffer in denoiser.backbone.network.buffers())  # some are in the file, some not
    assert counts[0] <= trained <= counts[0] + (0 if rank else fixed)
    assert others >= 4 * counts[1]  # the codec too


def test_class_names_become_prompts(pipelines: Pipelines):
    spec = DataSpec(kind="image", shape=(4, 8, 8), classes=("cat", "dog"))
    denoiser = made(pipelines("stable")[1], spec=spec, prompt="my {label}")
    rows = denoiser.prompted({"label": torch.tensor([1, 0])}, 2)["prompt"]
    assert [bytes(row.tolist()).decode() for row in rows] == ["my dog", "my cat"]
    constant = made(pipelines("stable")[1], spec=DataSpec(kind="image", shape=(4, 8, 8)), prompt="a toy")
    rows = constant.prompted({}, 3)["prompt"]
    assert [bytes(row.tolist()).decode() for row in rows] == ["a toy"] * 3


def made(folder: Path, *, channels: int = 0, spec: DataSpec = LATENT, **options: Any) -> TunedDenoiser:
    found = load(folder).denoiser
    assert isinstance(found, DiffusersDenoiser)
    spec = DataSpec(kind="image", shape=(channels, 8, 8), cond=CAPTIONED) if channels else spec
    given = PretrainedNetworkOptions(**options)
    return tuned_denoiser(str(folder), found.process, found.prediction, spec=spec, options=given)


# -- what people do with the result -----------------------------------------------------------------------


def test_a_run_may_be_moved(tuned: Callable[[str], ud.Run], tmp_path: Path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tuned("stable").folder, moved)
    assert torch.equal(answers(load(moved)), answers(tuned("stable").model))
    (moved / FILES["lora"]).unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load(moved)


def test_another_pipeline_in_its_place_is_refused(pipelines: Pipelines, photos: Path, tmp_path: Path):
    shutil.copytree(pipelines("stable")[1], tmp_path / "pipe")
    result = tune(tmp_path / "pipe", photos, tmp_path / "run", steps=1)
    place = tmp_path / "pipe" / "unet" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "sample_size": 9}))
    with pytest.raises(CheckpointError, match="has changed"):
        load(result.folder)


def test_the_result_becomes_a_pipeline(tuned: Callable[[str], ud.Run], tmp_path: Path):
    folder = write_diffusers(tuned("stable").model, tmp_path / "out")
    assert torch.allclose(answers(load(folder, size=SIDE)), answers(tuned("stable").model), atol=1e-6)


def test_commands_train_and_draw(
    pipelines: Pipelines, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    keys = [f"train.init={pipelines('stable')[1]}", "train.steps=2", "train.batch_size=2", "train.previews=2"]
    keys += ["train.preview_every=2", "sample.steps=2", "sample.guidance=1"]
    assert run(["train", str(photos), *keys, "--out", str(out)]) == 0
    assert {"steps": 2, "guidance": 1.0}.items() <= load(out).defaults.items()
    assert (out / "samples" / "step-00000002.png").is_file()
    assert "16,384 parameters" in capsys.readouterr().out
    asked = ["--prompt", "red", "--prompt", "green", "-n", "2", "--steps", "2"]
    assert run(["sample", str(out), *asked, "--out", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3  # a grid and both
    assert run(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == str(out)


@pytest.mark.parametrize(
    ("family", "keys", "said"),
    [
        ("lcm", (), "distilled for few steps"),
        ("pixart", (), "takes no LoRA"),
        ("stable", ("model.targets=to_q,to_z",), "no layer of this network ends in 'to_z'; .* to_k, .*to_out.0"),
        ("stable", ("process.prediction=v",), "predicts v. is not that of"),
        ("stable", ("process.schedule=cosine-table",), "predicts noise. is not that of"),
        ("stable", ("train.optimizer=muon",), "muon"),
        ("stable", ("train.snapshot_every=1",), "snapshot_every"),
        ("stable", ("objective.coupling=optimal",), "coupling=independent"),
        ("stable", ("model.prompt=a {Label}",), "only word in braces"),
        ("sd3", ("data.size=18",), "set data.size to a multiple of 4"),
        ("flux", ("data.size=18",), "set data.size to a multiple of 4"),
        ("stable", ("train.shard=true",), "shard"),
        ("stable", ("objective=meanflow",), "objective=meanflow"),
        ("stable", ("data.cond=none", "model.prompt="), "nothing says what the pictures show"),
        ("ddim", ("model=pretrained",), "reads no prompts|a pipeline of diffusers with prompts"),
        ("stable", ("model.rank=0", "model.dtype=bfloat16"), "small changes are lost"),
    ],
)
def test_what_cannot_be_is_said(
    family: str, keys: tuple[str, ...], said: str, pipelines: Pipelines, photos: Path, tmp_path: Path
):
    with pytest.raises(UndiffuseError, match=said):
        tune(pipelines(family)[1], photos, tmp_path / "run", *keys)


def test_a_tuned_run_is_no_start_of_another(tuned: Callable[[str], ud.Run], photos: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="undiffuse convert"):
        tune(tuned("stable").folder, photos, tmp_path / "run", "model=unet", "model.channels=8")


def test_other_conditions_are_refused(pipelines: Pipelines):
    told = {**CAPTIONED, "age": ConditionSpec(kind="vector", width=1)}
    with pytest.raises(ConfigError, match="but these data have age"):
        made(pipelines("stable")[1], spec=DataSpec(kind="image", shape=(4, 8, 8), cond=told))


def test_weights_of_another_network_are_refused(pipelines: Pipelines, tmp_path: Path):
    folder, other = pipelines("stable")[1], pipelines("sdxl")[1] / "unet"
    with pytest.raises(CheckpointError, match="another network"):
        load(folder, network=str(other))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load(folder, network=str(tmp_path))


def test_frozen_weights_may_be_bfloat16(pipelines: Pipelines, photos: Path, tmp_path: Path):
    result = tune(pipelines("stable")[1], photos, tmp_path / "run", "model.dtype=bfloat16", steps=2)
    written = load_file(result.folder / FILES["lora"])
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    before, after = (dict(m.denoiser.named_parameters()) for m in (load(pipelines("stable")[1]), result.model))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    learned = written[f"unet.{layer}.lora_B.weight"] @ written[f"unet.{layer}.lora_A.weight"]
    change = after[f"backbone.network.{layer}.weight"] - before[f"backbone.network.{layer}.weight"]
    assert torch.allclose(change, learned, rtol=1e-3, atol=1e-7)


def test_encoders_stay_in_evaluation(pipelines: Pipelines):
    denoiser = made(pipelines("flux")[1], channels=16).train()
    assert denoiser.training and not any(part.training for part in denoiser.reader.encoders.modules())


def test_the_pipeline_loses_its_codec_and_nobody_elses_draws_change(pipelines: Pipelines):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    denoiser = made(pipelines("stable")[1])
    assert torch.equal(torch.rand(1), expected)
    assert denoiser.reader.pipe.vae is None and denoiser.pipeline.codec is None


def test_dropped_classes_are_no_prompt(pipelines: Pipelines):
    spec = DataSpec(kind="image", shape=(4, 8, 8), classes=("cat", "dog"))
    denoiser = made(pipelines("stable")[1], spec=spec)
    found = denoiser.embed({"label": torch.tensor([0, 1])}, 2, {"label": torch.tensor([True, False])})
    none, dog = denoiser.embed(None, 1), denoiser.embed({"label": torch.tensor([1])}, 1)
    assert found is not None and none is not None and dog is not None
    assert found.tokens is not None and none.tokens is not None and dog.tokens is not None
    assert torch.equal(found.tokens, torch.cat([none.tokens, dog.tokens]))


def test_what_follows_from_the_folder(pipelines: Pipelines):
    taken = recipe_of(str(pipelines("flux")[1]))
    assert taken["model"] == {"kind": "pretrained"} and taken["sample"] == {"guidance": 1.0}
    assert taken["data"] == {"size": 256, "channels": "rgb", "caption_length": 4096}
    assert recipe_of(str(pipelines("stable")[1]))["sample"] == {"guidance": 7.5}
    assert taken["train"]["lr"] == 1e-4


def test_a_run_does_not_go_on_with_another_pipeline(pipelines: Pipelines, photos: Path, tmp_path: Path):
    shutil.copytree(pipelines("stable")[1], tmp_path / "pipe")
    tune(tmp_path / "pipe", photos, tmp_path / "run", steps=1)
    place = tmp_path / "pipe" / "unet" / FILES["network"]
    save_file({name: 1.5 * tensor for name, tensor in load_file(place).items()}, place)
    with pytest.raises(CheckpointError, match="has changed"):
        tune(tmp_path / "pipe", photos, tmp_path / "run", steps=2)


def test_refusals_come_before_pictures_are_encoded(pipelines: Pipelines, photos: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="takes no LoRA"):
        tune(pipelines("pixart")[1], photos, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()

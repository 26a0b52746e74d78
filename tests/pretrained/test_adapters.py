"""LoRA weights equal those in diffusers' own pipeline; precision, slices and offloading do what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from undiffuse.cli.main import run
from undiffuse.errors import CheckpointError
from undiffuse.models import Model, load

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
Pipelines = Callable[[str], tuple[Any, Path]]
STEPS, TOLERANCE = 4, 1e-4  # of pictures in [0, 1]; measured: 4e-7
FILE = "pytorch_lora_weights.safetensors"


def adapter(network: Any, targets: list[str], alpha: int) -> dict[str, Tensor]:
    """Give a network an adapter of rank 2 with random weights, and return them as peft names them."""
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=targets))
    generator = torch.Generator().manual_seed(alpha)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return peft.utils.get_peft_model_state_dict(network)


@pytest.fixture(scope="module")
def lora(pipelines: Pipelines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers writes it, of network and text encoder, whose scale alpha / r lies in its metadata."""
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipelines("stable")[1], safety_checker=None)
    parts = {
        "unet": adapter(pipe.unet, ["to_q", "to_v", "conv1"], 5),
        "text_encoder": adapter(pipe.text_encoder, ["q_proj"], 3),
    }
    folder = tmp_path_factory.mktemp("lora")
    given = {f"{name}_lora_layers": part for name, part in parts.items()}
    facts = {f"{name}_lora_adapter_metadata": getattr(pipe, name).peft_config["default"].to_dict() for name in parts}
    pipe.save_lora_weights(folder, **given, **facts)
    return folder


def drawn(model: Model) -> Tensor:
    asked: dict[str, Any] = {"steps": STEPS, "start": start(), "cond": {"prompt": "a cat"}, "guidance": 3.0}
    return model.sample(1, **asked).permute(0, 2, 3, 1) / 255


def start() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn_by_diffusers(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "latents": start(), "guidance_scale": 3.0}
    return torch.from_numpy(pipe("a cat", height=16, width=16, output_type="np", **asked).images)


def test_pictures_are_those_of_diffusers_with_the_same_lora(pipelines: Pipelines, lora: Path, tmp_path: Path):
    """Loaded, and fused by the command into a folder that diffusers reads."""
    import diffusers

    folder = pipelines("stable")[1]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.load_lora_weights(lora)
    pipe.set_adapters(pipe.get_active_adapters(), [0.5])
    theirs, plain = drawn_by_diffusers(pipe), drawn(load(folder, size=16))
    model = load(folder, lora=lora / FILE, lora_scale=0.5, size=16)
    assert (drawn(model) - theirs).abs().max() < TOLERANCE
    assert (theirs - plain).abs().max() > 100 * TOLERANCE
    assert not [name for name in model.denoiser.state_dict() if "lora" in name]
    assert torch.equal(drawn(load(folder, lora=str(lora), lora_scale=0, size=16)), plain)
    words = ["--lora", str(lora), "--lora-scale", "0.5", "--json"]
    assert run(["convert", str(folder), str(tmp_path / "ink"), *words]) == 0
    fused = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ink", safety_checker=None)
    assert (drawn_by_diffusers(fused) - theirs).abs().max() < TOLERANCE


def test_a_reference_keeps_the_lora(pipelines: Pipelines, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its own path and hash, wherever one stands."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / FILE).write_bytes((lora / FILE).read_bytes())
    monkeypatch.chdir(tmp_path)
    kept = load(pipelines("stable")[1], lora=FILE, size=16).save("kept")
    monkeypatch.chdir("elsewhere")
    again = load(tmp_path / kept)
    assert torch.equal(drawn(again), drawn(load(pipelines("stable")[1], lora=lora, size=16)))
    assert torch.equal(drawn(load(again.save("twice"))), drawn(again))
    (tmp_path / FILE).write_bytes((lora / FILE).read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="has changed"):
        load(tmp_path / kept)
    (tmp_path / FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{FILE}, is gone"):
        load(tmp_path / kept)


def test_a_folder_of_peft_is_added_to_the_network(pipelines: Pipelines, tmp_path: Path):
    import diffusers

    folder = pipelines("stable")[1]
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_k"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.full_like(parameter, 0.2)
    wrapped.save_pretrained(tmp_path)
    ours = load(folder, lora=tmp_path).denoiser.backbone.network
    x, words = start(), torch.ones(1, 12, 16)
    with torch.no_grad():
        answers = [one(x, 5, encoder_hidden_states=words).sample for one in (wrapped, ours)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        load(folder, lora=tmp_path)


def test_files_that_are_refused(pipelines: Pipelines, lora: Path, tmp_path: Path):
    def refused(name: str, words: str, path: Path, **more: Any) -> None:
        with pytest.raises(CheckpointError, match=words) as caught:
            load(pipelines(name)[1], lora=path, **more)
        assert "\n" not in str(caught.value)

    refused("stable", "does not exist", tmp_path / "none.safetensors")
    refused("stable", "folder with no safetensors file", tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    refused("stable", "1 tensors and none of LoRA", tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02")
    refused("stable", "no safetensors file; pickles are refused", tmp_path / "weights.bin")
    (tmp_path / "renamed.safetensors").write_bytes(b"\x80\x02" + bytes(64))
    refused("stable", "is a pickle, whatever its name", tmp_path / "renamed.safetensors")
    refused("sdxl", "does not fit this StableDiffusionXLPipeline .*size mismatch", lora)
    refused("flux", "does not fit this FluxPipeline .4 of its 52 tensors", lora)
    refused("ddim", "a DDIMPipeline takes no LoRA weights", lora)
    with pytest.raises(ValueError, match="an option of whole pipelines"):
        load(pipelines("ddim")[1] / "unet", lora=lora)
    with pytest.raises(ValueError, match=r"lora_scale=0\.5 scales LoRA weights"):
        load(pipelines("ddim")[1], lora_scale=0.5)
    with pytest.raises(TypeError, match="Did you mean 'lora_scale'"):
        load(pipelines("ddim")[1], lora_scal=0.5)


def test_what_fits_in_part_is_told(pipelines: Pipelines, lora: Path, tmp_path: Path):
    from safetensors.torch import load_file

    tensors = load_file(lora / FILE)
    stray = {"unet.nowhere.lora_A.weight": torch.ones(2, 2), "unet.nowhere.lora_B.weight": torch.ones(2, 2)}
    save_file(tensors | stray, tmp_path / "more.safetensors")
    with pytest.warns(UserWarning, match="2 of its 54 tensors fit nothing"):
        load(pipelines("stable")[1], lora=tmp_path)


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_pictures_in_less_precision_are_near(pipelines: Pipelines, dtype: str, unit: float):
    """A few hundred operations (4 steps of two passes of some 40 layers) round values of size 1 to `unit` each, and
    errors of random sign add up to its multiple by the root of their number, at most 20."""
    model = load(pipelines("stable")[1], size=16, dtype=dtype, slicing=True)
    assert model.codec is not None and model.codec.network.use_slicing
    assert {str(p.dtype) for p in model.module.parameters()} == {f"torch.{dtype}"}
    apart = (drawn(model) - drawn(load(pipelines("stable")[1], size=16))).square().mean().sqrt()
    assert 0 < apart < 20 * unit / 2  # pictures in [0, 1] are half of those in [-1, 1]


@pytest.mark.slow
def test_compiled_networks_answer_as_plain_ones(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch):
    """Traced by the compiler; its generated code, which takes minutes to make here, is left out."""
    traced: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    inner = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: inner(self, backend=backend))
    model = load(pipelines("dit")[1], compile=True)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = load(pipelines("dit")[1]).denoiser(x, 0.5).raw
        assert not traced
        torch.testing.assert_close(model.denoiser(x, 0.5).raw, plain, rtol=0, atol=1e-5)
    assert traced


def test_the_command_passes_options_of_loading_on(
    pipelines: Pipelines, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["sample", str(pipelines("stable")[1]), "--prompt", "a cat", "-n", "1", "--steps", "1", "--json"]
    words += ["--load", f"lora={lora}", "--load", "lora_scale=0.5", "--load", "size=16", "--dtype", "float16"]
    assert run([*words, "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["sampling"]["load"] == [f"lora={lora}", "lora_scale=0.5", "size=16"]
    for word, said in (
        ("offload=model", "keeps on the accelerator only what runs, and this machine has none"),
        ("dtype=float16", "--dtype, where a command has it"),
        ("slicing", "write NAME=VALUE"),
        ("slices=true", "Did you mean 'slicing'"),
        ("slicing=no", "slicing='no' is neither true nor false"),
        ("size=big", "size=big must be a number of pixels"),
    ):
        assert run([*words[:9], "--load", word]) == 1
        assert said in capsys.readouterr().err
    assert run(["sample", "digits", "--load", "size=8"]) == 1
    assert "size is an option of pretrained pipelines; digits is none" in capsys.readouterr().err

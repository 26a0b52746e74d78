"""Networks of diffusers that were trained here become folders from which diffusers draws the same pictures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretrained.trained import DIT, UNET, made
from undiffuse.analysis import log_likelihood
from undiffuse.cli.main import run
from undiffuse.codecs.options import PretrainedCodecOptions
from undiffuse.codecs.pretrained import load_pretrained
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.few_steps import distill
from undiffuse.errors import ConfigError
from undiffuse.models import Model, load
from undiffuse.models.scheduled import setup_of
from undiffuse.operators import parse_operator
from undiffuse.pretrained.convert import write_diffusers
from undiffuse.process.options import GaussianOptions
from undiffuse.process.registry import make_schedule
from undiffuse.process.tables import TableSchedule
from undiffuse.sampling.diffusers_betas import Betas
from undiffuse.spec import DataSpec
from undiffuse.tasks.classify import error_table
from undiffuse.tasks.features import FeatureEncoder
from undiffuse.tasks.match import match
from undiffuse.tasks.restore import restore

pytest.importorskip("diffusers")
Pipelines = Callable[[str], tuple[Any, Path]]
STEPS = 4
TOLERANCE = 1e-4  # of pictures in [0, 1]; measured: 1e-6
PLAIN = DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255))
CLASSES = ("cat", "dog", "owl")
LABELLED = DataSpec(kind="image", shape=(3, 8, 8), range=(0, 255), classes=CLASSES)


def pictures(samples: Tensor) -> Tensor:
    return samples.permute(0, 2, 3, 1) / 255


def drawn_by_diffusers(folder: Path, start: Tensor, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> Tensor:
    """Return pictures (B, H, W, C) in [0, 1] of the pipeline in a folder, begun at given noise."""
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(importlib.import_module(type(pipe).__module__), "randn_tensor", lambda *a, **kw: start.clone())
    return torch.from_numpy(pipe(num_inference_steps=STEPS, output_type="np", **asked).images)


def drawn_here(model: Model, folder: Path, start: Tensor, **asked: Any) -> Tensor:
    """Return the pictures of the model itself, which knows no scheduler, at the noise levels of the folder's."""
    setup = setup_of(load(folder).defaults, model.state_spec.shape)
    assert setup is not None
    return pictures(model.sample(2, start=start, grid=setup.grid(STEPS), solver=setup.solver, **asked))


@pytest.mark.parametrize(
    ("process", "betas"),
    [
        ({"schedule": "ddpm", "prediction": "noise", "beta_max": 0.03, "levels": 400}, "linear"),
        ({"schedule": "scaled-linear", "prediction": "v", "zero_snr": True}, "scaled_linear"),
        ({"schedule": "cosine-table", "prediction": "data"}, "squaredcos_cap_v2"),
        ({"schedule": "rf", "prediction": "velocity"}, None),
    ],
)
def test_pipelines_of_diffusers_draw_our_pictures(
    process: dict[str, Any], betas: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = made(UNET, PLAIN, **process)
    folder = write_diffusers(model, tmp_path / "out")
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = drawn_by_diffusers(folder, start, monkeypatch, batch_size=2)
    kept = load(model.save(tmp_path / "kept"))  # an ordinary folder of ours, too
    assert (drawn_here(kept, folder, start) - theirs).abs().max() < TOLERANCE
    again = load(folder)
    assert (pictures(again.sample(2, start=start, steps=STEPS)) - theirs).abs().max() < TOLERANCE
    assert again.spec == model.spec and again.defaults["scheduler"]["config"].get("beta_schedule") == betas
    assert theirs.std() > 0.02 and theirs.isfinite().all()


def test_a_transformer_in_the_latents_of_diffusers_becomes_its_pipeline(
    pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = DataSpec(kind="image", shape=(3, 16, 16), range=(0, 255), classes=CLASSES)
    codec = load_pretrained(PretrainedCodecOptions(path=str(pipelines("dit")[1])), spec)
    model = made(DIT, spec, codec, schedule="ddpm", prediction="noise")
    folder = write_diffusers(model, tmp_path / "out")
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = drawn_by_diffusers(folder, start, monkeypatch, class_labels=[0, 2], guidance_scale=1.0)
    assert (drawn_here(model, folder, start, cond={"label": ["cat", "owl"]}) - theirs).abs().max() < TOLERANCE
    again = load(folder)
    assert again.spec == spec and again.state_spec == model.state_spec
    asked: dict[str, Any] = {"start": start, "steps": STEPS, "cond": {"label": ["cat", "owl"]}}
    assert (pictures(again.sample(2, **asked, guidance=1)) - theirs).abs().max() < TOLERANCE
    own = drawn_here(model, folder, start, cond={"label": ["cat", "owl"]}, guidance=3.0)
    assert (pictures(again.sample(2, **asked, guidance=3)) - own).abs().max() < TOLERANCE
    codec.network.register_to_config(shift_factor=0.5)  # which that pipeline would leave out
    assert not (write_diffusers(model, tmp_path / "alone") / "model_index.json").exists()


@pytest.mark.parametrize("network", [UNET, DIT])
def test_labels_and_their_null_are_read_back(network: dict[str, Any], tmp_path: Path):
    """diffusers has no pipeline for these: the network lies beside its scheduler, and diffusers reads both."""
    import diffusers

    model = made(network, LABELLED, schedule="ddpm", prediction="noise")
    folder = write_diffusers(model, tmp_path / "out")
    assert isinstance(diffusers.DDIMScheduler.from_pretrained(folder), diffusers.DDIMScheduler)
    theirs = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"]).from_pretrained(folder)
    again, x = load(folder), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert again.spec == LABELLED
    with torch.no_grad():
        for cond, drop, labels in (([0, 2], None, [0, 2]), (None, None, [3, 3]), ([1, 1], [True, False], [3, 1])):
            rows = None if cond is None else {"label": torch.tensor(cond)}
            gone = None if drop is None else {"label": torch.tensor(drop)}
            answers = [m.denoiser(x, 0.5, m.denoiser.embed(rows, 2, gone)).raw for m in (model, again)]
            exact = theirs(x, timestep=torch.tensor([499, 499]), class_labels=torch.tensor(labels)).sample
            assert torch.equal(*answers)
            torch.testing.assert_close(answers[0], exact, rtol=0, atol=1e-5)


def test_the_command_writes_and_says_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = made(UNET, PLAIN, schedule="ddpm", prediction="noise")
    model.save(tmp_path / "run")
    out = tmp_path / "out"
    assert run(["convert", str(tmp_path / "run"), str(out), "--dtype", "bfloat16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parameters"] == model.parameters and load(out, dtype="bfloat16").spec == PLAIN
    assert run(["convert", "digits", str(tmp_path / "ours")]) == 1
    told = capsys.readouterr().err
    assert "log" not in told and "model=diffusers-unet" in told and "number of a training step" in told
    assert run(["convert", str(tmp_path / "run"), str(tmp_path / "other"), "--lora", "x.safetensors"]) == 1
    assert "--lora x.safetensors is for pipelines of diffusers" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_pictures_that_are_not_square_are_read_back_in_their_range(classes: tuple[str, ...], tmp_path: Path):
    """As a pipeline, and as a network beside its scheduler."""
    spec = DataSpec(kind="image", shape=(3, 8, 12), range=(0, 16), classes=classes)
    model = made(UNET, spec, schedule="ddpm", prediction="noise")
    again = load(write_diffusers(model, tmp_path / "out"))
    assert again.spec == spec and again.sample(1, steps=1).shape == (1, 3, 8, 12)


def test_every_task_works_on_what_was_trained():
    model = made(UNET, LABELLED, schedule="ddpm", prediction="noise")
    data = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    found = log_likelihood(model, data, integrator="heun", steps=2, probes=2, cond={"label": 1})
    assert found.log_p.isfinite().all()
    measure = parse_operator("downsample:2", model.spec.shape)
    y = measure(model.spec.to_model(data))
    assert restore(model, y, measure, noise_std=0.1, samples=1, steps=2).mean.isfinite().all()
    assert FeatureEncoder(model, "mid", 0.1).maps(model.spec.to_model(data))["mid"].shape == (2, 16, 4, 4)
    table = error_table(model, data, times=1, contrast=True)
    assert table.errors.shape == (2, 3, 1) and table.null is not None
    guided = model.sample(2, cond={"label": ["cat", "owl"]}, guidance=2.0, negative={"label": "dog"}, steps=2)
    assert guided.isfinite().all()
    asked: dict[str, Any] = {"layers": ["mid"], "size": 8}
    assert match(model, data[0] / 127.5 - 1, [(1.0, 2.0)], data[1] / 127.5 - 1, **asked).points.shape == (1, 2)
    with pytest.raises(ValueError, match="one time for each item"):
        model.denoiser(data, torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="cannot be told a second time"):
        NetworkFlowMap(model.module)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tune it for few steps with undiffuse accelerate"):
        distill(model, method="progressive")


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (make_schedule("ddpm"), "linear"),
        (make_schedule("ddpm", steps=300, beta_min=3e-4, beta_max=0.03), "linear"),
        (make_schedule("scaled-linear"), "scaled_linear"),
        (make_schedule("cosine-table", steps=100), "squaredcos_cap_v2"),
        (make_schedule("scaled-linear", zero_terminal_snr=True), "scaled_linear"),
        (make_schedule("cosine-table", zero_terminal_snr=True), "squaredcos_cap_v2"),
        (make_schedule("ddpm", beta_max=0.03, zero_terminal_snr=True), None),  # then the betas themselves
        (TableSchedule(alphas_cumprod=(0.9, 0.6, 0.3, 0.1)), None),
    ],
)
def test_a_table_is_recognised_by_its_betas(table: TableSchedule, kind: str | None):
    """diffusers computes the same table from what is written, in float32."""
    import diffusers

    found = Betas.of(table)
    assert found.kind == kind if kind else found.trained is not None
    config = {"num_train_timesteps": found.count, "beta_start": found.first, "beta_end": found.last}
    config |= {"beta_schedule": found.kind, "rescale_betas_zero_snr": found.zero_snr}
    theirs = diffusers.DDIMScheduler(**config, trained_betas=None if kind else list(found.trained or ()))
    exact = torch.tensor(table.alphas_cumprod, dtype=torch.float64)
    # Products of T float32 numbers: relative errors of T units at most; a rescaled table loses them against its end.
    slack = len(exact) * 2.0**-24
    torch.testing.assert_close(theirs.alphas_cumprod.double(), exact, rtol=slack, atol=slack)
    torch.testing.assert_close(
        torch.tensor(found.schedule().alphas_cumprod, dtype=torch.float64), exact, rtol=1e-6, atol=0
    )


def test_options_of_tables_go_with_tables():
    for wrong, words in (
        ({"schedule": "cosine", "levels": 10}, "levels=10 belongs to schedules ddpm, scaled-linear, cosine-table"),
        ({"schedule": "cosine-table", "beta_min": 0.1}, "beta_min=0.1 belongs to schedules ddpm, scaled-linear, not"),
        ({"schedule": "rf", "zero_snr": True}, "zero_snr=True belongs"),
        ({"schedule": "ddpm", "levels": 2}, "levels=2: a table has at least 3"),
        ({"schedule": "ddpm", "beta_min": float("nan")}, "beta_min=nan .* inside"),
        ({"schedule": "ddpm", "beta_max": 1.0}, "beta_max=1.0 .* inside"),
    ):
        with pytest.raises(ValueError, match=words):
            GaussianOptions(**wrong)  # type: ignore[arg-type]

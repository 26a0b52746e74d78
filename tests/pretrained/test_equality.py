"""Samples of tiny random pipelines equal those of diffusers from the same noise, guided and unguided."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.models import Model, load
from undiffuse.noise import KeyedNoise

Pipelines = Callable[[str], tuple[Any, Path]]
STEPS = 4  # divides the 1000 levels: diffusers' DDIM leaves its own levels otherwise where they are "trailing"
PROMPTS = ["a cat", "big dog"]
TOLERANCE = 1e-4  # of pictures in [0, 1]; measured: 1e-6
FAMILIES = ["stable", "stable-v", "sdxl", "pixart", "sd3", "flux"]


def start(model: Model) -> Tensor:
    return torch.randn(2, *model.state_spec.shape, generator=torch.Generator().manual_seed(1))


def pictures(model: Model, **options: Any) -> Tensor:
    return model.sample(2, **{"steps": STEPS, **options}).permute(0, 2, 3, 1) / 255


def theirs(name: str, pipe: Any, z: Tensor, guidance: float, steps: int = STEPS) -> Tensor:
    options: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": steps, "output_type": "np"}
    options |= {"guidance_scale": guidance, "latents": z.clone(), "height": 16, "width": 16}
    if name == "pixart":
        options |= {"use_resolution_binning": False, "clean_caption": False}
    if name == "flux":  # which is told the scale it was distilled for, beside
        options |= {"guidance_scale": 3.5, "true_cfg_scale": guidance, "negative_prompt": ["", ""]}
        options["latents"] = pipe._pack_latents(z, *z.shape)
    return torch.from_numpy(pipe(**options).images)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts(name: str, pipelines: Pipelines):
    pipe, folder = pipelines(name)
    model = load(folder, size=16, check=True)  # random weights raise no alarm
    z, cond = start(model), {"prompt": PROMPTS}
    plain = pictures(model, start=z, cond=cond, guidance=1)
    guided = pictures(model, start=z, cond=cond, guidance=5)
    assert (plain - theirs(name, pipe, z, 1.0)).abs().max() < TOLERANCE
    assert (guided - theirs(name, pipe, z, 5.0)).abs().max() < TOLERANCE
    assert (plain - guided).abs().max() > 5 * TOLERANCE  # else nothing was guided


@pytest.mark.parametrize("told", [None, 2.0])
def test_a_latent_consistency_model(told: float | None, pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch):
    pipe, folder = pipelines("lcm")
    model = load(folder, size=16)
    z, keyed = start(model), KeyedNoise(5, range(2))
    shape = model.state_spec.shape
    drawn = iter([keyed.normal("step", k, shape) for k in range(STEPS)])
    module = importlib.import_module("diffusers.schedulers.scheduling_lcm")
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kw: next(drawn))
    options = {} if told is None else {"guidance_scale": told}
    found = pipe(prompt=PROMPTS, latents=z.clone(), height=16, width=16, output_type="np", **options).images
    assert model.defaults["steps"] == STEPS and "guidance" not in model.defaults
    cond: dict[str, Any] = {"prompt": PROMPTS} | ({} if told is None else {"distilled_guidance": [[told]] * 2})
    assert (pictures(model, start=z, cond=cond, seed=5) - torch.from_numpy(found)).abs().max() < TOLERANCE
    other = pictures(model, start=z, cond=cond | {"distilled_guidance": [[12.0]] * 2}, seed=5)
    assert (other - torch.from_numpy(found)).abs().max() > TOLERANCE  # it is told


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_labels(guidance: float, pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch):
    pipe, folder = pipelines("dit")
    model = load(folder)
    z = start(model)
    monkeypatch.setattr(importlib.import_module(type(pipe).__module__), "randn_tensor", lambda *args, **kw: z)
    found = pipe(class_labels=[1, 2], guidance_scale=guidance, num_inference_steps=STEPS, output_type="np").images
    ours = pictures(model, start=z, cond={"label": [1, 2]}, guidance=guidance)
    assert (ours - torch.from_numpy(found)).abs().max() < TOLERANCE


def test_without_conditions(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch):
    pipe, folder = pipelines("ddim")
    model = load(folder)
    z = start(model)
    monkeypatch.setattr(importlib.import_module(type(pipe).__module__), "randn_tensor", lambda *args, **kw: z)
    found = pipe(batch_size=2, num_inference_steps=STEPS, output_type="np").images
    assert (pictures(model, start=z) - torch.from_numpy(found)).abs().max() < TOLERANCE


def test_a_consistency_model_jumps(pipelines: Pipelines):
    pipe, folder = pipelines("consistency")
    model = load(folder)
    z = start(model)
    found = pipe(batch_size=2, class_labels=[1, 2], latents=z, output_type="np").images
    ours = pictures(model, steps=1, start=80 * z, cond={"label": [1, 2]})
    assert (ours - torch.from_numpy(found)).abs().max() < TOLERANCE

"""Models with small networks of diffusers as training leaves them, with weights that follow from a seed."""

from __future__ import annotations

from typing import Any

import torch

from undiffuse.config import resolve
from undiffuse.models import Model
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.recipe import Recipe

UNET: dict[str, Any] = {
    "kind": "diffusers-unet",
    "channels": 8,
    "groups": 4,
    "multipliers": [1, 2],
    "blocks": 1,
    "head": 4,
}
DIT: dict[str, Any] = {"kind": "diffusers-dit", "width": 16, "depth": 2, "heads": 2, "patch": 4}


def recipe(network: dict[str, Any], variance: bool = False, **process: Any) -> Recipe:
    objective = {"kind": "denoising", "learn_variance": variance}
    return resolve(Recipe, {"model": network, "process": {"kind": "gaussian", **process}, "objective": objective})


def made(network: dict[str, Any], spec: DataSpec, codec: Any = None, variance: bool = False, **process: Any) -> Model:
    """Return a model whose weights are those of an initialisation with noise on all of them, the last layer too."""
    denoiser = build_denoiser(recipe(network, variance, **process), spec if codec is None else codec.latent)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Model(denoiser.eval(), spec, codec=codec)

"""Small networks for the tests of tuning."""

from __future__ import annotations

from typing import Any

import torch

from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions, UNetOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import CosineSchedule
from undiffuse.spec import DataSpec


def mlp_denoiser(prediction: Any, labels: bool = False, seed: int = 0) -> NetworkDenoiser:
    """A denoiser of points in the plane, with random weights in every layer."""
    spec = DataSpec(kind="vector", shape=(2,), classes=("a", "b", "c") if labels else ())
    return _filled(MLPOptions(width=16, depth=1), spec, prediction, seed)


def unet_denoiser(dropout: float = 0.0, seed: int = 0) -> NetworkDenoiser:
    """A denoiser of images of 4 x 4 pixels."""
    spec = DataSpec(kind="image", shape=(1, 4, 4), range=(-1.0, 1.0))
    options = UNetOptions(channels=8, multipliers=(1,), blocks=1, attention=(), dropout=dropout)
    return _filled(options, spec, "v", seed)


def _filled(options: Any, spec: DataSpec, prediction: Any, seed: int) -> NetworkDenoiser:
    """Networks begin with zeros in their last layer, which would hide most gradients."""
    network = build_network(options, spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return NetworkDenoiser(network, GaussianProcess(CosineSchedule()), prediction, spec=spec)

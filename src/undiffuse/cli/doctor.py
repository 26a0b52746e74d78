"""`undiffuse doctor`: what this machine has, and whether it computes right."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import typer

from undiffuse.cli.shared import Json
from undiffuse.models.world import world

_LIBRARIES = (
    "torch",
    "numpy",
    "accelerate",
    "safetensors",
    "scikit-learn",
    "scipy",
    "pydantic",
    "Pillow",
    "matplotlib",
)
_EXTRAS = {"pretrained": "diffusers", "studio": "gradio", "dev": "pytest", "docs": "mkdocs"}
_TOLERANCE = 1e-5  # relative; float32 rounding of a few hundred operations


def doctor(json: Json = False) -> None:
    """Say what this machine can do: versions, devices, threads, memory, extras; and check that it computes right."""
    from undiffuse.cli.output import Output

    output = Output(json)
    checks = {device: self_test(device) for device in devices()}
    facts = {
        **{name: _version(name) for name in ("undiffuse", *_LIBRARIES)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(devices().values()),
        "would use": would_use(len(devices()) - 1),
        **_power(),
        "extras": ", ".join(f"{name} {'yes' if find_spec(module) else 'no'}" for name, module in _EXTRAS.items()),
    }
    output.pairs(facts)
    for device, error in checks.items():
        word = "right" if error < _TOLERANCE else "WRONG"
        output.say(f"{device} computes {word}, to {error:.1g}", None if word == "right" else "red")
    healthy = all(error < _TOLERANCE for error in checks.values())
    output.result(facts | {"devices": devices(), "errors": checks, "healthy": healthy})
    if not healthy:
        raise typer.Exit(1)


def devices() -> dict[str, str]:
    """Return what undiffuse can compute on: name -> words for people. Apple's mps lacks float64, so it is none."""
    import torch

    found = {"cpu": "cpu"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"cuda:{number} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    return found


def would_use(gpus: int) -> str:
    """Return on what a training would run here, and the line that uses all of it.

    Args:
        gpus: How many there are.
    """
    rank, processes = world()
    if processes > 1:
        return f"{processes} processes, of which this is number {rank}"
    if gpus < 2:
        return "one process on " + ("the GPU" if gpus else "the CPU")
    launch = f"accelerate launch --multi_gpu --num_processes {gpus} -m undiffuse train DATA"
    return f"one process on cuda:0; all {gpus} GPUs with: {launch}"


def self_test(device: str) -> float:
    """Return the largest relative error, on a device, of what networks are made of: convolution, attention, product.

    Compares float32 on the device with float64 on the CPU, from the same keyed noise.
    """
    import torch

    from undiffuse.noise import KeyedNoise

    def compute(place: str, dtype: torch.dtype) -> torch.Tensor:
        draw = KeyedNoise(0, range(4), place)
        x = draw.normal("init", 0, (8, 16, 16)).to(dtype)
        kernel = draw.normal("init", 1, (8, 3, 3)).to(dtype) / 8
        maps = torch.nn.functional.conv2d(x, kernel, padding=1).flatten(2)
        taken = torch.nn.functional.scaled_dot_product_attention(maps, maps, maps)
        return (taken @ x.flatten(2).mT).cpu().double()

    exact = compute("cpu", torch.float64)
    return float((compute(device, torch.float32) - exact).abs().max() / exact.abs().max())


def _power() -> dict[str, Any]:
    import os

    import torch

    from undiffuse.data.memory import free_bytes
    from undiffuse.words import human_bytes

    free = free_bytes()
    return {
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "free memory": "unknown" if free is None else human_bytes(free),
    }


def _version(name: str) -> str:
    if name == "undiffuse":
        from undiffuse import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

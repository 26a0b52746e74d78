"""Images per second in training and in sampling, as shares of what the bare network could give.

    python benchmarks/throughput.py [--device cuda] [--compile] [--rounds 30] [--out results.json]

Training: `Trainer.step` (data, keyed noise, weighting, clipping, two averages, log window) against forward, mean
squared error, backward and fused AdamW of the same network on fixed tensors, compiled where ours is. Sampling: the
loop with 50 DDIM steps against as many bare forward passes. Beside them the training loop of diffusers' unconditional
example on the same network, in the same run. All take turns, so that changes of load meet all; figures are medians.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peer_loops import Diffusers, Task

from undiffuse.config import resolve
from undiffuse.data import TensorDataset
from undiffuse.networks.compilation import compile_blocks
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import make_grid
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.devices import Devices
from undiffuse.training.recipe import Recipe
from undiffuse.training.trainer import Trainer

STEPS = 50
Action = Callable[[], object]
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"batch": 16, "side": 16, "model": {"kind": "unet", "channels": 32, "multipliers": [1, 2], "blocks": 1}},
    "cuda": {
        "batch": 256,
        "side": 32,
        "model": {"kind": "unet", "channels": 128, "multipliers": [1, 2, 2], "blocks": 2},
    },
}
"""Kind of device -> what is trained there; the network is large enough to hide what a GPU takes to be told."""


def pictures(side: int, count: int = 2048) -> TensorDataset:
    """Return random pictures (count, 3, side, side)."""
    x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorDataset(data=x, spec=DataSpec(kind="image", shape=(3, side, side), range=(-1.0, 1.0)))


def make_recipe(size: dict[str, Any], device: str, compiled: bool) -> Recipe:
    """Return the recipe of what is measured; bfloat16 on a GPU."""
    precision = "bfloat16" if device.startswith("cuda") else "float32"
    train = {"batch_size": size["batch"], "steps": 10**6, "device": device, "compile": compiled, "precision": precision}
    return resolve(Recipe, {"model": size["model"], "train": train})


def bare_step(trainer: Trainer, compiled: bool) -> Action:
    """Return forward, loss, backward, fused AdamW on fixed tensors, in the trainer's precision."""
    network = bare_network(trainer, compiled).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    batch = trainer.stream.step(0)
    level = torch.linspace(-1, 1, len(batch.x), device=batch.x.device)
    low = trainer.options.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=low):
            loss = F.mse_loss(network(batch.x, level)["out"].float(), batch.target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare_network(trainer: Trainer, compiled: bool) -> Any:
    """Return a copy of the network, compiled as the trainer's is."""
    network: Any = copy.deepcopy(trainer.denoiser.backbone)
    if compiled:
        compile_blocks(network)
    return network


def full_step(trainer: Trainer) -> Action:
    """Return the trainer's step; the log window is read at the trainer's own pace."""

    def step() -> None:
        trainer.step()
        if trainer.state.step % trainer.options.log_every == 0:
            trainer.state.window.close()

    return step


def bare_sampling(trainer: Trainer, network: Any, batch: int) -> Action:
    """Return `STEPS` forward passes."""
    x = torch.zeros(batch, *trainer.denoiser.spec.shape, device=trainer.devices.device)
    level = torch.zeros(batch, device=x.device)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                network(x, level)

    return run


def full_sampling(trainer: Trainer, network: Any, batch: int) -> Action:
    """Return a run of the sampling loop."""
    denoiser = copy.copy(trainer.denoiser)
    denoiser._modules = {**trainer.denoiser._modules, "backbone": network}
    grid = make_grid(denoiser.process.schedule, STEPS, "t")
    solver, shape = make_solver("ddim"), denoiser.spec.shape
    device = trainer.devices.device

    def run() -> None:
        sample(denoiser, noise=KeyedNoise(0, range(batch), device), shape=shape, solver=solver, grid=grid)

    return run


def seconds(task: Action, repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, over a few in a row."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        task()
    wait(device)
    return (time.perf_counter() - started) / repeats


def wait(device: torch.device) -> None:
    """Wait until the device has done everything it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(tasks: dict[str, Action], rounds: int, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds per call of each task in each round, after rounds that warm up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 2):
        for name, task in tasks.items():
            taken = seconds(task, repeats, device)
            if number >= 2:
                times[name].append(taken)
    return times


def measures(times: dict[str, list[float]], pairs: list[tuple[str, str, float | None]], batch: int) -> list[Measure]:
    """Return rates, and for each (ours, bare, asked) the share of the bare rate, as the median over rounds."""
    rows = []
    for own, bare, asked in pairs:
        ratios = [b / a for a, b in zip(times[own], times[bare], strict=True)]
        rows.append(Measure(f"{own} / {bare}", statistics.median(ratios), asked=asked, better="higher"))
    for name, taken in times.items():
        rows.append(Measure(name, batch / statistics.median(taken), "images per second", better="higher"))
    return rows


def run(device: str, compiled: bool, rounds: int) -> Results:
    """Measure on one device."""
    size = SIZES["cuda" if device.startswith("cuda") else "cpu"]
    data, recipe = pictures(size["side"]), make_recipe(size, device, compiled)
    repeats = 10 if device.startswith("cuda") else 1
    with tempfile.TemporaryDirectory() as folder:
        denoiser, devices = build_denoiser(recipe, data.spec), Devices(recipe.train)
        objective, batch, place = make_objective(recipe.objective, denoiser), size["batch"], devices.device
        trainer = Trainer(denoiser, objective, data.to(place), recipe.train, Path(folder), devices=devices)
        tasks = {"training": full_step(trainer), "bare training": bare_step(trainer, compiled)}
        loop = peer(recipe, data, batch) if not compiled else None
        if loop is not None:
            tasks["diffusers' example"] = lambda: loop.advance(1)
        times = in_turns(tasks, rounds, repeats, place)
        network = bare_network(trainer, compiled).eval()
        drawing = {
            "sampling": full_sampling(trainer, network, batch),
            "bare sampling": bare_sampling(trainer, network, batch),
        }
        times |= in_turns(drawing, max(rounds // 5, 3), 1, place)
    goals = (0.97, 0.95) if device.startswith("cuda") else (None, None)  # only a GPU has idle time to hide overhead in
    pairs: list[tuple[str, str, float | None]] = [("training", "bare training", goals[0])]
    pairs.append(("sampling", "bare sampling", goals[1]))
    if loop is not None:
        pairs.append(("training", "diffusers' example", None))
    side = size["side"]
    summary = (
        f"Images per second on {device}, batches of {batch} pictures of {side} pixels, as shares of the bare rate."
    )
    settings = machine_settings(device=device, compiled=compiled, precision=recipe.train.precision, rounds=rounds)
    return Results("Throughput", summary, tuple(measures(times, pairs, batch)), settings)


def peer(recipe: Recipe, data: TensorDataset, batch: int) -> Diffusers | None:
    """Return diffusers' loop on our network, None where it is not installed."""
    try:
        x = data.batch(torch.arange(len(data)))["x"]
        task = Task("pictures", "", recipe, data, x, None, 0)
        return Diffusers(task, 0, 10**6, batch_size=batch, own=True)
    except ImportError:
        return None


def main() -> None:
    """Measure and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile our blocks and the bare network's alike")
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    publish(run(asked.device, asked.compile, 3 if asked.quick else asked.rounds), asked.out)


if __name__ == "__main__":
    main()

"""Training loops of other libraries, and of textbooks, behind one small interface; for `peers_training.py`.

Each follows its library's own documented example: same loss, optimizer, loader and averaging. Learning rates and batch
sizes of the examples are meant for large pictures, so where those are slower here the loop also runs with ones that
suit (`lr`, `batch_size`), and the better counts. Data are in model units: unit variance, or pictures in [-1, 1].
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from undiffuse.data.dataset import Dataset
from undiffuse.networks.build import build_network
from undiffuse.training import train
from undiffuse.training.recipe import Recipe

TIMES = 1000  # discrete noise levels of DDPM


@dataclass(frozen=True)
class Task:
    """What to learn.

    Args:
        name: For people.
        source: Name of the data, for our own loop.
        recipe: Our recipe, whose network the peers train too where they let one choose.
        training: Items, x (N, *) in model units.
        labels: (N,), or None.
        holdout: Items that no loop sees.
        overrides: Further keys of our recipe.
    """

    name: str
    source: str
    recipe: Recipe
    training: Dataset
    x: Tensor
    labels: Tensor | None
    holdout: int
    overrides: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.training.spec.classes)


class Loop(Protocol):
    """A training under way."""

    def advance(self, steps: int) -> None:
        """Make optimizer steps."""
        ...

    def draw(self, n: int, labels: Tensor | None) -> Tensor:
        """Return samples (n, *) of the model as it is, in data units."""
        ...


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Args:
        name: For people.
        start: Maps (task, seed, steps planned) to a loop.
        planned: Whether the learning rate follows a plan, so that each number of steps is a run of its own.
        needs: Modules that must be there.
        settings: Keyword arguments of `start`, for the record.
    """

    name: str
    start: Callable[..., Loop]
    planned: bool = False
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]


# -- ours -------------------------------------------------------------------------------------------


class Ours:
    """`undiffuse.train` with a shipped recipe: everything from opening the data to the written model counts."""

    def __init__(self, task: Task, seed: int, steps: int, overrides: tuple[str, ...] = ()) -> None:
        self.task, self.seed, self.steps = task, seed, steps
        self.overrides = (f"data.holdout={task.holdout}", *task.overrides, *overrides)

    def advance(self, steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = train(
                self.task.source,
                self.task.recipe,
                out=folder,
                steps=steps,
                seed=self.seed,
                checkpoint_every=10**9,
                preview_every=0,
                validate_every=0,
                overrides=list(self.overrides),
            )
            if not run.finished:  # a signal stops `train` in good order; here it is meant for the whole comparison
                raise KeyboardInterrupt
            self.model = run.model

    def draw(self, n: int, labels: Tensor | None) -> Tensor:
        return self.model.sample(n, seed=self.seed + 1, cond=None if labels is None else {"label": labels})


# -- noise prediction on DDPM's levels: diffusers and the textbook ------------------------------------


class SameNetwork(nn.Module):
    """Our network behind the signature of diffusers: (x, timestep, labels) to noise."""

    def __init__(self, task: Task, seed: int, alphas_bar: Tensor) -> None:
        super().__init__()
        self.network = build_network(task.recipe.model, task.training.spec, seed=seed)
        self.register_buffer("levels", (0.5 * torch.log(1 / alphas_bar - 1) / 4).float())

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        cond = {} if labels is None else {"label": labels}
        embedded = self.network.conditioners.embed(cond, len(x))
        return self.network(x, self.levels[timestep].expand(len(x)), embedded)["out"]


def linear_betas() -> Tensor:
    """Return alpha_bar of DDPM's linear schedule, float64 (1000,)."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64), 0)


@torch.no_grad()
def ddim(model: Callable[..., Tensor], start: Tensor, labels: Tensor | None, alphas_bar: Tensor, steps: int) -> Tensor:
    """Return samples of a noise predictor by deterministic DDIM with trailing steps; batches of 500."""
    times = (TIMES * (1 - torch.arange(steps, dtype=torch.float64) / steps)).round().long() - 1
    bars = torch.cat((alphas_bar[times], torch.ones(1, dtype=torch.float64))).tolist()
    parts = []
    for rows in torch.arange(len(start)).split(500):
        x, mine = start[rows], None if labels is None else labels[rows]
        for k, t in enumerate(times):
            eps = model(x, t.expand(len(x)), mine)
            mean = (x - math.sqrt(1 - bars[k]) * eps) / math.sqrt(bars[k])
            x = math.sqrt(bars[k + 1]) * mean + math.sqrt(1 - bars[k + 1]) * eps
        parts.append(x)
    return torch.cat(parts)


def start_noise(task: Task, n: int, seed: int) -> Tensor:
    """Return normal numbers (n, *)."""
    return torch.randn((n, *task.x.shape[1:]), generator=torch.Generator().manual_seed(seed + 1))


def in_data_units(task: Task, x: Tensor) -> Tensor:
    """Return model units as data units."""
    return task.training.spec.from_model(x)


class Textbook:
    """Algorithm 1 of DDPM on our network: no loader, no average, constant learning rate.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239.
    """

    def __init__(self, task: Task, seed: int, steps: int, lr: float = 1e-3, batch_size: int = 128) -> None:
        torch.manual_seed(seed)
        self.task, self.seed, self.batch_size = task, seed, batch_size
        self.bars = linear_betas()
        self.signal, self.noise = self.bars.sqrt().float(), (1 - self.bars).sqrt().float()
        self.model = SameNetwork(task, seed, self.bars)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def advance(self, steps: int) -> None:
        shape = (-1, *[1] * (self.task.x.ndim - 1))
        for _ in range(steps):
            rows = torch.randint(len(self.task.x), (self.batch_size,))
            x, labels = self.task.x[rows], None if self.task.labels is None else self.task.labels[rows]
            t = torch.randint(TIMES, (self.batch_size,))
            eps = torch.randn_like(x)
            noisy = self.signal[t].view(shape) * x + self.noise[t].view(shape) * eps
            loss = F.mse_loss(self.model(noisy, t, labels), eps)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def draw(self, n: int, labels: Tensor | None) -> Tensor:
        x = ddim(self.model, start_noise(self.task, n, self.seed), labels, self.bars, 100)
        return in_data_units(self.task, x)


class Diffusers:
    """examples/unconditional_image_generation/train_unconditional.py of diffusers: loader, cosine rate, EMA, clipping.

    Pictures: `UNet2DModel` of about our size (`own=False`) or our network; vectors: our network. Labels are given.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        steps: int,
        lr: float = 1e-4,
        batch_size: int = 16,
        warmup: int = 500,
        own: bool = True,
    ) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        torch.manual_seed(seed)
        self.task, self.seed = task, seed
        self.scheduler = DDPMScheduler(num_train_timesteps=TIMES)
        self.bars = self.scheduler.alphas_cumprod.double()
        model: nn.Module = SameNetwork(task, seed, self.bars) if own else small_unet(task)
        self.ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=min(warmup, steps // 4), num_training_steps=steps)
        columns = (task.x,) if task.labels is None else (task.x, task.labels)
        loader = DataLoader(TensorDataset(*columns), batch_size=batch_size, shuffle=True)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.model, self.optimizer, self.rate, loader = self.accelerator.prepare(model, optimizer, rate, loader)
        self.batches = endless(loader)

    def advance(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            x, *rest = next(self.batches)
            noise = torch.randn(x.shape, device=x.device)
            timesteps = torch.randint(0, TIMES, (len(x),), device=x.device).long()
            noisy = self.scheduler.add_noise(x, noise, timesteps)
            with self.accelerator.accumulate(self.model):
                loss = F.mse_loss(self.predict(noisy, timesteps, rest[0] if rest else None).float(), noise.float())
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.rate.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.ema.step(self.model.parameters())
            loss.detach().item()  # the example logs every step

    def predict(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the noise, whichever network it is."""
        answer = self.model(x, t, labels)
        return answer if isinstance(answer, Tensor) else answer.sample

    def draw(self, n: int, labels: Tensor | None) -> Tensor:
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            x = ddim(self.predict, start_noise(self.task, n, self.seed), labels, self.bars, 100)
        finally:
            self.ema.restore(self.model.parameters())
        return in_data_units(self.task, x)


def small_unet(task: Task) -> nn.Module:
    """Return diffusers' U-Net at about the size of ours."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=task.x.shape[-1],
        in_channels=task.x.shape[1],
        out_channels=task.x.shape[1],
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=task.classes or None,
    )


# -- smalldiffusion -----------------------------------------------------------------------------------


class SmallDiffusion:
    """`training_loop` of smalldiffusion with its own networks, as in its toy example and its FashionMNIST example."""

    def __init__(self, task: Task, seed: int, steps: int, lr: float = 1e-3, batch_size: int = 2048) -> None:
        torch.manual_seed(seed)
        part = without_package_code("smalldiffusion")
        diffusion, models, unet = part("diffusion"), part("model"), part("model_unet")
        self.task, self.seed, self.diffusion = task, seed, diffusion
        if task.x.ndim == 2:
            self.schedule = diffusion.ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
            self.model = models.TimeInputMLP(dim=task.x.shape[1], hidden_dims=(16, 128, 128, 128, 128, 16))
        else:
            self.schedule = diffusion.ScheduleDDPM(beta_start=0.0001, beta_end=0.02)
            embed = models.CondEmbedderLabel(32 * 4, task.classes) if task.classes else None
            kind = models.Scaled(unet.Unet)
            self.model = kind(task.x.shape[-1], 1, 1, ch=32, ch_mult=(1, 2), num_res_blocks=1, cond_embed=embed)
        columns = task.x if task.labels is None else TensorDataset(task.x, task.labels)
        loader = DataLoader(columns, batch_size=batch_size, shuffle=True)  # type: ignore[arg-type]
        self.steps = diffusion.training_loop(
            loader, self.model, self.schedule, epochs=10**6, lr=lr, conditional=task.labels is not None
        )

    def advance(self, steps: int) -> None:
        for _ in range(steps):  # a step is finished when the next is asked for, so these are the same number
            next(self.steps)

    def draw(self, n: int, labels: Tensor | None) -> Tensor:
        sigmas, parts = self.schedule.sample_sigmas(100), []
        self.model.eval()
        for rows in torch.arange(n).split(500):
            xt = start_noise(self.task, n, self.seed)[rows] * sigmas[0]
            mine = None if labels is None else labels[rows]
            *_, x = self.diffusion.samples(self.model, sigmas, xt=xt, cond=mine, batchsize=len(rows))
            parts.append(x)
        self.model.train()
        return in_data_units(self.task, torch.cat(parts))


# -- azula --------------------------------------------------------------------------------------------


class Azula:
    """The loop of azula's readme: `KarrasDenoiser` on the VP schedule around our network, Adam, no average."""

    def __init__(self, task: Task, seed: int, steps: int, lr: float = 1e-3, batch_size: int = 128) -> None:
        import azula.denoise
        import azula.noise

        torch.manual_seed(seed)
        self.task, self.seed, self.batch_size = task, seed, batch_size
        network = _AzulaNetwork(build_network(task.recipe.model, task.training.spec, seed=seed))
        self.denoiser = azula.denoise.KarrasDenoiser(backbone=network, schedule=azula.noise.VPSchedule())
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=lr)
        columns = (task.x,) if task.labels is None else (task.x, task.labels)
        self.batches = endless(DataLoader(TensorDataset(*columns), batch_size=batch_size, shuffle=True, drop_last=True))

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            x, *rest = next(self.batches)
            more = {"labels": rest[0]} if rest else {}
            loss = self.denoiser.loss(x, torch.rand(len(x)), **more).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    @torch.no_grad()
    def draw(self, n: int, labels: Tensor | None) -> Tensor:
        from azula.sample import DDIMSampler

        sampler, parts = DDIMSampler(self.denoiser, steps=100, silent=True), []
        start = start_noise(self.task, n, self.seed)
        for rows in torch.arange(n).split(500):
            more = {} if labels is None else {"labels": labels[rows]}
            parts.append(sampler(start[rows], **more))
        return in_data_units(self.task, torch.cat(parts))


class _AzulaNetwork(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, log_sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        cond = {} if labels is None else {"label": labels}
        return self.network(x, log_sigma.expand(len(x)) / 4, self.network.conditioners.embed(cond, len(x)))["out"]


# -- shared -------------------------------------------------------------------------------------------


def endless(loader: Any) -> Iterator[Any]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


def without_package_code(package: str) -> Callable[[str], types.ModuleType]:
    """Return an importer of parts of a package that leaves out its `__init__`, which wants torchvision for pictures."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None
        bare = types.ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations)
        bare.__spec__ = importlib.machinery.ModuleSpec(package, None, is_package=True)
        sys.modules[package] = bare
    return lambda part: importlib.import_module(f"{package}.{part}")


OURS = "undiffuse"


def contenders(task: Task) -> list[Contender]:
    """Return who takes part in a task, ours first."""
    picture = task.x.ndim > 2
    size, fast = task.recipe.train.batch_size, {"lr": 1e-3, "batch_size": task.recipe.train.batch_size}
    rows = [
        (OURS, Ours, True, (), {}),
        ("DDPM as in textbooks", Textbook, False, (), {"lr": 1e-3, "batch_size": size}),
        ("diffusers, as documented", Diffusers, True, ("diffusers",), {"own": not picture}),
        ("diffusers, faster settings", Diffusers, True, ("diffusers",), {**fast, "warmup": 100}),
        ("smalldiffusion, as documented", SmallDiffusion, False, ("smalldiffusion", "einops"), _small(picture)),
        ("smalldiffusion, our batch size", SmallDiffusion, False, ("smalldiffusion", "einops"), fast),
        ("azula", Azula, False, ("azula",), {"lr": 1e-3, "batch_size": size}),
    ]
    return [Contender(name, start, planned, needs, settings) for name, start, planned, needs, settings in rows]


def _small(picture: bool) -> dict[str, Any]:
    return {"lr": 7e-4, "batch_size": 1024} if picture else {"lr": 1e-3, "batch_size": 2048}

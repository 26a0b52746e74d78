"""Models whose class posteriors are known: Gaussian classes, tokens with frequencies of their own, a told mean."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior, Posterior
from undiffuse.models.model import Model
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import TrigSchedule
from undiffuse.process.times import Time, align, expand_time
from undiffuse.spec import ConditionSpec, DataSpec

DIMS, CLASSES = 30, 5
WIDE = GaussianProcess(TrigSchedule(t_min=1e-4, t_max=1 - 1e-4))  # log-SNR from -17.5 to 17.5


def gaussian_classes(variances: list[float], dims: int = DIMS, spread: float = 0.4) -> MixtureDenoiser:
    """Classes N(mu_c, v_c I) with the label as condition."""
    count = len(variances)
    means = spread * KeyedNoise(0, range(count)).normal("data", 0, (dims,), torch.float64)
    stds = torch.tensor(variances, dtype=torch.float64).sqrt()
    return MixtureDenoiser(torch.ones(count), means, stds, WIDE, labels=torch.arange(count))


def draws(mixture: MixtureDenoiser, per_class: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Items (n, D) and their classes."""
    labels = torch.arange(len(mixture.components)).repeat_interleave(per_class)
    noise = KeyedNoise(seed, range(len(labels)))
    normal, uniform = noise.normal("data", 0, mixture.shape, torch.float64), noise.uniform("class", 0, ())
    cond = mixture.embed({"label": labels}, len(labels))
    return mixture.sample_data(normal, uniform, cond), labels


def log_joint(mixture: MixtureDenoiser, x: Tensor) -> Tensor:
    """log p(x | c) for all classes, float64 (B, C)."""
    count = len(mixture.components)
    conds = [mixture.embed({"label": torch.full((len(x),), c)}, len(x)) for c in range(count)]
    return torch.stack([mixture.log_prob(x, 0.0, cond) for cond in conds], 1)


class Counting(Denoiser):
    """Counts the rows that a denoiser is asked about."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.process, self.spec, self.rows = denoiser, denoiser.process, denoiser.spec, 0

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> object:  # type: ignore[override]
        self.rows += len(x)
        return self.inner(x, t, cond)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        return self.inner.embed(cond, batch, drop)


class ToldMean(Denoiser):
    """Exact denoiser of N(m, v I), where the condition "where" says m; 0 where it is not given."""

    def __init__(self, dims: int = 4, variance: float = 0.1) -> None:
        super().__init__()
        part = ConditionSpec(kind="vector", width=dims)
        self.spec = DataSpec(
            kind="vector", shape=(dims,), cond={"where": part, "scale": ConditionSpec(kind="vector", width=1)}
        )
        self.process: GaussianProcess = WIDE
        self.variance, self.dims = variance, dims

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        mean = torch.zeros_like(x) if cond is None or cond.vector is None else cond.vector.to(x.dtype)
        alpha, sigma = (align(c.to(x.dtype), x) for c in self.process.schedule.levels(expand_time(t, x).double()))
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return Posterior(mean + gain * (x - alpha * mean))

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        told = (cond or {}).get("where", torch.zeros(batch, self.dims)) * (cond or {}).get(
            "scale", torch.ones(batch, 1)
        )
        if drop and "where" in drop:
            told = torch.where(drop["where"][:, None], 0.0, told)
        return Embedded(vector=told)


class TokenClasses(Denoiser):
    """Exact denoiser of tokens that are independent given the label: p(x_i = k | c) = table[c, i, k]."""

    def __init__(self, table: Tensor, kind: str) -> None:
        super().__init__()
        self.table = table.double()
        count, length, tokens = table.shape
        self.process: CategoricalProcess = CategoricalProcess(kind, tokens)  # type: ignore[arg-type]
        self.spec = DataSpec(
            kind="tokens",
            shape=(length,),
            vocabulary=tuple("abcdefgh"[:tokens]),
            classes=tuple(f"class {c}" for c in range(count)),
        )

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        assert cond is not None and cond.vector is not None
        prior = self.table[cond.vector[:, 0].long()]
        return CategoricalPosterior((prior * self.process.likelihood(x, t)).clamp(min=1e-300).log())

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        return Embedded(vector=cast(dict[str, Tensor], cond)["label"][:, None].double())

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | c), float64 (B, C)."""
        picked = self.table.log()[:, torch.arange(x.shape[1]), x]  # (C, B, L)
        return picked.sum(-1).T


def vector_model() -> Model:
    """A model around `ToldMean`."""
    denoiser = ToldMean()
    return Model(denoiser, cast(DataSpec, denoiser.spec))


def token_model(kind: str, length: int = 6, classes: int = 3, tokens: int = 4) -> Model:
    """A model around `TokenClasses`, with frequencies between 0.03 and 0.9."""
    table = KeyedNoise(3, [0]).uniform("data", 0, (classes, length, tokens))[0] + 0.05
    denoiser = TokenClasses(table / table.sum(-1, keepdim=True), kind)
    return Model(denoiser, cast(DataSpec, denoiser.spec))

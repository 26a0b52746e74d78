"""`NetworkDenoiser`: a backbone with a parametrisation is a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import Affine, GaussianProcess, Prediction, fit, scaled
from undiffuse.process.times import Time, expand_time
from undiffuse.spec import DataSpec

_HALF_LOGSNR_LIMIT = 12.0  # rho from 6e-6 to 1.6e5: beyond it a network can see no difference


class NetworkDenoiser(Denoiser):
    r"""Wraps a backbone that predicts data, noise, velocity, v, or EDM's F.

    The input is scaled to unit variance, x / sqrt(sigma^2 + data_std^2 alpha^2), and the noise level is given as
    EDM's c_noise = log(sigma / alpha) / 4, so the backbone never sees the schedule: changing the schedule of a
    trained denoiser (`Reschedule`) is exact.

    Args:
        backbone: Called as backbone(x, noise_level, cond), with x (B, *), noise_level (B,) or (B, F); returns the
            prediction, or a dict with it under "out" and further heads beside it.
        process: The Gaussian process of the training.
        prediction: What the backbone predicts; "edm" is F of the preconditioned network.
        spec: What one item is.
        data_std: Standard deviation of the data in model units.

    Raises:
        ValueError: An unknown prediction kind.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1; principles, tables 2.2 and 2.4.
    """

    process: GaussianProcess

    def __init__(
        self,
        backbone: nn.Module,
        process: GaussianProcess,
        prediction: Prediction = "v",
        *,
        spec: DataSpec | None = None,
        data_std: float = 1.0,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction={prediction!r} is unknown; choose one of {', '.join(get_args(Prediction))}.")
        self.backbone = backbone
        self.process = process
        self.prediction: Prediction = prediction
        self.spec = spec
        self.data_std = data_std

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Run the backbone once and read the posterior mean off its prediction."""
        _, *found = self.process.evaluate(self._key, self._conversion, t)
        scale, skip, out = (fit(c, x) for c in found)
        dtype = _dtype(self.backbone, x)
        if cond is not None and cond.estimate is not None:
            cond = replace(cond, estimate=(cond.estimate / self.data_std).to(dtype))
        heads = self.backbone(scaled(scale, self.seen(x, t, cond)).to(dtype), self.noise_level(t, x).to(dtype), cond)
        heads = dict(heads) if isinstance(heads, dict) else {"out": heads}
        raw = heads.pop("out").to(x.dtype)
        return Posterior(Affine(skip, out).mean(x, raw), raw=raw, extras=heads)

    def seen(self, x: Tensor, t: Time, cond: Embedded | None) -> Tensor:
        """Return what the network is shown of the state, before it is scaled."""
        return x

    def prefetch(self, times: Sequence[float]) -> None:
        """Compute all coefficients of these times."""
        self.process.prefetch_levels(times)
        self.process.prefetch(self._key, self._conversion, times)

    def noise_level(self, t: Time, x: Tensor) -> Tensor:
        """Return log(sigma / alpha) / 4, clamped at both ends, float64 (B,) or (B, F)."""
        return expand_time(self.process.evaluate(self._key, self._conversion, t)[0], x)

    @property
    def self_conditioned(self) -> bool:
        """Whether the backbone reads its last estimate of x_0."""
        return bool(getattr(self.backbone, "self_conditioned", False))

    @property
    def learns_variance(self) -> bool:
        """Whether the backbone has a head "variance", which answers carry under that name in `extras`."""
        return bool(getattr(self.backbone, "learns_variance", False))

    @property
    def _key(self) -> tuple[str, Prediction, float]:
        return "network", self.prediction, self.data_std

    def _conversion(self, t: Tensor) -> tuple[Tensor, ...]:
        """Noise level, scale of the input, and the rule from output to mean, at float64 times."""
        alpha, sigma = self.process.schedule.levels(t)
        half_logsnr = (torch.log(alpha) - torch.log(sigma)).clamp(-_HALF_LOGSNR_LIMIT, _HALF_LOGSNR_LIMIT)
        scale = (sigma**2 + (self.data_std * alpha) ** 2).rsqrt()
        rule = self.process.rule(self.prediction, t, self.data_std, (alpha, sigma))
        return -0.25 * half_logsnr, scale, *rule

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Run the backbone's conditioners."""
        conditioners = getattr(self.backbone, "conditioners", None)
        return super().embed(cond, batch, drop) if conditioners is None else conditioners.embed(cond, batch, drop)


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    """The floating dtype of a module's parameters; that of `x` where it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)

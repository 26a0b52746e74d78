"""The Gaussian process `x_t = alpha x_0 + sigma eps`: corruption, conversions, bridges.

Every prediction kind is an affine rule `mean = skip * x_t + out * output`, and every way from t down to s one
bridge `x_s = alpha_s x_0 + c eps + std z`, so each formula stands here once. Coefficients come in float64: as
cached Python floats when the time is a Python float, else as tensors broadcast over `x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from undiffuse.process.schedules import Schedule
from undiffuse.process.times import Time, align

if TYPE_CHECKING:
    from typing import Protocol

    class HasMean(Protocol):
        """A posterior as this floor sees it: the mean of x_0 and, where a correction set it, the noise."""

        @property
        def mean(self) -> Tensor: ...

        @property
        def eps(self) -> Tensor | None: ...


Prediction = Literal["data", "noise", "velocity", "v", "edm"]
BridgeRule = Literal["ddim", "fresh", "brownian", "mixed", "increments"]
_CACHE_LIMIT = 20_000
_ZERO = torch.zeros((), device="cpu")  # combines with every dtype and device
Coefficient = float | Tensor
Formula = Callable[[Tensor], tuple[Tensor, ...]]


class Bridge(NamedTuple):
    """x_s = x0 * x_0 + eps * eps_t + std * z."""

    x0: Coefficient
    eps: Coefficient
    std: Coefficient


class Affine(NamedTuple):
    """mean = skip * x_t + out * output."""

    skip: Coefficient
    out: Coefficient

    def mean(self, x_t: Tensor, output: Tensor) -> Tensor:
        """Return the mean."""
        if isinstance(self.skip, float) and not self.skip:
            return scaled(self.out, output)
        return plus(scaled(self.skip, x_t), self.out, output)


@dataclass(frozen=True)
class GaussianProcess:
    """How continuous data turns into Gaussian noise (or into other data).

    Args:
        schedule: alpha and sigma as functions of t.
        source: "gaussian", or "data" where x_1 is paired or unpaired data; scores are then refused.
    """

    schedule: Schedule
    source: Literal["gaussian", "data"] = "gaussian"
    _cache: dict[tuple[Hashable, float], tuple[float, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def coefficients(self, t: Time, x: Tensor) -> tuple[Coefficient, Coefficient]:
        """Return (alpha, sigma) at `t`, ready to multiply `x`."""
        return cast(tuple[Coefficient, Coefficient], self._evaluate("levels", self.schedule.levels, t, x))

    def corrupt(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Return x_t = alpha x_0 + sigma noise. Shapes (B, *)."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * noise

    def prior(self, noise: Tensor, t: Time = 1.0, known: Tensor | None = None) -> Tensor:
        """Return sigma(t) * noise, the state at `t` where the data's share alpha(t) is negligible.

        Args:
            noise: Standard normals (B, *).
            t: 1, or a time near it; per element where elements start apart.
            known: Elements that will be overwritten with known values, which may start anywhere.

        Raises:
            ValueError: At an unknown element t is below 1 and alpha exceeds a tenth of sigma, so that pure noise is no
                state of the process.
        """
        alpha, sigma = self.coefficients(t, noise)
        times = fit(t.double(), noise) if isinstance(t, Tensor) else t
        unfit = (alpha > 0.1 * sigma) & (times < 1)  # type: ignore[operator]
        if known is not None:
            unfit = unfit & ~known
        if bool(unfit.any() if isinstance(unfit, Tensor) else unfit):
            raise ValueError("pure noise is no state at the first times, where alpha exceeds a tenth of sigma.")
        return sigma * noise

    # -- conversions ------------------------------------------------------------------------------

    def eps(self, x_t: Tensor, post: HasMean, t: Time) -> Tensor:
        """Return the expected noise; 0 where sigma is 0, which is its exact mean given clean data."""
        if post.eps is not None:
            return post.eps
        alpha, sigma = self.coefficients(t, x_t)
        return _divide(x_t - alpha * post.mean, sigma)

    def score(self, x_t: Tensor, post: HasMean, t: Time) -> Tensor:
        """Return grad log p_t = -eps / sigma (Tweedie); 0 where sigma is 0.

        Raises:
            ValueError: The source is data, whose marginals have no closed score.
        """
        if self.source != "gaussian":
            raise ValueError("the score needs a Gaussian source; this process has source='data'. Use velocity or mean.")
        return _divide(-self.eps(x_t, post, t), self.coefficients(t, x_t)[1])

    def velocity(self, x_t: Tensor, post: HasMean, t: Time) -> Tensor:
        """Return dx/dt = alpha' mean + sigma' eps of the probability-flow ODE."""
        alpha_slope, sigma_slope = self._evaluate("slopes", self._slopes, t, x_t)
        return alpha_slope * post.mean + sigma_slope * self.eps(x_t, post, t)

    def v(self, x_t: Tensor, post: HasMean, t: Time) -> Tensor:
        """Return the angle prediction (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2)."""
        alpha, sigma = self.coefficients(t, x_t)
        return (alpha * self.eps(x_t, post, t) - sigma * post.mean) / (alpha**2 + sigma**2) ** 0.5

    def mean_from(self, kind: Prediction, output: Tensor, x_t: Tensor, t: Time, data_std: float = 1.0) -> Tensor:
        """Return the posterior mean that a network of prediction `kind` means by `output`.

        Noise says nothing about x_0 where alpha is 0, so there its coefficients are those of `schedule.t_max`.
        """
        return self.affine(kind, t, x_t, data_std).mean(x_t, output)

    def affine(self, kind: Prediction, t: Time, x: Tensor, data_std: float = 1.0) -> Affine:
        """Return the rule `mean = skip * x_t + out * output` of prediction `kind` (principles, table 2.2).

        Raises:
            ValueError: An unknown kind.
        """
        if kind not in get_args(Prediction):
            raise ValueError(f"prediction={kind!r} is unknown; choose one of {', '.join(get_args(Prediction))}.")
        return Affine(*self._evaluate(("affine", kind, data_std), lambda t: self.rule(kind, t, data_std), t, x))

    def target(self, kind: Prediction, x0: Tensor, noise: Tensor, t: Time, data_std: float = 1.0) -> Tensor:
        """Return what a network of prediction `kind` must put out for this x_0 and noise. Finite at both ends
        (for "velocity": where the schedule's slopes are)."""
        if kind == "data":
            return x0
        if kind == "noise":
            return noise
        if kind == "velocity":
            alpha_slope, sigma_slope = self._evaluate("slopes", self._slopes, t, x0)
            return alpha_slope * x0 + sigma_slope * noise
        alpha, sigma = self.coefficients(t, x0)
        if kind == "v":
            return (alpha * noise - sigma * x0) / (alpha**2 + sigma**2) ** 0.5
        scale = (sigma**2 + (data_std * alpha) ** 2) ** 0.5
        return (sigma * x0 - data_std**2 * alpha * noise) / (data_std * scale)

    def with_mean(
        self, post: HasMean, x_t: Tensor, t: Time, mean: Tensor, eps: Literal["own", "new"] = "new"
    ) -> HasMean:
        """Return `post` with another mean, saying which noise goes with it.

        "own" keeps the noise that the old mean implied (DDNM, DDS); "new" lets it follow from the new mean
        (MMPS, DiffPIR).
        """
        kept = self.eps(x_t, post, t) if eps == "own" else None
        return post.replace(mean=mean, eps=kept)  # type: ignore[attr-defined]

    # -- steps ------------------------------------------------------------------------------------

    def bridge(self, t: Time, s: Time, rule: BridgeRule = "ddim", eta: float = 0.0) -> Bridge:
        """Return the coefficients of x_s given x_0 and the noise of x_t, for s <= t.

        All rules keep the marginal: x0 = alpha_s and eps^2 + std^2 = sigma_s^2. With h = l_s - l_t,
        "ddim" has std = eta sigma_s sqrt(1 - e^-2h), eta in [0, 1]; "brownian" is the exact reverse SDE of
        temperature eta, std = sigma_s sqrt(1 - e^(-2 eta^2 h)), any eta >= 0; "fresh" forgets the noise, and "mixed"
        a share of it, std = eta sigma_s, eta in [0, 1] (the codes of DDRM, DDNM and DDS).
        "increments" keeps the share (sigma_s / sigma_t)^(eta^2), eta >= 0: at eta = 1 the noise has independent
        increments in sigma^2 whatever alpha does (ResShift); for sigma that falls with t.
        "ddim" and "brownian" agree at eta = 0 and at eta = 1, the DDPM posterior. Python floats for float
        times, else float64 tensors; where s = t the bridge is the identity.

        Raises:
            ValueError: s above t, eta out of range, or an unknown rule.
        """
        _check_rule(rule, eta)
        if not isinstance(t, Tensor) and not isinstance(s, Tensor):
            if s > t:
                raise ValueError(f"bridge goes from t={t} up to s={s}; use renoise() to add noise.")
            pair = torch.tensor([t, s], dtype=torch.float64)
            return Bridge(*(float(c) for c in self._bridge(pair[0], pair[1], rule, eta)))
        return Bridge(*self._bridge(_as_time(t, s), _as_time(s, t), rule, eta))

    def transition(
        self,
        x_t: Tensor,
        post: HasMean,
        t: Time,
        s: Time,
        noise: Tensor | None = None,
        rule: BridgeRule = "ddim",
        eta: float = 0.0,
    ) -> Tensor:
        """Return x_s drawn through `bridge` with the posterior's mean and noise; x_t itself where s = t."""
        bridge = self.bridge(t, s, rule, eta)
        c_x0, c_eps, std = (fit(c, x_t) for c in bridge)
        x_s = c_x0 * post.mean + c_eps * self.eps(x_t, post, t)
        if noise is not None:
            x_s = x_s + std * noise
        if isinstance(t, Tensor) or isinstance(s, Tensor):
            same = _as_time(t, s) == _as_time(s, t)
            return torch.where(align(same.to(x_t.device), x_t), x_t, x_s)
        return x_t if s == t else x_s

    def renoise(self, x: Tensor, t: Time, s: Time, noise: Tensor) -> Tensor:
        """Return x_s drawn from the forward kernel q(x_s | x_t), for s >= t."""
        scale, std = (fit(c, x) for c in self.forward_kernel(t, s))
        return scale * x + std * noise

    def forward_kernel(self, t: Time, s: Time) -> tuple[Coefficient, Coefficient]:
        """Return (scale, std) of q(x_s | x_t) = N(scale x_t, std^2), for s >= t: floats or float64 tensors.

        Raises:
            ValueError: s below t.
        """
        if not isinstance(t, Tensor) and not isinstance(s, Tensor):
            if s < t:
                raise ValueError(f"renoise goes from t={t} down to s={s}; use bridge() to take noise away.")
            pair = torch.tensor([t, s], dtype=torch.float64)
            scale, std = self._kernel(pair[0], pair[1])
            return float(scale), float(std)
        return self._kernel(_as_time(t, s), _as_time(s, t))

    # -- float64 formulas -------------------------------------------------------------------------

    def _kernel(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.where(s == t, 1.0, self.schedule.alpha(s) / self.schedule.alpha(t))  # 0 / 0 in pure noise
        kept = (scale * self.schedule.sigma(t)) ** 2
        return scale, (self.schedule.sigma(s) ** 2 - kept).clamp(min=0).sqrt()

    def _slopes(self, t: Tensor) -> tuple[Tensor, ...]:
        """Slopes of alpha and sigma; at t = 0 the noise has mean 0, so an infinite sigma' may count as 0."""
        sigma_slope = self.schedule.sigma_slope(t)
        return self.schedule.alpha_slope(t), torch.where(sigma_slope.isfinite(), sigma_slope, 0.0)

    def rule(
        self, kind: Prediction, t: Tensor, data_std: float = 1.0, levels: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (skip, out) of `affine` at float64 times; `levels` are alpha and sigma there, where they are known."""
        if kind == "data":
            return torch.zeros_like(t), torch.ones_like(t)
        if kind == "noise" and self.schedule.t_max < 1:
            t, levels = t.clamp(max=self.schedule.t_max), None
        alpha, sigma = levels or self.schedule.levels(t)
        if kind == "noise":
            return 1 / alpha, -sigma / alpha
        if kind == "velocity":
            alpha_slope, sigma_slope = self.schedule.alpha_slope(t), self.schedule.sigma_slope(t)
            width = alpha * sigma_slope - sigma * alpha_slope
            clean = sigma == 0
            return torch.where(clean, 1.0, sigma_slope / width), torch.where(clean, 0.0, -sigma / width)
        square = sigma**2 + (data_std * alpha) ** 2  # data_std is 1 for "v"
        if kind == "v":
            square = sigma**2 + alpha**2
            return alpha / square, -sigma / square.sqrt()
        return data_std**2 * alpha / square, data_std * sigma / square.sqrt()

    def _bridge(self, t: Tensor, s: Tensor, rule: BridgeRule, eta: float) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.schedule.levels(s)
        if rule == "fresh":
            return alpha, torch.where(t == s, sigma, 0.0), torch.where(t == s, 0.0, sigma)
        if rule == "mixed":
            std = torch.where(t == s, 0.0, eta * sigma)
            return alpha, (sigma**2 - std**2).clamp(min=0).sqrt(), std
        if rule == "increments":
            ratio = torch.where(t == s, 1.0, sigma / self.schedule.sigma(t)).clamp(max=1.0)
            kept = ratio ** (eta**2)
            return alpha, sigma * kept, sigma * (1 - kept**2).sqrt()
        h = torch.where(t == s, 0.0, self.schedule.half_logsnr(s) - self.schedule.half_logsnr(t))
        if eta == 0:
            return alpha, sigma, torch.zeros_like(sigma)
        if rule == "ddim":
            std = eta * sigma * torch.sqrt(-torch.expm1(-2 * h))
            return alpha, (sigma**2 - std**2).clamp(min=0).sqrt(), std
        kept = torch.exp(-(eta**2) * h)
        return alpha, sigma * kept, sigma * torch.sqrt(-torch.expm1(-2 * eta**2 * h))

    def evaluate(self, name: Hashable, formula: Formula, t: Time) -> tuple[Coefficient, ...]:
        """Evaluate a formula of float64 times: Python floats, cached under `name`, for a float time, else tensors."""
        if isinstance(t, Tensor):
            return formula(t.double())
        found = self._cache.get((name, t))
        if found is None:
            if len(self._cache) > _CACHE_LIMIT:  # random times would fill it for ever
                self._cache.clear()
            found = tuple(float(c) for c in formula(torch.tensor(t, dtype=torch.float64)))
            self._cache[name, t] = found
        return found

    def prefetch(self, name: Hashable, formula: Formula, times: Sequence[float]) -> None:
        """Evaluate a formula at many float times in one go, for `evaluate` to find."""
        missing = [t for t in dict.fromkeys(times) if (name, t) not in self._cache]
        if missing:
            self._keep(name, missing, formula(torch.tensor(missing, dtype=torch.float64)))

    def levels_along(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) along a grid, float64; those of a shared grid are kept for `coefficients`."""
        alpha, sigma = self.schedule.levels(grid)
        if grid.ndim == 1:
            self._keep("levels", grid.tolist(), (alpha, sigma))
        return alpha, sigma

    def _keep(self, name: Hashable, times: Sequence[float], columns: tuple[Tensor, ...]) -> None:
        rows = zip(*(c.tolist() for c in columns), strict=True)
        self._cache.update(zip(zip(repeat(name), times, strict=False), rows, strict=True))

    def prefetch_levels(self, times: Sequence[float]) -> None:
        """Prefetch what `coefficients` will ask for."""
        self.prefetch("levels", self.schedule.levels, times)

    def _evaluate(self, name: Hashable, formula: Formula, t: Time, x: Tensor) -> tuple[Coefficient, ...]:
        """`evaluate`, ready to multiply `x`."""
        found = self.evaluate(name, formula, t)
        return tuple(fit(c, x) for c in found) if isinstance(t, Tensor) else found


def fit(c: Coefficient, x: Tensor) -> Coefficient:
    """Return a coefficient ready to multiply `x`: a float as it is, a tensor in its dtype and aligned to it."""
    return align(c.to(x.device, x.dtype), x) if isinstance(c, Tensor) else c


def scaled(factor: Coefficient, x: Tensor) -> Tensor:
    """Return factor * x; for a float as 0 + factor * x.

    torch makes a tensor of every number that multiplies, which takes longer than the product of a small state.
    """
    return torch.add(_ZERO, x, alpha=factor) if isinstance(factor, float) else factor * x


def plus(total: Tensor, factor: Coefficient, x: Tensor) -> Tensor:
    """Return total + factor * x, in one kernel where the factor is a float."""
    return torch.add(total, x, alpha=factor) if isinstance(factor, float) else total + factor * x


def combined(factor: Coefficient, x: Tensor, factors: Iterable[Coefficient], others: Iterable[Tensor]) -> Tensor:
    """Return factor * x + sum_i factors_i others_i over the shorter of both; the numbers of `scaled` and `plus`.

    Where no graph is kept, float terms are added in place: a new tensor costs as much as the sum of a small state.
    """
    if torch.is_grad_enabled() or not isinstance(factor, float):
        total = scaled(factor, x)
        for c, other in zip(factors, others, strict=False):
            total = plus(total, c, other)
        return total
    total = torch.add(_ZERO, x, alpha=factor)
    dtype = total.dtype
    for c, other in zip(factors, others, strict=False):
        total = total.add_(other, alpha=c) if other.dtype is dtype else plus(total, c, other)  # type: ignore[arg-type]
    return total


def _as_time(t: Time, other: Time) -> Tensor:
    if isinstance(t, Tensor):
        return t.double()
    return torch.full_like(cast(Tensor, other), t, dtype=torch.float64)


def _divide(x: Tensor, by: Coefficient) -> Tensor:
    """x / by, with 0 where `by` is 0."""
    if not isinstance(by, Tensor):
        return x / by if by else torch.zeros_like(x)
    zero = by == 0
    return torch.where(zero, 0.0, x / torch.where(zero, 1.0, by))


def _check_rule(rule: str, eta: float) -> None:
    if rule not in get_args(BridgeRule):
        raise ValueError(f"bridge rule {rule!r} is unknown; choose one of {', '.join(get_args(BridgeRule))}.")
    highest = 1.0 if rule in ("ddim", "mixed") else math.inf
    if not 0 <= eta <= highest:
        raise ValueError(f"eta={eta} is out of range; rule {rule!r} takes 0 to {highest}.")

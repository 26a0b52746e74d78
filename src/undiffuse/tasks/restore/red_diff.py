r"""RED-diff: restoration as an optimisation over the data, with the denoiser as a regulariser.

A variational view: among q(x_0) = N(mu, std^2 I), find the one nearest to the posterior. The gradient of that distance
needs no derivative of the network,

    grad_mu = data term + lambda_t (eps_hat(x_t, t) - eps),    x_t = alpha mu + sigma eps,

one draw of eps and one time per iteration. With s = sigma / alpha it is

    lambda_t (eps_hat - eps) = (lambda_t / s) (mu - mean(x_t)),

which is how it is computed: nothing cancels at small s, and "linear" weights, lambda_t = lam s, need no division. It
finds one mode: the answer is sharp in PSNR, and the spread of several runs says little about uncertainty.

Source: Mardani, Song, Kautz, Vahdat 2023, "A Variational Perspective on Solving Inverse Problems with Diffusion
    Models", arXiv:2305.04391.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.operators.base import LinearOperator
from undiffuse.operators.nonlinear import PhaseRetrieval
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.schedules import Schedule
from undiffuse.process.times import align
from undiffuse.tasks.restore.misfit import mean_variance, misfit_slope
from undiffuse.tasks.restore.repulsion import push_apart
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda s: s,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "log": torch.log1p,
    "clip": lambda s: s.clamp(max=1.0),
    "power23": lambda s: s ** (2 / 3),
    "const": torch.ones_like,
}
"""lambda_t / lam as a function of s = sigma / alpha."""

Weight = Literal["linear", "sqrt", "square", "log", "clip", "power23", "const"]
Order = Literal["descending", "random", "ascending"]
Start = Literal["auto", "pinv", "regularised", "adjoint", "zeros"]
_NO_NOISE = 1e-6  # s below which x_t says nothing that mu does not
_NOISY = 0.2  # noise in model units above which the answer over-fits, measured: `undiffuse papers red-diff`
_DECAYING, _AVERAGED = 0.2, 0.1  # shares of the run that the endings take


@dataclass(frozen=True, kw_only=True)
class RedDiff(Restorer):
    """Minimise data term + regulariser over mu by a stochastic optimiser; see the module.

    Per row, with "pixel" both terms are means over entries, as in the published code; with "sum" they are sums, as in
    the formula, so that the prior counts n / m times less. Never is anything averaged over rows.

    Args:
        lam: Weight of the prior.
        lr: Step of the optimiser. Adam moves no number by more than about lr per iteration: lr * steps must exceed the
            range of the data where A says nothing.
        weight: lambda_t / lam as a function of sigma / alpha; see `WEIGHTS`. "linear" is a constant weight of the
            residual in x_0.
        normalise: "pixel" or "sum".
        obs_weight: Factor v of the data term v |y - A(mu)|^2 / 2, or "noise" for 1 / noise_std^2, the Bayesian one
            (with normalise="sum"). Of a likelihood that is not Gaussian, v std^2 times its negative logarithm.
        order: Of the times: noise to data, a random order per row, or data to noise.
        tail: What ends the jitter of the last iterations: "decay" of lr to 0 over the last 20 %, the "average" of the
            last 10 % of iterates, or None as published.
        std: Standard deviation of the variational law; 0 for a point.
        learn_std: Optimise it per row, beginning at `std` (experimental; the mean is returned as always).
        repulsion: How strongly the samples of an image push each other apart, in units of their distance's scale; above
            about 0.5 they fly apart (measured on the digits).
        optimizer: "adam", or "sgd" with momentum, whose lr is per task and large.
        betas: Of adam; the first is the momentum of sgd.
        max_weight: Largest s that weights see; above it lambda_t stays as it is at this value. Where alpha is 0 the
            regulariser is then 0: pure noise says nothing.
        start: First estimate: A^+ y, (A^T A + (noise_std^2 / v) I)^-1 A^T y with v the data variance, A^T y or zeros;
            "auto" takes A^+ y of a noiseless measurement and the regularised one of a noisy one.
        antithetic: Use eps and -eps in each iteration: twice the evaluations, less variance.
        grid: Spacing of the times.
        clip: Bounds of the answer; nothing is clipped on the way.
        trace: Keep residual, distance to the denoiser's answer and lr of each iteration.

    Raises:
        ValueError: An option is out of range.
    """

    needs = ("differentiable",)
    couples = True
    any_noise = True
    uses_data_var = True
    default_steps = 300

    lam: float = 0.25
    lr: float = 0.1
    weight: Weight = "linear"
    normalise: Literal["pixel", "sum"] = "pixel"
    obs_weight: float | Literal["noise"] = 1.0
    order: Order = "descending"
    tail: Literal["decay", "average"] | None = None
    std: float = 0.0
    learn_std: bool = False
    repulsion: float = 0.0
    optimizer: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    max_weight: float = 200.0
    start: Start = "auto"
    antithetic: bool = False
    grid: str = "t"
    clip: tuple[float, float] | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        _choose("weight", self.weight, tuple(WEIGHTS))
        _choose("normalise", self.normalise, ("pixel", "sum"))
        _choose("order", self.order, get_args(Order))
        _choose("tail", self.tail, ("decay", "average", None))
        _choose("optimizer", self.optimizer, ("adam", "sgd"))
        _choose("start", self.start, get_args(Start))
        for name in ("lam", "std", "repulsion"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1).")
        for name in ("lr", "max_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")
        if isinstance(self.obs_weight, str) and self.obs_weight != "noise":
            raise ValueError(
                f"obs_weight={self.obs_weight!r}; give a number of at least 0, or 'noise' for 1 / noise^2."
            )
        if not isinstance(self.obs_weight, str) and not self.obs_weight >= 0:
            raise ValueError(f"obs_weight={self.obs_weight} must be at least 0.")
        if self.learn_std and self.std <= 0:
            raise ValueError("learn_std needs a first value above 0: give std, e.g. 0.1.")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip={self.clip} is empty; give (low, high) with low < high.")

    def check(self, problem: Problem) -> list[str]:
        """Return warnings about this problem."""
        if not isinstance(problem.denoiser.process, GaussianProcess):
            raise TypeError("red-diff needs a prior of continuous data with Gaussian noise; this one has classes.")
        if self.obs_weight == "noise" and problem.noise_std <= 0 and problem.noise_model is None:
            raise ValueError(
                "obs_weight='noise' is 1 / noise_std^2; give noise_std above 0, or a number as obs_weight."
            )
        warnings = []
        if problem.noise_std > _NOISY:
            warnings.append(
                f"red-diff fits the noise where there is as much as {problem.noise_std:.2g} (model units), whatever "
                "lam is; samplers such as mmps, pigdm or diffpir do not."
            )
        if isinstance(getattr(problem.operator, "pixels", problem.operator), PhaseRetrieval):
            warnings.append(
                "a magnitude has several origins (sign, half a turn, shift): draw 4 samples or more, and take the one "
                "with the least residual."
            )
        return warnings

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Return one estimate per row; rows of one image differ by their noise, and by `repulsion`."""
        run = Descent(self, problem, noise, self._levels(problem, noise, steps))
        return run.descend()

    def _levels(self, problem: Problem, noise: NoiseSource, steps: int) -> list[Level]:
        schedule = problem.denoiser.process.schedule  # type: ignore[union-attr]
        times = make_grid(schedule, steps, self.grid, start=problem.t_start)[:-1]
        if self.order == "random":  # a permutation per row, so that a row does not depend on its batch
            times = times[noise.uniform("time", 0, (steps,)).argsort(1).cpu()].T
        elif self.order == "ascending":
            times = times.flip(0)
        return make_levels(self, schedule, times)


@dataclass(frozen=True)
class Level:
    """One iteration: a time, alpha, sigma, s = sigma / alpha and lambda_t; Python floats, or (R,) where rows differ."""

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor
    s: float | Tensor
    weight: float | Tensor


def make_levels(options: RedDiff, schedule: Schedule, times: Tensor) -> list[Level]:
    """Return the iterations at `times`, float64 (steps,) or (steps, R); their coefficients are computed in float64."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    s = sigma / alpha  # infinite where alpha is 0
    weight = options.lam * WEIGHTS[options.weight](s.clamp(max=options.max_weight))
    columns = [times, alpha, sigma, s.clamp(min=_NO_NOISE), torch.where(s < _NO_NOISE, 0.0, weight)]
    if times.ndim == 1:
        return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return [Level(*row) for row in zip(*columns, strict=True)]


class Descent:
    """One run of the optimiser over the rows of a problem.

    Args:
        options: Of the restorer.
        problem: The rows.
        noise: Its items are the rows.
        levels: The iterations; they need not be in order, or differ.
    """

    def __init__(self, options: RedDiff, problem: Problem, noise: NoiseSource, levels: list[Level]) -> None:
        self.options, self.problem, self.noise, self.levels = options, problem, noise, levels
        problem.denoiser.prefetch([level.t for level in levels if isinstance(level.t, float)])
        self.cond = problem.denoiser.embed(problem.cond or None, problem.rows)
        self.estimate: Tensor | None = None
        self.data_factor = _data_factor(options, problem)
        self.size = math.prod(problem.shape) if options.normalise == "pixel" else 1
        self.nfe = 0

    def descend(self) -> Solution:
        """Run all iterations."""
        options, count = self.options, len(self.levels)
        mu = first_estimate(options, self.problem).detach().clone()
        log_std = mu.new_full((len(mu),), math.log(options.std)) if options.learn_std else None
        optimizer = _optimizer(options, [mu] if log_std is None else [mu, log_std])
        kept: list[tuple[Tensor, Tensor]] = []
        total, summed = mu.new_zeros(()), 0
        for k, level in enumerate(self.levels):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * self._rate(k)
            seen = self._set_gradients(mu, log_std, k, level)
            optimizer.step()
            if options.tail == "average" and k >= count - max(1, round(_AVERAGED * count)):
                total, summed = total + mu, summed + 1
            if options.trace:
                kept.append(seen)
            if self.problem.progress is not None:
                self.problem.progress()
        x = total / summed if summed else mu
        x = x if options.clip is None else x.clamp(*options.clip)
        return Solution(x, self.nfe, trace=self._trace(kept, log_std))

    def _rate(self, k: int) -> float:
        """Return the share of lr that iteration `k` uses."""
        count = len(self.levels)
        falling = max(1, round(_DECAYING * count))
        return min(1.0, (count - k) / falling) if self.options.tail == "decay" else 1.0

    def _set_gradients(self, mu: Tensor, log_std: Tensor | None, k: int, level: Level) -> tuple[Tensor, Tensor]:
        """Set the gradients of iteration `k`; return the residual and the distance to the answer, each (R,)."""
        e = self.noise.normal("step", k, self.problem.shape, mu.dtype)
        std = None if log_std is None else log_std.exp()
        prior, spread, distance = self._regulariser(mu, e, level, std)
        if self.options.antithetic:
            other = self._regulariser(mu, -e, level, std)
            prior, spread, distance = ((a + b) / 2 for a, b in zip((prior, spread, distance), other, strict=True))
        data, along, residual = self._data_gradients(mu, k, std)
        mu.grad = data + prior / self.size
        if log_std is not None and std is not None:
            log_std.grad = (along + spread / self.size) * std
        return residual, distance

    def _regulariser(self, mu: Tensor, e: Tensor, level: Level, std: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient by mu (R, *), the one by std (R,), and the root mean square of mu - mean (R,)."""
        options, width = self.options, self.options.std if std is None else std
        eta = (1.0 + (width / level.s) ** 2) ** 0.5
        x_t = _fit(level.alpha, mu) * mu + _fit(level.sigma * eta, mu) * e
        difference = mu - self._answer(x_t, level.t).to(mu.dtype)
        target = difference
        if options.repulsion:
            target = difference - options.repulsion * push_apart(mu, self.problem.samples)
        gradient = _fit(level.weight / level.s, mu) * target
        if options.std:
            gradient = gradient + _fit(level.weight * (eta - 1.0 / eta), mu) * e
        along = mu.new_zeros(len(mu))
        if std is not None:
            along = (e * gradient).flatten(1).sum(1) * std / (level.s * eta)
        return gradient, along, difference.square().flatten(1).mean(1).sqrt()

    @torch.no_grad()
    def _answer(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Return the posterior mean; no graph is ever kept of it."""
        denoiser, cond = self.problem.denoiser, self.cond
        if self.estimate is not None:
            cond = denoiser.with_estimate(cond, self.estimate)
        mean = denoiser(x_t, t, cond).mean
        self.nfe += denoiser.calls(t)
        if denoiser.self_conditioned:
            self.estimate = mean
        return mean

    def _data_gradients(self, mu: Tensor, k: int, std: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the data term by mu (R, *) and by std (R,), and the residual (R,)."""
        problem = self.problem
        if self.options.obs_weight == 0:
            return torch.zeros_like(mu), mu.new_zeros(len(mu)), mu.new_full((len(mu),), math.nan)
        with torch.enable_grad():
            at = mu.detach().requires_grad_()
            width = None if std is None else std.detach().requires_grad_()
            x = at if width is None else at + _fit(width, at) * self.noise.normal("probe", k, problem.shape, mu.dtype)
            found = problem.operator(x)
            slope = misfit_slope(problem, found.detach())
            wanted = [at] if width is None else [at, width]
            gradients = torch.autograd.grad(found, wanted, align(self.data_factor, slope) * slope)
        residual = (problem.y - found.detach()).square().flatten(1).mean(1).sqrt()
        return gradients[0], gradients[1] if width is not None else mu.new_zeros(len(mu)), residual

    def _trace(self, kept: list[tuple[Tensor, Tensor]], log_std: Tensor | None) -> dict[str, Tensor]:
        if not kept:
            return {}
        rates = torch.tensor([self.options.lr * self._rate(k) for k in range(len(kept))], dtype=torch.float64)
        found = {
            "residual_rms": torch.stack([residual for residual, _ in kept]),
            "distance_to_mean": torch.stack([distance for _, distance in kept]),
            "lr": rates,
        }
        return found if log_std is None else found | {"std": log_std.exp()[None]}


def first_estimate(options: RedDiff, problem: Problem) -> Tensor:
    """Return where the optimiser starts, states (R, *shape).

    Raises:
        ValueError: The operator has no adjoint for the start asked for.
    """
    operator, y = problem.operator, problem.y
    rule = options.start
    if problem.x_init is not None:
        x = problem.x_init
    elif rule == "zeros":
        x = y.new_zeros(len(y), *operator.in_shape)
    elif isinstance(operator, LinearOperator) and (rule == "regularised" or (rule == "auto" and problem.noise_std > 0)):
        # A^+ y of a blur multiplies noise by the inverse of its smallest singular value.
        zeros = y.new_zeros(len(y), *operator.in_shape)
        x = operator.prox(zeros, y, max(problem.noise_std**2, 1e-12) / problem.data_var)
    elif rule == "adjoint":
        if not isinstance(operator, LinearOperator):
            raise ValueError(f"{operator.describe()} has no adjoint; use start='auto' or give x_init.")
        x = operator.adjoint(y)
    else:
        x = operator.guess(y)
    return x.to(problem.dtype)


def _data_factor(options: RedDiff, problem: Problem) -> Tensor:
    """Return what multiplies the misfit of each row, (R,)."""
    y = problem.y
    if options.obs_weight == "noise":
        known = y.new_full((len(y),), problem.noise_std**2)
        factor = 1.0 / (known if problem.noise_model is None else mean_variance(problem).to(y))
    else:
        factor = y.new_full((len(y),), float(options.obs_weight))
    return factor / (math.prod(y.shape[1:]) if options.normalise == "pixel" else 1)


def _optimizer(options: RedDiff, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=options.lr, momentum=options.betas[0])
    return torch.optim.Adam(parameters, lr=options.lr, betas=options.betas)


def _fit(value: float | Tensor, like: Tensor) -> float | Tensor:
    return align(value.to(like), like) if isinstance(value, Tensor) else value


def _choose(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, allowed))}.")

"""Common set-ups of the continuous oracles: the spec's mixture, networks that answer exactly, linear probes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.process.registry import make_schedule
from undiffuse.process.times import Time, align, expand_time
from undiffuse.sampling.loop import SampleResult, sample
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver

SCHEDULE_NAMES = ("vp", "subvp", "ve", "cosine", "trig", "edm", "rf", "ddpm", "scaled-linear")

CONTINUOUS_SOLVERS: dict[str, Solver] = {
    "ddim": make_solver("ddim"),
    "ddim eta": make_solver("ddim", eta=0.7),
    "ddpm": make_solver("ddpm"),
    "ddpm large": make_solver("ddpm", variance="large"),
    "euler": make_solver("euler"),
    "heun": make_solver("heun"),
    "edm-heun": make_solver("edm-heun"),
    "edm-heun churn": make_solver("edm-heun", churn=4.0),
    "tcd": make_solver("tcd"),
    "dpm++2m": make_solver("dpm++2m"),
    "sde-dpm++2m": make_solver("sde-dpm++2m"),
    "sde-dpm++2m heun": make_solver("sde-dpm++2m", variant="heun", tau=0.6),
    "dpm++3m": make_solver("dpm++3m"),
    "dpm-solver-3m": make_solver("dpm-solver-3m"),
    "sde-dpm++3m": make_solver("sde-dpm++3m", tau=0.7),
    "deis-3": make_solver("deis-3"),
    "lms": make_solver("lms"),
    "unipc-3": make_solver("unipc-3"),
    "unipc-3 noise": make_solver("unipc-3", form="noise", variant="bh1"),
    "dpm-solver-2": make_solver("dpm-solver-2", r=0.6),
    "dpm2-ancestral": make_solver("dpm2-ancestral"),
    "dpm-solver-3": make_solver("dpm-solver-3"),
    "dpm++2s": make_solver("dpm++2s"),
    "dpm++3s": make_solver("dpm++3s", published="diffusers"),
    "rk4": make_solver("rk4"),
    "euler-maruyama": make_solver("euler-maruyama"),
    "pc-langevin": make_solver("pc-langevin", corrections=2),
    "annealed-langevin": make_solver("annealed-langevin", updates=3),
}


def process_of(name: str, **options: Any) -> GaussianProcess:
    """A Gaussian process by the name of its schedule."""
    return GaussianProcess(make_schedule(name, **options))


def spec_mixture(process: GaussianProcess, labels: Tensor | None = None) -> MixtureDenoiser:
    """The 2-D mixture of principles, section 5."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
    return MixtureDenoiser(weights, means, torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64), process, labels=labels)


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Float64 normals of an own generator."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(denoiser: Denoiser, solver: Solver, grid: Tensor, start: Tensor, **options: Any) -> SampleResult:
    """Sample in float64 from `start`, with keyed noise of seed 0 unless `noise` is given."""
    noise = options.pop("noise", None) or KeyedNoise(0, range(len(start)))
    return sample(
        denoiser,
        noise=noise,
        shape=tuple(start.shape[1:]),
        solver=solver,
        grid=grid,
        start=start,
        dtype=torch.float64,
        **options,
    )


def slope(errors: list[float], factor: float) -> float:
    """Order of convergence from the first to the last error, `factor` apart in the number of steps."""
    return float(torch.log(torch.tensor(errors[0] / errors[-1])) / torch.log(torch.tensor(factor)))


class _ExactBackbone(nn.Module):
    """Undoes the denoiser's input scaling and puts out the exact posterior as one prediction kind.

    The conversions are the "from D" column of principles, table 2.2, written anew.
    """

    def __init__(self, exact: Denoiser, kind: Prediction, data_std: float) -> None:
        super().__init__()
        self.exact = exact
        self.kind = kind
        self.data_std = data_std
        self.calls = 0

    def forward(self, scaled: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls += 1
        schedule = self.exact.process.schedule  # type: ignore[union-attr]
        times = t.double()
        alpha, sigma, d_alpha, d_sigma = (
            align(f(times), scaled)
            for f in (schedule.alpha, schedule.sigma, schedule.alpha_slope, schedule.sigma_slope)
        )
        sd = self.data_std
        x = scaled * torch.sqrt(sigma**2 + sd**2 * alpha**2)
        mean = self.exact(x, t, cond).mean
        if self.kind == "data":
            return mean
        eps = torch.where(sigma > 0, (x - alpha * mean) / torch.where(sigma > 0, sigma, 1.0), 0.0)
        if self.kind == "noise":
            return eps
        if self.kind == "velocity":
            return d_alpha * mean + torch.where(sigma > 0, d_sigma * eps, 0.0)
        length = torch.sqrt(alpha**2 + sigma**2)
        if self.kind == "v":
            return (alpha * eps - sigma * mean) / length
        # EDM: D = c_skip z + c_out F with z = x / alpha, rho = sigma / alpha, multiplied out so alpha = 0 is served.
        norm = torch.sqrt(sigma**2 + sd**2 * alpha**2)
        return torch.where(
            sigma > 0, (mean * norm**2 - sd**2 * alpha * x) / (sd * torch.where(sigma > 0, sigma, 1.0) * norm), 0.0
        )


class ExactNetwork(NetworkDenoiser):
    """A `NetworkDenoiser` whose network knows the exact posterior. It is told t itself, which is lossless."""

    def __init__(self, exact: Denoiser, kind: Prediction, data_std: float = 1.0) -> None:
        assert isinstance(exact.process, GaussianProcess)
        backbone = _ExactBackbone(exact, kind, data_std)
        super().__init__(backbone, exact.process, kind, data_std=data_std)
        self.embed = exact.embed  # type: ignore[method-assign]

    def noise_level(self, t: Time, x: Tensor) -> Tensor:
        """The time, float64."""
        return expand_time(t, x)

    @property
    def network_calls(self) -> int:
        """How often the network ran."""
        return self.backbone.calls  # type: ignore[return-value]


def ar1_video(process: GaussianProcess, frames: int = 8, correlation: float = 0.9) -> GaussianDenoiser:
    """Clips of scalar frames of a stationary AR(1) process (fvdm, section 5.1); items have shape (F,)."""
    return GaussianDenoiser(torch.zeros(frames, dtype=torch.float64), ar1_cov(frames, correlation), process)


def ar1_cov(frames: int = 8, correlation: float = 0.9) -> Tensor:
    """C_ij = correlation^|i - j|."""
    index = torch.arange(frames, dtype=torch.float64)
    return correlation ** (index[:, None] - index[None]).abs()


def conditional(cov: Tensor, known: list[int], values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the other elements of N(0, cov) given `known`."""
    free = [i for i in range(len(cov)) if i not in known]
    gain = torch.linalg.solve(cov[known][:, known], cov[known][:, free]).T
    return gain @ values, cov[free][:, free] - gain @ cov[known][:, free]


def push(
    denoiser: Denoiser, solver: Solver, grid: Tensor, start: Tensor, scale: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Propagate N(start, diag(scale^2)) through a run that is affine in the state and in the noise.

    One probe per unit of randomness (each element of the start, each element of each step's noise) gives the run's
    coefficients, so that mean and covariance of its result are exact: no sampling error.

    Returns:
        Mean (D,) and covariance (D, D) of the flattened result.
    """
    shape, size, steps = tuple(start.shape), start.numel(), len(grid) - 1
    streams = options.pop("streams", [("step", k) for k in range(steps)] if solver.stochastic else [])
    count = 1 + size * (1 + len(streams))
    starts = start.expand(count, *shape).clone()
    starts[1 : 1 + size] += torch.diag(scale.flatten()).reshape(size, *shape)
    given = {}
    for i, key in enumerate(streams):
        probes = torch.zeros(count, size, dtype=torch.float64)
        probes[1 + size * (1 + i) : 1 + size * (2 + i)] = torch.eye(size, dtype=torch.float64)
        given[key] = probes.reshape(count, *shape)
    result = run(denoiser, solver, grid, starts, noise=InjectedNoise(given), **options).x.flatten(1)
    columns = result[1:] - result[0]
    return result[0], columns.T @ columns

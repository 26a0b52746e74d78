r"""Exact denoisers of Gaussian data and Gaussian mixtures: the oracles of the test suite, and useful tools.

Every component is N(mu, U diag(lambda) U^T + delta^2 I) with orthonormal U of any rank r. A time shared by the
elements of an item keeps that form (variances alpha^2 lambda + sigma^2), so posteriors cost O(D r). A time per
element does not; then the dense system A C A + S^2 with A = diag(alpha), S = diag(sigma) is solved per item.
Everything runs in float64.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import ExactDenoiser
from undiffuse.denoisers.linearised import Linearised
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, align, check_time, expand_time
from undiffuse.spec import DataSpec

_DENSE = 1 << 24  # numbers of a batch of covariance matrices that are kept while products are asked for


class _Component(nn.Module):
    """N(mean, basis diag(variances) basis^T + residual I); mean (D,), basis (D, r), variances (r,)."""

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, variances: Tensor, residual: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances)
        self.residual = residual

    @property
    def cov(self) -> Tensor:
        """Dense covariance (D, D)."""
        eye = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        return (self.basis * self.variances) @ self.basis.T + self.residual * eye

    def shared(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (log p(x_t), E[x_0 | x_t]) for x (B, D), alpha and sigma (B, 1)."""
        y = x - alpha * self.mean
        inside = y @ self.basis
        along = alpha**2 * (self.variances + self.residual) + sigma**2
        across = alpha**2 * self.residual + sigma**2
        outside = y - inside @ self.basis.T
        rest = len(self.mean) - self.basis.shape[1]
        distance = (_ratio(inside, along) * inside).sum(1) + (_ratio(outside, across) * outside).sum(1)
        logdet = along.log().sum(1) + (rest * across.log().squeeze(1) if rest else 0.0)
        gain = _ratio(alpha * (self.variances + self.residual) * inside, along) @ self.basis.T
        mean = self.mean + gain + _ratio(alpha * self.residual * outside, across)
        return -0.5 * (distance + logdet + len(self.mean) * math.log(math.tau)), mean

    def elementwise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The same for alpha and sigma (B, D) that differ within an item."""
        y = x - alpha * self.mean
        cross = self.cov * alpha[:, None, :]  # C A, (B, D, D)
        solved, logdet = _solve(alpha[:, :, None] * cross + torch.diag_embed(sigma**2), y)
        distance = (y * solved).sum(1)
        mean = self.mean + (cross @ solved[..., None])[..., 0]
        return -0.5 * (distance + logdet + len(self.mean) * math.log(math.tau)), mean

    def rest(self, vector: Tensor, alpha: Tensor, sigma: Tensor, power: float = 1.0) -> Tensor:
        """Return V^power v with V the covariance of x_0 given x_t, for v (B, D), alpha and sigma (B, 1) or (B, D)."""
        if alpha.shape[1] > 1:
            return _matrix_power(self.dense_rest(alpha, sigma), power, vector)
        along = self.variances + self.residual
        along = _ratio(along * sigma**2, alpha**2 * along + sigma**2) ** power
        across = _ratio(self.residual * sigma**2, alpha**2 * self.residual + sigma**2) ** power
        return ((along - across) * (vector @ self.basis)) @ self.basis.T + across * vector

    def dense_rest(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return V (B, D, D) for alpha and sigma (B, D) that differ within an item."""
        cross = self.cov * alpha[:, None, :]
        total = alpha[:, :, None] * cross + torch.diag_embed(sigma**2)
        solved = torch.linalg.pinv(total, hermitian=True) @ cross.mT
        rest = self.cov - cross @ solved
        return (rest + rest.mT) / 2


class MixtureDenoiser(ExactDenoiser):
    """Exact posterior for a mixture of M Gaussians.

    Args:
        weights: (M,), positive; normalised here.
        means: (M, *shape).
        covs: Per component, either a standard deviation (M,) or a covariance (M, D, D) over the flattened item.
        process: Gaussian process; its times may be per item or per leading element.
        labels: Class of each component, int64 (M,), for class-conditional posteriors (condition "label").
        spec: What one item is.

    Raises:
        ValueError: Shapes that do not fit, weights that are not positive, a covariance that is not symmetric
            positive semi-definite.
    """

    process: GaussianProcess
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        covs: Tensor,
        process: GaussianProcess,
        *,
        labels: Tensor | None = None,
        spec: DataSpec | None = None,
    ) -> None:
        super().__init__()
        count, size = len(means), means[0].numel()
        if covs.shape not in ((count,), (count, size, size)):
            raise ValueError(f"covs has shape {tuple(covs.shape)}; expected ({count},) or ({count}, {size}, {size}).")
        flat = means.double().reshape(count, size)
        self._setup(
            [_component(m, c) for m, c in zip(flat, covs.double(), strict=True)], weights, process, labels, spec
        )
        self.shape = tuple(means.shape[1:])

    def _setup(
        self,
        components: list[_Component],
        weights: Tensor,
        process: GaussianProcess,
        labels: Tensor | None,
        spec: DataSpec | None,
    ) -> None:
        if weights.shape != (len(components),) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {len(components)} positive numbers, got {weights.tolist()}.")
        self.components = nn.ModuleList(components)
        self.register_buffer("log_weights", (weights.double() / weights.double().sum()).log())
        self.process = process
        self.register_buffer("labels", labels)
        self.spec = spec

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Return the exact posterior mean, in the dtype of `x`."""
        log_joint, means = self._joint(x, t, cond)
        share = torch.softmax(log_joint, dim=1)
        mean = torch.einsum("bm,bmd->bd", share, means)
        return Posterior(mean.reshape(x.shape).to(x.dtype))

    def linearise(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Linearised:
        """Return the exact posterior with its covariance and draws of N(0, covariance), all in closed form."""
        check_time(t, x)
        log_joint, means = self._joint(x, t, cond)
        share = torch.softmax(log_joint, dim=1)
        mean = torch.einsum("bm,bmd->bd", share, means)
        apart = (means - mean[:, None]) * share.sqrt()[..., None]  # roots of the spread between components
        alpha, sigma = _flat_levels(self.process, x, t)

        dense: list[Tensor | None] = []  # built for the second product: one alone costs less without

        def cov(vector: Tensor) -> Tensor:
            flat = vector.double().flatten(1)
            if len(dense) < 2:
                dense.append(self._dense_cov(share, apart, t) if dense else None)
            if dense[-1] is not None:
                return (dense[-1] @ flat[..., None]).reshape(x.shape).to(x.dtype)
            within = sum(share[:, m, None] * c.rest(flat, alpha, sigma) for m, c in enumerate(self._parts))
            between = torch.einsum("bmd,bm->bd", apart, torch.einsum("bme,be->bm", apart, flat))
            return (within + between).reshape(x.shape).to(x.dtype)

        def draw(noise: NoiseSource, step: int) -> Tensor:
            z = noise.normal("probe", step, (len(self._parts), x[0].numel() + 1), torch.float64)
            within = sum(
                share[:, m, None].sqrt() * c.rest(z[:, m, 1:], alpha, sigma, 0.5) for m, c in enumerate(self._parts)
            )
            between = torch.einsum("bm,bmd->bd", z[..., 0], apart)
            return (within + between).reshape(x.shape).to(x.dtype)

        most = self.process.schedule.t_max
        levels = self.process.coefficients(t.clamp(max=most) if isinstance(t, Tensor) else min(t, most), x)
        back = levels[0] / levels[1] ** 2
        return Linearised(Posterior(mean.reshape(x.shape).to(x.dtype)), lambda vector: back * cov(vector), cov, draw)

    def responsibilities(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Tensor:
        """Return the probability of each component given x_t, float64 (B, M)."""
        return self._joint(x, t, cond)[0].softmax(1)

    def _dense_cov(self, share: Tensor, apart: Tensor, t: Time) -> Tensor | None:
        """Return the covariances (B, D, D) where they are small and the components' are shared by the batch."""
        if isinstance(t, Tensor) or len(share) * apart.shape[2] ** 2 > _DENSE:
            return None
        eye = torch.eye(apart.shape[2], dtype=torch.float64, device=share.device)
        levels = self.process.schedule.levels(torch.tensor([[t]], dtype=torch.float64, device=share.device))
        rests = torch.stack([c.rest(eye, *levels) for c in self._parts])
        return (share @ rests.flatten(1)).unflatten(1, rests.shape[1:]) + apart.mT @ apart

    def moments(self, cond: Embedded | None = None) -> tuple[Tensor, Tensor]:
        """Return mean (D,) and covariance (D, D) of the data, float64, given the condition of one row if any."""
        share = torch.softmax(self._prior(1, cond), dim=1)[0]
        means = torch.stack([c.mean for c in self._parts])
        mean = share @ means
        within = sum(w * c.cov for w, c in zip(share, self._parts, strict=True))
        apart = means - mean
        return mean, within + (apart * share[:, None]).T @ apart

    def log_prob(self, x: Tensor, t: Time = 0.0, cond: Embedded | None = None) -> Tensor:
        """Return log p_t(x), (B,), in nats, of x given the condition where there is one; at t = 0 that of the data."""
        log_joint, _ = self._joint(x, t, cond)
        return torch.logsumexp(log_joint, dim=1) - torch.logsumexp(self._prior(len(x), cond), dim=1)

    def sample_data(self, normal: Tensor, uniform: Tensor, cond: Embedded | None = None) -> Tensor:
        """Turn standard normals (B, *shape) and uniforms (B,) into draws of the data, (B, *shape)."""
        shares = torch.softmax(self._prior(len(normal), cond), dim=1).cumsum(1)
        which = torch.searchsorted(shares, uniform.double()[:, None], right=True)[:, 0].clamp(
            max=len(self.components) - 1
        )
        flat = normal.double().flatten(1)
        drawn = torch.stack([c.mean + flat @ _root(c.cov) for c in self._parts])
        return drawn[which, torch.arange(len(flat))].reshape(normal.shape)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Turn "label" into a mask of components (B, M); the null allows them all."""
        if self.labels is None or {*(cond or {}), *(drop or {})} - {"label"}:
            return super().embed(cond, batch, drop)
        allowed = torch.ones(batch, len(self.components), dtype=torch.float64, device=self.labels.device)
        if cond and "label" in cond:
            wanted = cond["label"].to(self.labels.device)[:, None] == self.labels
            if not bool(wanted.any(1).all()):
                raise ValueError(
                    f"label {cond['label'].tolist()} has no component; labels are {self.labels.unique().tolist()}."
                )
            allowed = wanted.double()
        if drop and "label" in drop:
            allowed = torch.where(drop["label"].to(allowed.device)[:, None], 1.0, allowed)
        return Embedded(vector=allowed)

    @property
    def _parts(self) -> list[_Component]:
        return [cast(_Component, component) for component in self.components]

    def _prior(self, batch: int, cond: Embedded | None) -> Tensor:
        """Log weights of the components, (B, M), -inf for those that the condition rules out."""
        prior = self.log_weights.expand(batch, -1)
        return prior if cond is None or cond.vector is None else prior + cond.vector.double().log()

    def _joint(self, x: Tensor, t: Time, cond: Embedded | None) -> tuple[Tensor, Tensor]:
        """Return log p(component, x_t) (B, M) and the posterior mean of each component (B, M, D)."""
        alpha, sigma = _flat_levels(self.process, x, t)
        if alpha.shape[1] == 1 and all(c.basis.shape[1] == x[0].numel() for c in self._parts):
            if not isinstance(t, Tensor) or t.ndim == 0:
                alpha, sigma = alpha[:1], sigma[:1]
            log_prob, means = _all_shared(self._parts, x.double().flatten(1), alpha, sigma)
            return self._prior(len(x), cond) + log_prob, means
        solve = _Component.shared if alpha.shape[1] == 1 else _Component.elementwise
        parts = [solve(c, x.double().flatten(1), alpha, sigma) for c in self._parts]
        log_prob = torch.stack([p[0] for p in parts], dim=1)
        return self._prior(len(x), cond) + log_prob, torch.stack([p[1] for p in parts], dim=1)


class LowRankMixtureDenoiser(MixtureDenoiser):
    """Mixture of low-rank Gaussians: component m is N(mu_m, U_m diag(lambda_m) U_m^T + residual^2 I).

    Args:
        weights: (M,), positive.
        means: (M, *shape).
        bases: (M, D, r), orthonormal columns.
        variances: (M, r), at least 0.
        process: Gaussian process.
        residual: Standard deviation outside the subspaces, at least 0.
        labels: Class of each component, (M,).
        spec: What one item is.

    Raises:
        ValueError: Shapes that do not fit, or columns that are not orthonormal to 1e-6.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        bases: Tensor,
        variances: Tensor,
        process: GaussianProcess,
        *,
        residual: float = 0.0,
        labels: Tensor | None = None,
        spec: DataSpec | None = None,
    ) -> None:
        ExactDenoiser.__init__(self)
        bases, variances = bases.double(), variances.double()
        eye = torch.eye(bases.shape[-1], dtype=torch.float64)
        if not torch.allclose(bases.mT @ bases, eye.expand(len(bases), -1, -1), atol=1e-6):
            raise ValueError("bases must have orthonormal columns; take torch.linalg.qr(bases).Q.")
        if variances.shape != (len(bases), bases.shape[-1]) or bool((variances < 0).any()):
            raise ValueError(f"variances must be ({len(bases)}, {bases.shape[-1]}) and at least 0.")
        flat = means.double().flatten(1)
        parts = [_Component(m, u, v, residual**2) for m, u, v in zip(flat, bases, variances, strict=True)]
        self._setup(parts, weights, process, labels, spec)
        self.shape = tuple(means.shape[1:])


class GaussianDenoiser(MixtureDenoiser):
    """Exact posterior for N(mean, cov) with a full covariance, also over frames.

    Args:
        mean: (*shape).
        cov: (D, D) over the flattened item.
        process: Gaussian process.
        spec: What one item is.
    """

    def __init__(self, mean: Tensor, cov: Tensor, process: GaussianProcess, *, spec: DataSpec | None = None) -> None:
        super().__init__(torch.ones(1), mean[None], cov[None], process, spec=spec)


def _all_shared(parts: list[_Component], x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`_Component.shared` of components of full rank in one go: log p(x_t) (B, M) and posterior means (B, M, D).

    alpha and sigma are (B, 1), or (1, 1) for a time that all rows share.
    """
    means, bases = torch.stack([c.mean for c in parts]), torch.stack([c.basis for c in parts])  # (M, D), (M, D, D)
    variances = torch.stack([c.variances + c.residual for c in parts])
    inside = x.expand(len(parts), -1, -1) @ bases - alpha * (means[:, None] @ bases)
    along = alpha**2 * variances[:, None] + sigma**2  # (M, B, D)
    solved = _ratio(inside, along)
    distance = (solved * inside).sum(2) + along.log().sum(2)
    found = torch.baddbmm(means[:, None], alpha * variances[:, None] * solved, bases.mT)
    return -0.5 * (distance + x.shape[1] * math.log(math.tau)).T, found.transpose(0, 1)


def _component(mean: Tensor, cov: Tensor) -> _Component:
    if cov.ndim == 0:
        return _Component(mean, mean.new_zeros(len(mean), 0), mean.new_zeros(0), float(cov) ** 2)
    if not torch.allclose(cov, cov.T, atol=1e-10):
        raise ValueError("a covariance is not symmetric; give (C + C^T) / 2.")
    variances, basis = torch.linalg.eigh(cov)
    if variances[0] < -1e-10 * variances[-1].clamp(min=1.0):
        raise ValueError(
            f"a covariance has the negative eigenvalue {float(variances[0]):.3g}; it must be positive semi-definite."
        )
    return _Component(mean, basis, variances.clamp(min=0), 0.0)


def _flat_levels(process: GaussianProcess, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma in float64, (B, 1) for times shared within an item, else (B, D)."""
    times = expand_time(t, x).double()
    alpha, sigma = process.schedule.alpha(times), process.schedule.sigma(times)
    if times.ndim == 1:
        return alpha[:, None], sigma[:, None]
    return tuple(align(level, x).expand(x.shape).flatten(1) for level in (alpha, sigma))  # type: ignore[return-value]


def _solve(matrix: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return M^-1 y (B, D) and log det M (B,) for symmetric M (B, D, D); the pseudo-inverse where M is singular, as it
    is where known elements of a degenerate Gaussian carry no noise."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not bool(failed.any()):
        solved = torch.cholesky_solve(y[..., None], factor)[..., 0]
        return solved, 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    values, basis = torch.linalg.eigh(matrix)
    kept = values > 1e-12 * values.amax(1, keepdim=True)
    inside = torch.einsum("bde,bd->be", basis, y)
    solved = torch.einsum("bde,be->bd", basis, torch.where(kept, inside / values, 0.0))
    return solved, torch.where(kept, values, 1.0).log().sum(1)


def _ratio(x: Tensor, by: Tensor) -> Tensor:
    """x / by, with 0 / 0 = 0: a direction without variance or noise has nothing to say."""
    return torch.where(by > 0, x / torch.where(by > 0, by, 1.0), 0.0)


def _matrix_power(matrix: Tensor, power: float, vector: Tensor) -> Tensor:
    """Return M^power v for symmetric positive semi-definite M (B, D, D) and v (B, D)."""
    if power == 1:
        return (matrix @ vector[..., None])[..., 0]
    values, basis = torch.linalg.eigh(matrix)
    inside = torch.einsum("bde,bd->be", basis, vector)
    return torch.einsum("bde,be->bd", basis, values.clamp(min=0) ** power * inside)


def _root(cov: Tensor) -> Tensor:
    """Symmetric square root of a covariance."""
    variances, basis = torch.linalg.eigh(cov)
    return (basis * variances.clamp(min=0).sqrt()) @ basis.T

"""The exact posterior of a Gaussian mixture given a linear measurement: what restorers are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.noise import NoiseSource, permutation
from undiffuse.operators.base import LinearOperator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import VPSchedule
from undiffuse.spec import DataSpec


@dataclass(frozen=True)
class MixturePosterior:
    """A Gaussian mixture per image, float64.

    Args:
        weights: (B, M).
        means: (B, M, D).
        covs: (B, M, D, D).
        shape: Of one item; D numbers.
    """

    weights: Tensor
    means: Tensor
    covs: Tensor
    shape: tuple[int, ...]

    @property
    def mean(self) -> Tensor:
        """The estimate with the least squared error, (B, *shape)."""
        return torch.einsum("bm,bmd->bd", self.weights, self.means).reshape(-1, *self.shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, (B, *shape)."""
        within = torch.einsum("bm,bmdd->bd", self.weights, self.covs)
        second = torch.einsum("bm,bmd->bd", self.weights, self.means**2)
        return (within + second - self.mean.flatten(1) ** 2).reshape(-1, *self.shape)

    def sample(self, noise: NoiseSource, n: int) -> Tensor:
        """Return draws (n, B, *shape); the items of `noise` are the images."""
        size = self.means.shape[-1]
        values, vectors = torch.linalg.eigh(self.covs)
        roots = vectors * values.clamp(min=0).sqrt()[..., None, :]
        z = noise.normal("data", 0, (n, size), torch.float64)
        u = noise.uniform("class", 0, (n,))
        which = torch.searchsorted(self.weights.cumsum(1).contiguous(), u.contiguous(), right=True)
        which = which.clamp(max=self.weights.shape[1] - 1)  # (B, n)
        rows = torch.arange(len(which))[:, None]
        drawn = self.means[rows, which] + torch.einsum("bnde,bne->bnd", roots[rows, which], z)
        return drawn.transpose(0, 1).reshape(n, len(which), *self.shape)


def exact_posterior(prior: MixtureDenoiser, y: Tensor, operator: LinearOperator, noise_std: float) -> MixturePosterior:
    """Return p(x | y) for y = A x + noise_std z, B images.

    Args:
        prior: The data's law.
        y: (B, *operator.out_shape).
        operator: Small enough for its matrix: D times the size of y.
        noise_std: Model units; 0 takes the pseudo-inverse where A loses rows.
    """
    shape, size = operator.in_shape, prior.moments()[0].numel()
    matrix = dense(operator)  # (m, D) or (B, m, D)
    matrix = matrix if matrix.ndim == 3 else matrix.expand(len(y), -1, -1)
    flat = y.double().flatten(1)
    eye = torch.eye(flat.shape[1], dtype=torch.float64, device=y.device)
    logs, means, covs = [], [], []
    for log_weight, part in zip(prior.log_weights, prior._parts, strict=True):
        cross = part.cov @ matrix.mT  # C A^T, (B, D, m)
        total = matrix @ cross + noise_std**2 * eye
        values, vectors = torch.linalg.eigh((total + total.mT) / 2)
        kept = values > 1e-12 * values.amax(1, keepdim=True)
        inverse = (vectors * torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)[:, None]) @ vectors.mT
        rest = flat - matrix @ part.mean
        gain = cross @ inverse
        distance = torch.einsum("bm,bmn,bn->b", rest, inverse, rest)
        logs.append(log_weight - 0.5 * (distance + torch.where(kept, values, 1.0).log().sum(1)))
        means.append(part.mean + (gain @ rest[..., None])[..., 0])
        cov = part.cov - gain @ cross.mT
        covs.append((cov + cov.mT) / 2)
    assert means[0].shape[1] == size
    return MixturePosterior(
        torch.softmax(torch.stack(logs, 1), 1), torch.stack(means, 1), torch.stack(covs, 1), tuple(shape)
    )


def dense(operator: LinearOperator) -> Tensor:
    """Return the operator's matrix (m, D), float64; (B, m, D) where it has parameters per image."""
    size = 1
    for length in operator.in_shape:
        size *= length
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *operator.in_shape)
    if operator.rows is None:
        return operator(eye).flatten(1).T
    own = [operator.take(torch.full((size,), row))(eye).flatten(1).T for row in range(operator.rows)]
    return torch.stack(own)


def fit_mixture(
    x: Tensor, labels: Tensor, process: GaussianProcess, *, floor: float = 0.01, spec: DataSpec | None = None
) -> MixtureDenoiser:
    """Return the mixture with a Gaussian for each class: its mean and its full covariance + floor I.

    Args:
        x: Data (N, *shape), model units.
        labels: Class of each, (N,).
        process: Of the denoiser.
        floor: Variance added to every direction.
        spec: What one item is.
    """
    classes = labels.unique()
    flat = x.double().flatten(1)
    eye = torch.eye(flat.shape[1], dtype=torch.float64)
    groups = [flat[labels == c] for c in classes]
    means = torch.stack([group.mean(0) for group in groups]).reshape(len(classes), *x.shape[1:])
    covs = torch.stack([group.T.cov() + floor * eye for group in groups])
    weights = torch.tensor([float(len(group)) for group in groups])
    return MixtureDenoiser(weights, means, covs, process, labels=classes, spec=spec)


def digits_prior(count: int = 1500, process: GaussianProcess | None = None) -> tuple[MixtureDenoiser, Tensor]:
    """Return the mixture of the ten digits fitted on `count` of scikit-learn's images, and the images held out.

    Images are (1, 8, 8) in [-1, 1], float64; which ones are held out is a fixed random choice. The process is the
    linear variance-preserving one unless given.

    Raises:
        DataError: scikit-learn is not installed.
    """
    from undiffuse.data.synthetic import load_digits

    images, names = load_digits()
    x = torch.as_tensor(images).double()[:, None] / 8 - 1
    labels = torch.as_tensor([int(name) for name in names])
    order = permutation(0, 0, len(x))
    chosen, held_out = order[:count], order[count:]
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 16.0), classes=tuple(map(str, range(10))))
    made: Any = fit_mixture(x[chosen], labels[chosen], process or GaussianProcess(VPSchedule()), spec=spec)
    return made, x[held_out]

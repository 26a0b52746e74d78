"""The exact denoiser of a finite data set: the posterior is a softmax over the stored items."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.denoisers.base import ExactDenoiser
from undiffuse.denoisers.mixture import _flat_levels
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec

_SIGMA_FLOOR = 1e-4  # below it the softmax is one-hot anyway, and squares of 1 / sigma start to cost digits


class EmpiricalDenoiser(ExactDenoiser):
    """Exact posterior for data drawn uniformly from N stored items, with any shape of time.

    log weight of item y is -sum_d (x_d - alpha_d y_d)^2 / (2 sigma_d^2), in float64, over chunks of the data, so
    memory is O(B chunk).

    Args:
        data: (N, *shape), model units.
        process: Gaussian process.
        labels: Class of each item, int64 (N,), for class-conditional posteriors (condition "label").
        chunk: Stored items per pass.
        spec: What one item is.

    Raises:
        ValueError: No data, or labels of another length.
    """

    process: GaussianProcess
    data: Tensor
    labels: Tensor | None

    def __init__(
        self,
        data: Tensor,
        process: GaussianProcess,
        *,
        labels: Tensor | None = None,
        chunk: int = 4096,
        spec: DataSpec | None = None,
    ) -> None:
        super().__init__()
        if len(data) == 0:
            raise ValueError("the data set is empty; an empirical denoiser needs at least one item.")
        if labels is not None and labels.shape != (len(data),):
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({len(data)},).")
        self.register_buffer("data", data.double(), persistent=False)
        self.process = process
        self.register_buffer("labels", labels, persistent=False)
        self.chunk = chunk
        self.spec = spec

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Return the exact posterior mean, in the dtype of `x`; one pass over the data."""
        alpha, sigma = _flat_levels(self.process, x, t)
        precision = sigma.clamp(min=_SIGMA_FLOOR) ** -2
        linear, square = x.double().flatten(1) * alpha * precision, -0.5 * alpha**2 * precision
        top = x.new_full((len(x), 1), -torch.inf, dtype=torch.float64)
        total, weighted = torch.zeros_like(top), torch.zeros_like(linear)
        for start in range(0, len(self.data), self.chunk):  # the softmax, kept relative to its running maximum
            items = self.data[start : start + self.chunk].flatten(1)
            squares = (items**2).sum(1)[None] * square if square.shape[1] == 1 else square @ (items**2).T
            logits = linear @ items.T + squares + self._allowed(cond, start)
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink = torch.exp(top - higher).nan_to_num(0.0)
            weights = torch.exp(logits - higher).nan_to_num(0.0)
            total = total * shrink + weights.sum(1, keepdim=True)
            weighted = weighted * shrink + weights @ items
            top = higher
        return Posterior((weighted / total).reshape(x.shape).to(x.dtype))

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Keep "label" as a number per row, (B, 1); -1 is the null, which allows every item."""
        if self.labels is None or {*(cond or {}), *(drop or {})} - {"label"}:
            return super().embed(cond, batch, drop)
        wanted = torch.full((batch,), -1, device=self.labels.device)
        if cond and "label" in cond:
            wanted = cond["label"].to(self.labels.device)
            unknown = ~torch.isin(wanted, self.labels)
            if bool(unknown.any()):
                raise ValueError(f"label {int(wanted[unknown][0])} does not occur in the data.")
        if drop and "label" in drop:
            wanted = torch.where(drop["label"].to(wanted.device), -1, wanted)
        return Embedded(vector=wanted[:, None].double())

    def _allowed(self, cond: Embedded | None, start: int) -> Tensor | float:
        """0 for items of the wanted class, -inf for the others, (B, chunk)."""
        if cond is None or cond.vector is None or self.labels is None:
            return 0.0
        match = (cond.vector < 0) | (cond.vector == self.labels[start : start + self.chunk])
        return torch.where(match, 0.0, -torch.inf)

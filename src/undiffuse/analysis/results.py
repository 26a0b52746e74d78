"""What a likelihood computation returns: log p per item, with every error that is known, and bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from undiffuse.denoisers.elbo import Bound
from undiffuse.words import plain_json


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Log-likelihoods of n items.

    Args:
        log_p: Nats per item, float64 (n,); of the evidence bound a lower bound in expectation.
        noise_error: Standard error of each `log_p` over probes or draws, (n,); NaN where there is one of them; None
            where nothing is random.
        dims: Elements of an item d (of its latent, where the model has a codec).
        method: "ode", "elbo", or of networks that read from left to right "exact".
        units: What `log_p` is a density of: "levels" (probability of integers), "data units", "model units" or
            "latents".
        t_min: `log_p` is of the data noised to this time (ode), or the bound ends there (elbo); None for tokens.
        t_max: Time at which the prior holds; None for tokens.
        dequantised: Whether uniform noise of one level was added to the data.
        nfe: Network evaluations per item; those of the divergence (backward passes) are not counted.
        passes: Backward passes per item.
        index: Numbers of the items in the data, int64 (n,).
        settings: How it was computed.
        notes: How to read it.
    """

    log_p: Tensor
    noise_error: Tensor | None
    dims: int
    method: str
    units: str
    t_min: float | None
    t_max: float | None
    dequantised: bool
    nfe: int
    passes: int
    index: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = ("figure", "value", "error", "note")

    @property
    def is_bound(self) -> bool:
        """Whether `log_p` is the evidence bound."""
        return self.method == "elbo"

    @property
    def bits(self) -> Tensor:
        """Bits per dimension of each item, -log2 p / d, (n,)."""
        return -self.log_p / (self.dims * math.log(2.0))

    @property
    def bits_per_dim(self) -> Bound:
        """Mean bits per dimension and its standard error over items."""
        scale = 1.0 / (self.dims * math.log(2.0))
        return Bound(self.nats.mean * scale, self.nats.standard_error * scale)

    @property
    def nats(self) -> Bound:
        """Mean of -log p in nats per item, and its standard error over items (which includes that over probes)."""
        count = len(self.log_p)
        error = float(self.log_p.std()) / count**0.5 if count > 1 else math.nan
        return Bound(-float(self.log_p.mean()), error)

    @property
    def noise_standard_error(self) -> float:
        """Standard error of the mean in nats per item that is owed to probes or draws alone; 0 where nothing is."""
        if self.noise_error is None:
            return 0.0
        return float(self.noise_error.square().sum().sqrt()) / len(self.noise_error)

    def table(self) -> list[tuple[str, ...]]:
        """Return rows of strings, to go under `columns`."""
        unit = "token" if self.units == "tokens" else "dimension"
        bits, nats, count = self.bits_per_dim, self.nats, len(self.log_p)
        note = "; ".join(("upper bound", *self.notes) if self.is_bound else self.notes)
        noise = self.noise_standard_error / (self.dims * math.log(2.0))
        source = "draws" if self.is_bound else "probes"
        rows: list[tuple[str, ...]] = [(f"bits per {unit}", f"{bits.mean:.4f}", _error(bits.standard_error), note)]
        if self.noise_error is not None:
            more = f"more {source} lower this part" if not math.isnan(noise) else f"not known with one of the {source}"
            rows.append((f"of the error, by {source}", "", _error(noise), more))
        low, high = float(self.log_p.min()), float(self.log_p.max())
        rows.append(("-log p per item, nats", f"{nats.mean:.2f}", _error(nats.standard_error), f"{count} items"))
        rows.append(("most likely item, log p", f"{high:.2f}", "", f"item {int(self.index[self.log_p.argmax()])}"))
        rows.append(("least likely item, log p", f"{low:.2f}", "", f"item {int(self.index[self.log_p.argmin()])}"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types; what is not finite becomes None."""
        bits, nats = self.bits_per_dim, self.nats
        return plain_json(
            {
                "method": self.method,
                "n": len(self.log_p),
                "bits_per_dim": bits.mean,
                "bits_per_dim_error": bits.standard_error,
                "nats": nats.mean,
                "nats_error": nats.standard_error,
                "noise_error": self.noise_standard_error,
                "dims": self.dims,
                "units": self.units,
                "t_min": self.t_min,
                "t_max": self.t_max,
                "dequantised": self.dequantised,
                "evaluations": self.nfe,
                "backward_passes": self.passes,
                "settings": self.settings,
                "notes": self.notes,
                "index": self.index.tolist(),
                "log_p": self.log_p.tolist(),
                "log_p_error": None if self.noise_error is None else self.noise_error.tolist(),
            }
        )


def _error(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"

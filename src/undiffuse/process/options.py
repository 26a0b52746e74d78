"""Options of the processes, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from undiffuse.words import option

_RESTORATION = ("ir-sde", "resshift", "i2sb", "indi", "rddm")


@dataclass(frozen=True, kw_only=True)
class GaussianOptions:
    """A Gaussian process, and what the network predicts about it."""

    kind: Literal["gaussian"] = "gaussian"
    schedule: Literal[
        "vp",
        "subvp",
        "ve",
        "cosine",
        "trig",
        "edm",
        "rf",
        "ddpm",
        "scaled-linear",
        "ir-sde",
        "resshift",
        "i2sb",
        "indi",
        "rddm",
    ] = option("cosine", "noise schedule; the last five are of restoration, with start=source")
    start: Literal["noise", "source"] = option(
        "noise", "what the walk begins at: noise, or the given picture (data.pair, data.degrade) with noise"
    )
    spread: float | None = option(None, "size of the noise of the restoration schedules; none: as published")
    prediction: Literal["data", "noise", "velocity", "v", "edm"] = option("v", "what the network puts out")
    shift: float = option(1.0, "time shift of the rf schedule; above 1 spends more time at high noise")
    data_std: float = option(1.0, "standard deviation of the data in model units, for prediction 'edm'")

    def __post_init__(self) -> None:
        if not self.shift > 0 or not self.data_std > 0:
            raise ValueError(f"shift={self.shift} and data_std={self.data_std} must be positive.")
        restores = self.schedule in _RESTORATION
        if restores and self.start != "source":
            raise ValueError(
                f"schedule {self.schedule!r} walks to a given picture; set process.start=source, or choose another."
            )
        if self.spread is not None and not (restores and self.spread > 0):
            raise ValueError(
                f"spread={self.spread} belongs to schedules {', '.join(_RESTORATION)}, above 0; leave it out."
            )
        if self.shift != 1.0 and self.schedule != "rf":
            raise ValueError(
                f"shift={self.shift} belongs to schedule 'rf', not {self.schedule!r}; remove it or switch."
            )

    @property
    def schedule_options(self) -> dict[str, float]:
        """What `make_schedule` takes beside the name."""
        spread = {} if self.spread is None else {"spread": self.spread}
        return {"shift": self.shift} if self.schedule == "rf" else spread


@dataclass(frozen=True, kw_only=True)
class CategoricalOptions:
    """A categorical process on tokens."""

    kind: Literal["categorical"] = "categorical"
    corruption: Literal["absorbing", "uniform", "mask-replace"] = option("absorbing", "what noise does to a token")
    keep: Literal["linear", "cosine", "root-cosine", "polynomial", "vq-diffusion"] = option(
        "linear", "probability to keep a token over time"
    )
    mask_share: float = option(0.9, "mask-replace: share of lost tokens that become masks")
    evidence_free: bool = option(
        False, "the network answers without the evidence of a token about itself, which the process then adds (VQ-DDM)"
    )

    def __post_init__(self) -> None:
        if not 0 < self.mask_share < 1:
            raise ValueError(f"mask_share={self.mask_share} is outside of (0, 1); use corruption=absorbing or uniform.")
        if self.corruption != "mask-replace" and self.mask_share != 0.9:
            raise ValueError(
                f"mask_share={self.mask_share} belongs to corruption=mask-replace, not {self.corruption}; leave it out."
            )
        if self.keep == "vq-diffusion" and self.mask_share != 0.9:
            raise ValueError(f"mask_share={self.mask_share}, but keep=vq-diffusion has masks of its own; leave it out.")

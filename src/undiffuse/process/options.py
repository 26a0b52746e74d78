"""Options of the processes, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from undiffuse.words import option

_TABLES = ("ddpm", "scaled-linear", "cosine-table")
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
        "cosine-table",
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
    levels: int | None = option(None, "ddpm, scaled-linear, cosine-table: entries of the table; none: 1000")
    beta_min: float | None = option(None, "ddpm, scaled-linear: first beta; none: 0.0001 and 0.00085")
    beta_max: float | None = option(None, "ddpm, scaled-linear: last beta; none: 0.02 and 0.012")
    zero_snr: bool = option(False, "ddpm, scaled-linear, cosine-table: let the table end in pure noise")

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
        self._check_table()

    def _check_table(self) -> None:
        """Options of tables go with tables, and make one."""
        wrong = {
            "levels": self.levels is not None and self.schedule not in _TABLES,
            "zero_snr": self.zero_snr and self.schedule not in _TABLES,
            "beta_min": self.beta_min is not None and self.schedule not in _TABLES[:2],
            "beta_max": self.beta_max is not None and self.schedule not in _TABLES[:2],
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                known = _TABLES[:2] if name.startswith("beta") else _TABLES
                raise ValueError(
                    f"{name}={getattr(self, name)} belongs to schedules {', '.join(known)}, not {self.schedule!r}; "
                    f"leave it out."
                )
        if self.levels is not None and not self.levels >= 3:
            raise ValueError(f"levels={self.levels}: a table has at least 3 noise levels.")
        for name, beta in (("beta_min", self.beta_min), ("beta_max", self.beta_max)):
            if beta is not None and not 0 < beta < 1:
                raise ValueError(f"{name}={beta} is the share of variance that a step replaces; it lies inside (0, 1).")

    @property
    def schedule_options(self) -> dict[str, Any]:
        """What `make_schedule` takes beside the name."""
        if self.schedule in _TABLES:
            named = {"steps": self.levels, "beta_min": self.beta_min, "beta_max": self.beta_max}
            given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
            return given | ({"zero_terminal_snr": True} if self.zero_snr else {})
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
    power: float | None = option(None, "polynomial: the power in keep = 1 - t^power; none: 2")
    mask_share: float = option(0.9, "mask-replace: share of lost tokens that become masks")
    evidence_free: bool = option(
        False, "the network answers without the evidence of a token about itself, which the process then adds (VQ-DDM)"
    )

    def __post_init__(self) -> None:
        if self.power is not None and not (self.keep == "polynomial" and self.power > 0):
            raise ValueError(
                f"power={self.power} belongs to keep=polynomial, above 0, not {self.keep!r}; leave it out."
            )
        if not 0 < self.mask_share < 1:
            raise ValueError(f"mask_share={self.mask_share} is outside of (0, 1); use corruption=absorbing or uniform.")
        if self.corruption != "mask-replace" and self.mask_share != 0.9:
            raise ValueError(
                f"mask_share={self.mask_share} belongs to corruption=mask-replace, not {self.corruption}; leave it out."
            )
        if self.keep == "vq-diffusion" and self.mask_share != 0.9:
            raise ValueError(f"mask_share={self.mask_share}, but keep=vq-diffusion has masks of its own; leave it out.")

    @property
    def keep_options(self) -> dict[str, float]:
        """What `make_keep` takes beside the name."""
        return {} if self.power is None else {"power": self.power}

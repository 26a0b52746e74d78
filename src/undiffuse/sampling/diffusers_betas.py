"""Tables of noise levels from the `beta_*` options of diffusers' configs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.process.tables import TableSchedule, cosine_betas, table_from_betas

_TINY = 2.0**-24
_SAME = 1e-6  # of betas, which are known to nine digits, and of log-SNR


@dataclass(frozen=True, kw_only=True)
class Betas:
    """The options of a table.

    Args:
        kind: "linear", "scaled_linear", "squaredcos_cap_v2" or "sigmoid".
        first, last: Ends of the betas, where the kind has them.
        count: Number of entries.
        trained: The betas themselves, instead of all that; None for none.
        zero_snr: Whether the table is shifted and scaled to end in pure noise.
        tiny: Whether that last entry is then at most 2^-24 instead of 0, for solvers that divide by alpha.

    Raises:
        PlanError: An unknown kind.
    """

    kind: str = "linear"
    first: float = 1e-4
    last: float = 0.02
    count: int = 1000
    trained: tuple[float, ...] | None = None
    zero_snr: bool = False
    tiny: bool = False

    def __post_init__(self) -> None:
        known = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
        if self.kind not in known:
            raise PlanError(f"beta_schedule={self.kind!r} has no counterpart; known are {', '.join(known)}.")

    @classmethod
    def of(cls, schedule: TableSchedule) -> Betas:
        """Return the options that make a table: by name where it is one of those known, else its betas themselves."""
        abar = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
        count, betas = len(abar), 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
        if abar[-1] == 0:  # what they were before the table was scaled cannot be read off it
            ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
        else:
            ends = dict.fromkeys(("linear", "scaled_linear"), (_round(betas[0]), _round(betas[-1])))
        for kind, (first, last) in {**ends, "squaredcos_cap_v2": (cls.first, cls.last)}.items():
            made = cls(kind=kind, first=first, last=last, count=count, zero_snr=bool(abar[-1] == 0))
            if made.zero_snr:
                table = torch.tensor(made.schedule().alphas_cumprod, dtype=torch.float64)
                same = torch.isclose(torch.logit(table), torch.logit(abar), rtol=0, atol=_SAME)
            else:
                same = torch.isclose(made._betas(), betas, rtol=_SAME, atol=0)
            if bool(same.all()):
                return made
        return cls(count=count, trained=tuple(betas.tolist()))

    def schedule(self) -> TableSchedule:
        """Return the table."""
        table = table_from_betas(self._betas(), self.zero_snr)
        if self.zero_snr and self.tiny:
            # Theirs is 2^-24 even where the entry before is below it (4e-9 for linear betas), which is no schedule.
            last = min(_TINY, 0.5 * table.alphas_cumprod[-2])
            table = replace(table, alphas_cumprod=(*table.alphas_cumprod[:-1], last))
        return table

    def _betas(self) -> Tensor:
        if self.trained is not None:
            return torch.tensor(self.trained, dtype=torch.float64)
        if self.kind == "linear":
            return torch.linspace(self.first, self.last, self.count, dtype=torch.float64)
        if self.kind == "scaled_linear":
            return torch.linspace(self.first**0.5, self.last**0.5, self.count, dtype=torch.float64) ** 2
        if self.kind == "sigmoid":
            ramp = torch.sigmoid(torch.linspace(-6, 6, self.count, dtype=torch.float64))
            return ramp * (self.last - self.first) + self.first
        return cosine_betas(self.count)


def _round(beta: Tensor) -> float:
    return float(f"{float(beta):.9g}")

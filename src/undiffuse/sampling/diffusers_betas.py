"""Tables of noise levels from the `beta_*` options of diffusers' configs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.process.tables import TableSchedule, table_from_betas

_TINY = 2.0**-24
_HIGHEST = 0.999  # of a cosine beta, which is 1 at the end


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
        kept = [math.cos((i / self.count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(self.count + 1)]
        falls = [min(1 - after / before, _HIGHEST) for before, after in pairwise(kept)]
        return torch.tensor(falls, dtype=torch.float64)

r"""UniPC: a multistep predictor, and a corrector that costs nothing because it reuses the next step's answer.

The corrector changes the state after the denoiser has been asked at the predicted one, and the base of both rules
cancels in the difference. So "correct the state, then predict" is affine in the predicted state and in the means, with
one more mean remembered than the predictor has: the same loop serves it, and the last step is predictor only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.sampling.multistep import (
    Form,
    Lower,
    Multistep,
    Rows,
    exponential_moments,
    remembered,
    solve_weights,
    stack_rows,
    usable,
)
from undiffuse.sampling.solver import Columns
from undiffuse.sampling.steps import Steps


@dataclass(frozen=True, kw_only=True)
class UniPC(Multistep):
    r"""UniP of order p, corrected by UniC of order p: overall order p + 1 on grids even in half log-SNR.

    With y = -h (the noise form: h), nodes r_j along half log-SNR and d_j = (D_j - D) / r_j,

        x_s = (sigma_s / sigma_t) x - alpha_s expm1(y) D - alpha_s sum_j b_j d_j,    sum_j r_j^(i-1) b_j = i! c_i(y),

    over p - 1 older means (predictor), and also the new one at r = 1 (corrector). One mean, at p = 2 of the predictor
    and p = 1 of the corrector, takes b = B(y) / 2. A step from alpha = 0
    is not corrected. States seen by callbacks and trajectories are the predicted ones.

    Args:
        order: p, 1 to 3.
        variant: "bh1", B(y) = y, or "bh2", B(y) = expm1(y).
        form: "data", or "noise" (diffusers' predict_x0=False).
        corrector: Whether to correct; without, this is UniP of order p.
        simplified: Take B / 2 as above, as published; otherwise b = c_1, and bh1 and bh2 are one.
        lower_final: Give the last steps at most the order of the number of steps left, as published; "few": with fewer
            than 15 steps; None: then, and on grids that are not even in half log-SNR.

    Raises:
        ValueError: `order` out of range, an unknown variant or form.

    Source: Zhao et al. 2023, "UniPC", arXiv:2302.04867, algorithms 5 and 6.
    """

    grid: ClassVar[str] = "logsnr"
    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    form: Form = "data"
    corrector: bool = True
    simplified: bool = True
    lower_final: Lower = None

    def __post_init__(self) -> None:
        self.check_order()
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant={self.variant!r} is unknown; choose 'bh1' or 'bh2'.")

    @property
    def lowers_on_uneven(self) -> bool:
        """At every order."""
        return True

    def coefficients(self, steps: Steps) -> Columns:
        """The predictor's weights and, carried to the end of the step, those of the correction at its start."""
        first, older = self.first_order(steps), self.order - 1
        rows = self._prediction(steps, older) if older else ()
        if self.corrector:
            rows = _added(rows, self._correction(steps))
        return Columns(first.state, first.mean, rows, remembered=remembered(steps, self.form) if rows else None)

    def _prediction(self, steps: Steps, older: int) -> Rows:
        solve = self._solution(steps.h, steps.alpha_s, steps.sigma_s, older)
        nodes = self.nodes(steps, older)
        table = [solve(nodes[:q]) for q in range(1, older + 1)]
        return stack_rows(table, usable(steps, older, self.lowered(steps), left=-1))

    def _correction(self, steps: Steps) -> Rows:
        """What the corrector adds to the step before, by the newest mean, that step's own, and those it remembered."""
        own, *past = steps.past(self.order)
        before = steps.half_logsnr_t - own
        nodes, new = [(older - own) / before for older in past], torch.ones_like(before)
        solve = self._solution(before, steps.alpha_t, steps.sigma_t, self.order)
        carried = steps.sigma_s / steps.sigma_t if self.form == "data" else steps.alpha_s / steps.alpha_t
        minus = -carried
        table = []
        for q in range(self.order):
            *corrected, newest = solve([*nodes[:q], new])
            change = [c - p for c, p in zip(corrected, solve(nodes[:q]), strict=True)]
            # The differences of that step are from its own mean; ours are from the newest.
            table.append([minus * sum(change, start=newest), *(carried * c for c in change)])
        # The order of the step before is limited by one more step left than here.
        return stack_rows(table, usable(steps, self.order, self.lowered(steps), left=1))

    def _solution(self, h: Tensor, alpha: Tensor, sigma: Tensor, count: int) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return what gives the weights of up to `count` nodes in a step of length `h` to (alpha, sigma)."""
        y, scale = (-h, -alpha) if self.form == "data" else (h, -sigma)
        half = scale * 0.5 * (y if self.variant == "bh1" else torch.expm1(y))
        exact = count > 1 or not self.simplified
        moments = [scale * c for c in exponential_moments(y, count)] if exact else []

        def solve(nodes: list[Tensor]) -> list[Tensor]:
            if len(nodes) == 1 and self.simplified:
                return [half / nodes[0]]
            return solve_weights(nodes, moments[: len(nodes)])

        return solve


def _added(prediction: Rows, correction: Rows) -> Rows:
    """Add the weights of both for each number of remembered means; the prediction knows one fewer."""
    if not prediction:
        return correction
    longest = [*prediction, prediction[-1]]
    return tuple(
        tuple(map(torch.add, row, more)) + more[len(row) :] for row, more in zip(longest, correction, strict=True)
    )

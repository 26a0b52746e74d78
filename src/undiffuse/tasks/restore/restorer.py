"""`Restorer`: a method that answers y = A(x) + noise with draws of x. It holds options, never a model and no state.

A restorer is asked about one chunk of rows at a time, as a `Problem`. Rows are images times samples: the samples of one
image follow each other. Everything is in model units (pictures in [-1, 1]); `restore` does the bookkeeping around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.noise import NoiseSource

if TYPE_CHECKING:
    from undiffuse.codecs.codec import Codec
    from undiffuse.operators.base import Operator
    from undiffuse.operators.noise import NoiseModel


NEEDS: dict[str, str] = {
    "linear": "a linear operator, with an adjoint",
    "svd": "an operator whose singular values are known",
    "pinv": "an operator with a pseudo-inverse, or an approximate inverse",
    "mask": "a mask",
    "slices": "a volume of two or more slices (Z, C, H, W)",
    "differentiable": "an operator that can be differentiated",
    "kernel": "a blur by a kernel",
    "codec": "a latent model",
    "linear-pixels": "a linear operator on the pictures",
}
"""What methods may need, in words."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows to restore, R of them: those of image b are `samples` rows from b * samples on.

    Args:
        denoiser: The prior, on states: data in model units, or latents where there is a codec.
        y: Measurements (R, *operator.out_shape), model units.
        operator: A, on data in model units (with a codec: on decoded latents).
        noise_std: Standard deviation of the measurement's noise, model units; 0 for none.
        shape: Shape of one state.
        noise_model: The law of the noise where it is not Gaussian of `noise_std`.
        codec: Turns states into data; None where they are data.
        samples: Rows per image.
        data_var: Variance of one element of the data, model units.
        cond: Conditions of the prior, a row each.
        t_start: Begin at this time, from A^+ y with noise added (SDEdit, CCDF); 1: from pure noise.
        dtype: Of the state.
        x_init: A first estimate (R, *shape), states, for methods that improve one; None: they make their own.
        progress: Called after each evaluation.
    """

    denoiser: Denoiser
    y: Tensor
    operator: Operator
    noise_std: float
    shape: tuple[int, ...]
    noise_model: NoiseModel | None = None
    codec: Codec | None = None
    samples: int = 1
    data_var: float = 1.0
    cond: dict[str, Tensor] = field(default_factory=dict)
    t_start: float = 1.0
    dtype: torch.dtype = torch.float32
    x_init: Tensor | None = None
    progress: Callable[[], None] | None = None

    @property
    def rows(self) -> int:
        """R."""
        return len(self.y)


@dataclass(frozen=True)
class Solution:
    """What a restorer answers for a `Problem`.

    Args:
        x: States (R, *shape).
        nfe: Evaluations of the denoiser per row.
        nfe_grad: How many of them were differentiated.
        trace: Figures on the way by name, each (steps,) or (steps, R); empty where nothing was kept.
        learned: What was found of the degradation beside x, by name, each (R, ...): the kernel of a blind restoration.
    """

    x: Tensor
    nfe: int
    nfe_grad: int = 0
    trace: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)


class Restorer(ABC):
    """Base of all restoration methods; subclasses are frozen dataclasses of their options.

    Attributes:
        needs: What the operator must offer, of `NEEDS`.
        noise: Whether the method knows about noise in y; others reproduce it.
        gradient: Whether it differentiates through the denoiser.
        couples: Whether the rows of one image see each other, so that they must come in one chunk.
        any_noise: Whether it uses the likelihood of noise that is not Gaussian.
        uses_data_var: Whether it wants the data's variance measured where that is not known.
        experimental: Whether it is new and little tested.
        default_steps: Steps where the user does not say.
    """

    needs: ClassVar[tuple[str, ...]] = ("linear",)
    noise: ClassVar[bool] = True
    gradient: ClassVar[bool] = False
    couples: ClassVar[bool] = False
    any_noise: ClassVar[bool] = False
    uses_data_var: ClassVar[bool] = False
    experimental: ClassVar[bool] = False
    default_steps: ClassVar[int] = 100

    @abstractmethod
    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Draw a row of x for each row of y.

        Args:
            problem: Rows, checked: shapes fit and the operator has what `needs` says.
            noise: Its items are the rows.
            steps: At least 1.
        """

    def check(self, problem: Problem) -> list[str]:
        """Return warnings for people about this problem; errors are raised.

        Raises:
            ValueError: The method cannot solve it; the message says why and what to do.
        """
        return []

    def explained(self, operator: Operator, x: Tensor, learned: dict[str, Tensor]) -> Tensor:
        """Return the measurement that x (B, *) would have without noise, with what was `learned` of the operator."""
        return operator(x)


@dataclass(frozen=True)
class RestoreResult:
    """What `restore` returns. B images, K samples of each; model units (`spec.from_model` gives data units).

    Args:
        samples: (K, B, *shape).
        mean: Mean of the samples, (B, *shape): the estimate with the least squared error.
        std: Their standard deviation (B, *shape), 0 where K = 1; the uncertainty map.
        residual_rms: Root mean square of y - A(sample) per sample, (K, B), over what was measured. Near `noise_std`
            where noise was accounted for.
        noise_std: Of the measurement, model units.
        nfe: Evaluations of the denoiser per sample.
        nfe_grad: How many of them were differentiated.
        method: Name of the restorer.
        why: Why it was chosen, where the choice was left to us; else "".
        warnings: What people should know about this answer.
        trace: Figures on the way by name; empty where none were kept.
        learned: What was found of the degradation beside x, by name, each (K, B, ...): "kernel" (h, w) of blind-dps,
            "factor" and "offset" of gdp with light; empty where the operator was known.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor
    residual_rms: Tensor
    noise_std: float
    nfe: int
    nfe_grad: int = 0
    method: str = ""
    why: str = ""
    warnings: tuple[str, ...] = ()
    trace: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the figures, without pictures, as plain JSON types."""
        return {
            "method": self.method,
            "why": self.why,
            "images": int(self.samples.shape[1]),
            "samples": int(self.samples.shape[0]),
            "noise_std": self.noise_std,
            "residual_rms": [float(r) for r in self.residual_rms.mean(0)],
            "mean_std": [float(s) for s in self.std.flatten(1).mean(1)],
            "nfe": self.nfe,
            "nfe_grad": self.nfe_grad,
            "warnings": list(self.warnings),
            "learned": {
                name: value.mean(0).flatten().tolist()
                for name, value in self.learned.items()
                if value[0, 0].numel() == 1  # kernels and the like are files
            },
        }

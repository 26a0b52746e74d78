"""What a model brings to restoration: a denoiser on states, units, perhaps a codec, and the variance of its data."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from undiffuse.codecs.codec import Codec
from undiffuse.denoisers.base import Denoiser, ExactDenoiser
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.models.guided import Wrap, apply_wraps
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.loop import sample
from undiffuse.spec import DataSpec

_UNKNOWN_VARIANCE = 1 / 3  # of numbers uniform in [-1, 1]
_VARIANCES: weakref.WeakKeyDictionary[Denoiser, float] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Prior:
    """A denoiser of continuous data with what is known about them.

    Args:
        denoiser: On states.
        shape: Of one state as the model was trained.
        data_shape: Of one item of data; differs for latents.
        spec: Units of the data; None for a bare denoiser, whose data are states.
        codec: Of a latent model.
        bare: The denoiser without the wrappers around it, which may ask for conditions; None: there are none.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    spec: DataSpec | None = None
    codec: Codec | None = None
    bare: Denoiser | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = (*self.denoiser.parameters(), *self.denoiser.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """What states are computed in: float64 for oracles."""
        return torch.float64 if isinstance(self.denoiser, ExactDenoiser) else torch.float32

    def data_var(self, measure: bool) -> float:
        """Return the variance of one element of a state.

        Exact for analytic priors. Else, with `measure`, that of 16 quick samples, once per model; without, 1/3.
        """
        denoiser = self.bare or self.denoiser
        if isinstance(denoiser, MixtureDenoiser):
            return float(denoiser.moments()[1].diagonal().mean())
        if self.codec is not None:
            return 1.0  # latents are scaled to unit variance
        if not measure:
            return _UNKNOWN_VARIANCE
        if denoiser not in _VARIANCES:
            process: Any = denoiser.process
            grid = make_grid(process.schedule, 8, "logsnr")
            noise = KeyedNoise(0, range(16), self.device)
            shape = self.shape[len(self.shape) - len(self.data_shape) :]  # of a volume: one slice
            drawn = sample(denoiser, noise=noise, shape=shape, solver=DDIM(), grid=grid).x
            _VARIANCES[denoiser] = max(float(drawn.double().var(0).mean()), 1e-4)
        return _VARIANCES[denoiser]


def prior_of(model: Any, in_shape: tuple[int, ...], wrap: Wrap | Sequence[Wrap] | None = None) -> Prior:
    """Return what a model or a bare denoiser brings.

    Args:
        model: A `Model` or a `Denoiser`.
        in_shape: What the operator takes; the shape of a bare denoiser's data.
        wrap: Wrappers around the denoiser, the first innermost.

    Raises:
        ValueError: The noise is paired with data.
        TypeError: Something else than a model, or the data are tokens.
    """
    bare = model.denoiser if isinstance(model, Model) else model
    if not isinstance(bare, Denoiser):
        raise TypeError(f"restore needs a Model or a Denoiser, not {type(model).__name__}; load one by undiffuse.load.")
    if not isinstance(bare.process, GaussianProcess):
        raise TypeError(
            "restore works on continuous data and this model's data are tokens, for which the only measurement is "
            "that some are known: use `undiffuse inpaint`, or Known tokens in sample()."
        )
    if bare.process.source != "gaussian":
        raise ValueError(f"restore needs a Gaussian source; this process has source={bare.process.source!r}.")
    bare.eval()
    denoiser = apply_wraps(bare, wrap)
    if not isinstance(model, Model):
        return Prior(denoiser, in_shape, in_shape, bare.spec, bare=bare)
    return Prior(denoiser, model.state_spec.shape, model.spec.shape, model.spec, model.codec, bare)

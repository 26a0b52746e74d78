"""What is analysed: a model or a bare denoiser, seen as a denoiser with a way from data units to its states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.models.conditions import Fitted, fit_conditions
from undiffuse.models.model import Model
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.spec import DataSpec

_INTEGER_TOLERANCE = 1e-3  # of a level: float32 model units come back to integers within it
Wrap = Callable[[Denoiser], Denoiser]


@dataclass(frozen=True)
class Asked:
    """A denoiser that is asked about given data, and the model it belongs to, if any.

    Args:
        denoiser: Asked; in evaluation mode.
        model: Knows units, codec and conditions; None where only a denoiser was given: then data are states.
    """

    denoiser: Denoiser
    model: Model | None = None

    @property
    def spec(self) -> DataSpec | None:
        """Kind, shape and units of the data."""
        return self.denoiser.spec if self.model is None else self.model.spec

    @property
    def is_latent(self) -> bool:
        """Whether the denoiser works on latents."""
        return self.model is not None and self.model.codec is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = (*self.denoiser.parameters(), *self.denoiser.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def check_shape(self, data: Tensor) -> None:
        """Refuse what is no batch of the model's items.

        Raises:
            ValueError: Another shape, or no items.
        """
        if data.ndim < 2 or len(data) == 0:
            raise ValueError(f"the data have shape {tuple(data.shape)}; expected items in a batch, (n, ...), n >= 1.")
        expected = None if self.spec is None or self.model is None else self.spec.shape
        if expected is not None and tuple(data.shape[1:]) != tuple(expected):
            raise ValueError(f"the data have items of shape {tuple(data.shape[1:])}; the model's are {expected}.")

    def check(self, data: Tensor) -> Tensor:
        """Return data that fit, as floats.

        Raises:
            ValueError: Another shape, no items, or numbers that are not finite.
        """
        self.check_shape(data)
        data = data if data.is_floating_point() else data.float()
        if not bool(data.isfinite().all()):
            bad = int((~data.isfinite()).flatten(1).any(1).nonzero()[0, 0])
            raise ValueError(f"item {bad} of the data is not finite; leave it out or mend it.")
        return data

    @torch.no_grad()
    def encode(self, data: Tensor) -> Tensor:
        """Map data units (n, *) to states (n, *), on the device of the weights."""
        return data.to(self.device) if self.model is None else self.model.encode(data)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Map states (n, *) to data units (n, *)."""
        return x if self.model is None else self.model.decode(x)

    def conditions(self, cond: dict[str, Any] | None, n: int) -> Fitted:
        """Return conditions with a row per item."""
        if self.model is not None:
            return fit_conditions(cond, n, self.model.state_spec, self.device, self.model.codec)
        rows = {name: torch.as_tensor(value, device=self.device) for name, value in (cond or {}).items()}
        for name, value in rows.items():
            if value.ndim == 0 or len(value) != n:
                raise ValueError(f"condition {name!r} has shape {tuple(value.shape)}; expected one row per item ({n}).")
        return Fitted(rows)


@dataclass(frozen=True)
class Subject(Asked):
    """One whose process is Gaussian."""

    @property
    def process(self) -> GaussianProcess:
        """Its process."""
        return cast(GaussianProcess, self.denoiser.process)

    def levels(self, data: Tensor) -> tuple[float, float] | None:
        """Return the lowest and highest integer level, where the data are integers with a range; else None."""
        if self.spec is None or self.spec.range is None or self.is_latent or self.model is None:
            return None
        low, high = self.spec.range
        whole = float(low).is_integer() and float(high).is_integer()
        near = bool(((data - data.round()).abs() < _INTEGER_TOLERANCE).all())
        return (low, high) if whole and near and bool((data >= low - 0.5).all() & (data <= high + 0.5).all()) else None

    def log_volume(self) -> float:
        """Return log |d state / d data| per item in nats: what a density gains on the way to data units."""
        if self.model is None or self.is_latent:
            return 0.0
        spec = self.model.spec
        size = math.prod(spec.shape)
        if spec.range is not None:
            return size * math.log(2.0 / (spec.range[1] - spec.range[0]))
        return -sum(math.log(std) for std in spec.std) * size / max(len(spec.std), 1)


def subject_of(model: Any, wrap: Wrap | None = None, *, task: str, allow_unnormalised: bool = True) -> Subject:
    """Return what can be analysed of a model, or say why nothing can.

    Args:
        model: A `Model` or a `Denoiser`.
        wrap: Applied to the denoiser.
        task: What is asked for, for messages: "a likelihood".
        allow_unnormalised: Take denoisers whose answers belong to no density.

    Raises:
        ValueError: A flow map, tokens, a source that is not Gaussian, or answers that belong to no density.
        TypeError: Something else than a model.
    """
    asked = asked_of(model, wrap, task=task)
    denoiser = asked.denoiser
    if not isinstance(denoiser.process, GaussianProcess):
        raise ValueError(
            f"{task} by the probability-flow ODE needs continuous data and this model is categorical; use "
            "method='elbo', or model.elbo(tokens)."
        )
    if denoiser.process.source != "gaussian":
        raise ValueError(f"{task} needs a Gaussian source; this process has source={denoiser.process.source!r}.")
    if not denoiser.normalised and not allow_unnormalised:
        raise ValueError(
            f"{type(denoiser).__name__} changes the denoiser's answers, so they are those of no density; give the "
            "bare denoiser, or allow_unnormalised=True for a figure that is no likelihood."
        )
    return Subject(denoiser, asked.model)


def asked_of(model: Any, wrap: Wrap | None = None, *, task: str) -> Asked:
    """Return the denoiser of a model, continuous or of tokens, in evaluation mode.

    Args:
        model, wrap, task: As in `subject_of`.

    Raises:
        ValueError: A flow map.
        TypeError: Something else than a model.
    """
    bare = model.module if isinstance(model, Model) else model
    if isinstance(bare, FlowMap):
        inside = " (in Python diagonal() of the map is a denoiser too)" if bare.spans == "any" else ""
        raise ValueError(
            f"{task} needs a denoiser and this is a flow map, whose jumps have no density; name the model it was "
            f"distilled from{inside}."
        )
    if not isinstance(bare, Denoiser):
        raise TypeError(
            f"{task} needs a Model or a Denoiser, not {type(model).__name__}; load one with undiffuse.load."
        )
    denoiser = bare if wrap is None else wrap(bare)
    denoiser.eval()
    return Asked(denoiser, model if isinstance(model, Model) else None)

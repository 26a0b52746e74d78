"""`FeatureEncoder`: noise an item a little, run the network once, take what inner blocks return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from undiffuse.data.memory import require_memory
from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import DataError
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.models.conditions import Fitted, fit_conditions
from undiffuse.models.model import Model
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.tasks.features.layers import ALL, AUTO, Layers, Reader, choose_layers, describe
from undiffuse.words import human_bytes

DEFAULT_TIME = 0.1
_STREAM = "probe"
_POOLS = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
_FLOAT = 4  # bytes
Times = Time | Sequence[float]


class FeatureEncoder:
    """Frozen features of a model: maps of chosen blocks at chosen times, averaged over draws of noise.

    x_t = alpha x_0 + sigma eps, or tokens corrupted by their own process; one call of the network for each time and
    draw, ended behind the last block that is wanted. With a codec, x_0 is encoded first. The noise is keyed by (seed,
    number of the item, draw): features do not depend on the batch, and draws = n is the mean of the single draws.

    Args:
        model: A `Model`; or a `Denoiser`, whose items are states.
        layers: A block, several, "all", or "auto" for one at 0.7 of the depth; see `layers_of`.
        t: Time in [0, 1], or several, whose features stand side by side; or a tensor () or (1, F).
        pool: Average maps to `pool` cells on every axis, at most as many as there are; None leaves them as they are.
        draws: Draws of noise to average over.
        seed: Of the noise.
        cond: Conditions for all items; none by default, which is every condition's null.
        batch_size: Items computed at once.
        inputs: Read what goes into blocks instead of what comes out of them.
        max_bytes: Most memory that the result may take; None: what is free.

    Raises:
        ValueError: Values out of range, or an unknown layer; the message lists names with shapes.

    Source: Mukhopadhyay et al. 2023, arXiv:2307.08702 and 2311.17921, section 3.
    """

    def __init__(
        self,
        model: Model | Denoiser,
        layers: Layers = AUTO,
        t: Times = DEFAULT_TIME,
        *,
        pool: int | None = None,
        draws: int = 1,
        seed: int = 0,
        cond: dict[str, Any] | None = None,
        batch_size: int = 64,
        inputs: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        _check(pool, draws, batch_size)
        self.model = model if isinstance(model, Model) else None
        if not isinstance(model, Model | Denoiser):
            raise TypeError(f"features need a Model or a Denoiser, not {type(model).__name__}; see undiffuse.load.")
        self.denoiser = model.denoiser if isinstance(model, Model) else model
        self.denoiser.eval()
        self.times = _read_times(t)
        self.pool, self.draws, self.seed, self.cond = pool, draws, seed, cond
        self.batch_size, self.max_bytes = batch_size, max_bytes
        self._reader = Reader(self.denoiser, self.state_spec, inputs=inputs)
        self._shapes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
        self.names = choose_layers(layers, self._reader.names, self.shapes)
        if layers == ALL and self.state_spec is not None:
            self.names = tuple(self.shapes())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = (*self.denoiser.parameters(), *self.denoiser.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def state_spec(self) -> Any:
        """What the denoiser works on, where known."""
        return self.denoiser.spec if self.model is None else self.model.state_spec

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """The chosen layers: name -> shape (C, *) of the map of an item of the model's own size."""
        shapes = self.shapes()
        return {name: shapes[name] for name in self.names}

    @property
    def settings(self) -> dict[str, Any]:
        """What the features depend on beside the model: arguments that make this encoder again."""
        times = list(self.times) if len(self.times) > 1 else self.times[0]
        named = {"layers": list(self.names), "t": times, "pool": self.pool, "draws": self.draws}
        return named | {"seed": self.seed, "cond": self.cond, "inputs": self._reader.inputs}

    @property
    def keys(self) -> list[str]:
        """Names of the maps: of the layers, with the time behind it ("mid@0.1") where there are several."""
        return [self._key(name, place) for place in range(len(self.times)) for name in self.names]

    @torch.no_grad()
    def shapes(self, x: Tensor | None = None, cond: dict[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shapes (C, *) of the maps of all layers for an item `x` (1, *), or one of the model's own size.

        Args:
            x: An item in model units; None: one of the model's own size.
            cond: Its conditions, in place of those for all.
        """
        state = self._example() if x is None else self._encode(x[:1])
        size = tuple(state.shape)
        if size not in self._shapes:
            rows = self._conditions(cond, 1) or None
            self._shapes[size] = self._reader.shapes(state, self.times[0], self.denoiser.embed(rows, 1))
        return self._shapes[size]

    def counts(self, x: Tensor | None = None) -> dict[str, int]:
        """Return how many features each map has for an item like `x`: name of the map -> number, in order."""
        shapes = self.shapes(x)
        sizes = [prod(_pooled_shape(shapes[name], self.pool)) for name in self.names]
        return dict(zip(self.keys, sizes * len(self.times), strict=True))

    def features(self, x: Tensor | None = None) -> int:
        """Return how many features F `__call__` gives for an item like `x`."""
        return sum(self.counts(x).values())

    def __call__(
        self,
        x: Tensor,
        *,
        index: Tensor | None = None,
        cond: dict[str, Any] | None = None,
        listener: Listener = silent,
    ) -> Tensor:
        """Return pooled, flattened features float32 (B, F) on the CPU: layers within times, each C x cells.

        Arguments and errors as for `maps`.
        """
        found = self._run(x, index, cond, (self.pool,), listener)
        return torch.cat([part.flatten(1) for part in found.values()], dim=1)

    def by_pool(
        self, x: Tensor, pools: Sequence[int | None], *, index: Tensor | None = None, listener: Listener = silent
    ) -> dict[tuple[str, int | None], Tensor]:
        """Return features (B, F) of each map under several poolings at the cost of one: (name of the map, pool) -> .

        Arguments and errors as for `maps`.
        """
        for pool in pools:
            _check(pool, self.draws, self.batch_size)
        found = self._run(x, index, None, pools, listener)
        return {key: value.flatten(1) for key, value in found.items()}

    def maps(
        self,
        x: Tensor,
        *,
        index: Tensor | None = None,
        cond: dict[str, Any] | None = None,
        pooled: bool = False,
        listener: Listener = silent,
    ) -> dict[str, Tensor]:
        """Return maps float32 by name, on the CPU: (B, C, h, w), (B, C, L), (B, C, F, h, w), vectors as (B, C, 1).

        Args:
            x: Items in model units (B, *), tokens int64 (B, L).
            index: Numbers of the items, which key their noise; None counts from 0.
            cond: Conditions of these items, in place of those for all.
            pooled: Pool the maps.
            listener: Hears about progress.

        Raises:
            ValueError: Items that do not fit the model, that are not finite, or conditions that do not fit.
            DataError: The result would take more memory than there is; the message says how much.
        """
        found = self._run(x, index, cond, (self.pool if pooled else None,), listener)
        return {key: value for (key, _), value in found.items()}

    @torch.no_grad()
    def _run(
        self,
        x: Tensor,
        index: Tensor | None,
        cond: dict[str, Any] | None,
        pools: Sequence[int | None],
        listener: Listener,
    ) -> dict[tuple[str, int | None], Tensor]:
        self._check_items(x)
        numbers = torch.arange(len(x)) if index is None else torch.as_tensor(index)
        if numbers.shape != (len(x),):
            raise ValueError(f"index has shape {tuple(numbers.shape)}; expected a number for each of {len(x)} items.")
        rows = self._conditions(cond, len(x))
        shapes = self.shapes(x, rows.rows(0, 1))
        self._check_reached(shapes)
        self._check_memory(len(x), shapes, pools)
        parts: list[dict[tuple[str, int | None], Tensor]] = []
        listener(Started("features", len(x), "item"))
        for low in range(0, len(x), self.batch_size):
            high = min(low + self.batch_size, len(x))
            embedded = self.denoiser.embed(rows.rows(low, high) or None, high - low)
            parts.append(self._batch(self._encode(x[low:high]), numbers[low:high], embedded, pools))
            listener(Advanced("features", high))
        listener(Finished("features"))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _batch(
        self, x0: Tensor, index: Tensor, embedded: Embedded | None, pools: Sequence[int | None]
    ) -> dict[tuple[str, int | None], Tensor]:
        """Return the maps of a few states (B, *), pooled as they come, and their mean over the draws."""
        noise = KeyedNoise(self.seed, index, x0.device)
        total: dict[tuple[str, int | None], Tensor] = {}
        for draw in range(self.draws):
            drawn = _draw(self.denoiser.process, noise, draw, x0)
            for place, time in enumerate(self.times):
                x_t = self.denoiser.process.corrupt(x0, time, drawn)
                for name, value in self._reader.read(x_t, time, embedded, self.names).items():
                    for pool in pools:
                        key, part = (self._key(name, place), pool), value if pool is None else pool_map(value, pool)
                        total[key] = part if key not in total else total[key] + part
        return {key: (value / self.draws).cpu() for key, value in total.items()}

    def _key(self, name: str, place: int) -> str:
        return name if len(self.times) == 1 else f"{name}@{write_time(self.times[place])}"

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        """Map items in model units (B, *) to states, on the device of the weights."""
        x = x.to(self.device)
        return x if self.model is None or self.model.codec is None else self.model.codec.encode(x)

    def _conditions(self, cond: dict[str, Any] | None, n: int) -> Fitted:
        """Return conditions with a row per item."""
        cond = self.cond if cond is None else cond
        if self.model is not None:
            return fit_conditions(cond, n, self.model.state_spec, self.device, self.model.codec)
        rows = {name: torch.as_tensor(value, device=self.device) for name, value in (cond or {}).items()}
        return Fitted({name: value.expand(n, *value.shape[1:]) for name, value in rows.items()})

    def _example(self) -> Tensor:
        """Return one state of the model's own size, all zero."""
        spec = self.state_spec
        if spec is None:
            raise ValueError("this denoiser does not say what its items are; give one as x, (1, ...) in model units.")
        return torch.zeros(1, *spec.shape, dtype=torch.int64 if spec.is_discrete else torch.float32, device=self.device)

    def _check_items(self, x: Tensor) -> None:
        spec = self.denoiser.spec if self.model is None else self.model.spec
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0:
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise ValueError(f"the items have {given}; expected a tensor (n, ...) in model units, n at least 1.")
        if spec is not None:
            axis = spec.channel_axis
            same = x.ndim == len(spec.shape) + 1 and (spec.is_discrete or x.shape[axis + 1] == spec.shape[axis])
            if not same:
                raise ValueError(
                    f"the items have shape {describe(x.shape[1:])}; this model reads {spec.kind} items of "
                    f"{describe(spec.shape)}: other channels or axes do not fit."
                )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            bad = int((~x.isfinite()).flatten(1).any(1).nonzero()[0, 0])
            raise ValueError(f"item {bad} is not finite; leave it out or mend it.")

    def _check_reached(self, shapes: Mapping[str, Any]) -> None:
        """Refuse layers that a call does not reach, or that hold no numbers."""
        missed = [name for name in self.names if name not in shapes]
        if missed:
            raise ValueError(
                f"layer {missed[0]!r} gives no floats in a call of this network; the layers that do are "
                f"{', '.join(shapes)}."
            )

    def _check_memory(self, items: int, shapes: Mapping[str, Sequence[int]], pools: Sequence[int | None]) -> None:
        """Refuse what would not fit, before anything is computed."""
        sizes = [prod(_pooled_shape(shapes[name], pool)) for name in self.names for pool in pools]
        needed = items * len(self.times) * sum(sizes) * _FLOAT
        what, remedy = f"{items} items of {len(self.keys)} maps", "use pool=1 or 2, fewer layers, or fewer items"
        if self.max_bytes is None:
            require_memory(2 * needed, f"the features of {what}", remedy)  # in batches, and joined
        elif needed > self.max_bytes:
            raise DataError(
                f"the features of {what} need {human_bytes(needed)}, above max_bytes={human_bytes(self.max_bytes)}; "
                f"{remedy}."
            )


def pool_map(value: Tensor, cells: int) -> Tensor:
    """Average a map (B, C, *) to `cells` on every axis, at most as many as there are."""
    sizes = _pooled_shape(value.shape[1:], cells)[1:]
    return _POOLS[value.ndim - 2](value, sizes)  # type: ignore[arg-type]


def _pooled_shape(shape: Sequence[int], cells: int | None) -> tuple[int, ...]:
    return tuple(shape) if cells is None else (shape[0], *(min(cells, size) for size in shape[1:]))


def _draw(process: GaussianProcess | CategoricalProcess, noise: KeyedNoise, step: int, x0: Tensor) -> Tensor:
    """Return what `process.corrupt` takes, for states (B, *)."""
    shape = tuple(x0.shape[1:])
    if isinstance(process, CategoricalProcess):
        return noise.uniform(_STREAM, step, shape)
    return noise.normal(_STREAM, step, shape, x0.dtype)


def _read_times(t: Times) -> tuple[Time, ...]:
    """Return the times one after the other.

    Raises:
        ValueError: None, one outside [0, 1], or a tensor with a row for each item.
    """
    if isinstance(t, Tensor) and (t.ndim == 0 or (t.ndim > 1 and len(t) == 1)):
        times: tuple[Time, ...] = (t,)
    elif isinstance(t, Tensor):
        raise ValueError(f"t has shape {tuple(t.shape)}; give a number, several in a list, or a tensor () or (1, F).")
    else:
        times = tuple(float(time) for time in t) if isinstance(t, Sequence) else (float(t),)
    flat = [value for time in times for value in torch.as_tensor(time).flatten().tolist()]
    if not flat or not all(0 <= value <= 1 for value in flat):
        raise ValueError(
            f"t={t} must be in [0, 1]; 0 is clean data and 1 is noise. Good features come from 0.01 to 0.3."
        )
    if len(set(flat)) < len(times) and len(times) > 1:
        raise ValueError(f"t={t} names a time twice.")
    return times


def write_time(t: Time) -> str:
    """Return a time as names of maps have it; of a tensor the first."""
    return f"{float(torch.as_tensor(t).flatten()[0]):g}"


def _check(pool: int | None, draws: int, batch_size: int) -> None:
    check_counts(pool=pool, draws=draws, batch_size=batch_size)

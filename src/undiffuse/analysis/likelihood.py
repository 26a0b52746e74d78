"""`log_likelihood`: how likely data are under a model, with error bars, in the units of the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.gaussian_bound import Ends, denoising_bound, stratified_error
from undiffuse.analysis.items import Chosen, choose_items
from undiffuse.analysis.options import AUTO_LIMIT, EXACT_LIMIT, LikelihoodOptions
from undiffuse.analysis.probability_flow import Adaptive, LogProb, flow_log_prob, rademacher
from undiffuse.analysis.results import Likelihood
from undiffuse.analysis.subject import Subject, Wrap, subject_of
from undiffuse.analysis.tokens import token_likelihood
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import make_grid

_TASK = "likelihood"


def log_likelihood(
    model: Any,
    data: Any,
    *,
    n: int | None = None,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
    conditional: bool = False,
    prior: LogProb | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    listener: Listener = silent,
    **options: Any,
) -> Likelihood:
    """Return log p of items, in nats, with standard errors and bits per dimension.

    Of continuous data by the probability-flow ODE, or as an evidence bound; of tokens as the evidence bound. Integers
    with a range get uniform noise of one level, centred, so that the result bounds the log-probability of the integers.
    Of a model with a codec it is the likelihood of the latents, not of the data. What t_min, noise and bound mean for
    the figures: docs/how-to/likelihoods.md.

    Args:
        model: A `Model`; or a `Denoiser`, whose data are states in model units.
        data: Items in data units (n, *shape), or a data set.
        n: How many: the first rows, or items of the data set chosen by the seed; None: all.
        seed: Of probes, noise, and the choice. Item i draws the same whatever the batch.
        cond: Conditions, as in `Model.sample`.
        conditional: Take the conditions that come with the data set.
        prior: log p at the top of the path, called with the state and the time; None: that of N(0, sigma^2 I).
        wrap: Applied to the denoiser; see `allow_unnormalised`.
        dtype: Of the states; None: float64 for data in float64 under a bare denoiser, else float32.
        listener: Hears about progress.
        options: See `LikelihoodOptions`: method, divergence, probes, steps, integrator, t_min, draws, levels, ...

    Raises:
        ValueError: Options out of range, data or conditions that do not fit, an exact divergence of too many elements,
            or a model that has no likelihood: a flow map, guided or wrapped denoisers.
        UndiffuseError: The network's answers are not finite.
    """
    try:
        chosen = LikelihoodOptions(**options)
    except TypeError as error:
        raise ValueError(f"unknown option of log_likelihood: {error}.") from error
    if torch.is_inference_mode_enabled():
        raise ValueError("likelihoods differentiate the network, which inference mode forbids; use torch.no_grad().")
    items = choose_items(data, n, seed)
    if conditional:
        if cond is not None or not items.cond:
            raise ValueError("conditional=True takes the data set's conditions; there are none, or cond is given too.")
        cond = items.cond
    process = getattr(model, "process", None)
    if isinstance(process, CategoricalProcess) and chosen.method != "ode":
        return token_likelihood(model, items, chosen, seed, cond, listener)
    subject = subject_of(model, wrap, task="a likelihood", allow_unnormalised=chosen.allow_unnormalised)
    return _Run(subject, items, chosen, seed, cond, prior, dtype, listener).result()


class _Run:
    """One computation: data made ready, and batches of it gone through."""

    def __init__(
        self,
        subject: Subject,
        items: Chosen,
        options: LikelihoodOptions,
        seed: int,
        cond: dict[str, Any] | None,
        prior: LogProb | None,
        dtype: torch.dtype | None,
        listener: Listener,
    ) -> None:
        self.subject, self.items, self.options, self.seed, self.prior = subject, items, options, seed, prior
        self.listener = listener
        self.data = subject.check(items.data)
        self.cond = subject.conditions(cond, len(self.data))
        keep = self.data.dtype == torch.float64 and subject.model is None
        self.dtype = dtype or (torch.float64 if keep else torch.float32)
        schedule = subject.process.schedule
        self.t_min = schedule.t_min if options.t_min is None else options.t_min
        self.t_max = schedule.t_max
        if not schedule.t_min <= self.t_min < self.t_max:
            raise ValueError(
                f"t_min={self.t_min} must lie from {schedule.t_min}, the smallest time of this schedule, to below "
                f"{self.t_max}."
            )
        self.levels = subject.levels(self.data)
        self.is_bound = options.method == "elbo"
        wanted = self.levels is not None if options.dequantise is None else options.dequantise
        if wanted and subject.is_latent:
            raise ValueError("dequantise=True adds noise of one level to data, and this likelihood is of latents.")
        if options.dequantise and self.levels is None:
            raise ValueError("dequantise=True needs data that are integers within the range of the model's data spec.")
        # The bound has a decoder for integers, which it leaves for noise only where that is asked for.
        self.dequantised = wanted and not (self.is_bound and options.dequantise is None)
        self.dims = math.prod(self._states(slice(0, 1)).shape[1:])

    def result(self) -> Likelihood:
        """Go through all batches."""
        self.listener(Started(_TASK, len(self.data), "item"))
        parts = list(self._bound() if self.is_bound else self._flow())
        self.listener(Finished(_TASK))
        samples = torch.cat([log_p for log_p, _ in parts]).cpu()  # (n, P): probes or draws
        exact = samples.shape[1] == 1 and not self.is_bound and self.divergence == "exact"
        count = samples.shape[1]
        if self.is_bound:
            error = stratified_error(samples.T)
        else:
            error = samples.std(1) / count**0.5 if count > 1 else torch.full_like(samples[:, 0], math.nan)
        log_p = samples.mean(1) + (0.0 if self._is_discrete_bound else self.subject.log_volume())
        nfe = max(calls for _, calls in parts)
        found = Likelihood(
            log_p=log_p,
            noise_error=None if exact else error,
            dims=self.dims,
            method="elbo" if self.is_bound else "ode",
            units=self._units,
            t_min=self.t_min,
            t_max=self.t_max,
            dequantised=self.dequantised,
            nfe=nfe,
            passes=0 if self.is_bound else nfe * (self.dims if self.divergence == "exact" else count),
            index=self.items.index,
            settings=self._settings,
            notes=self._notes(),
        )
        _warn_of_impossible(found)
        return found

    # -- the two methods, batch by batch ------------------------------------------------------------

    def _flow(self) -> Iterator[tuple[Tensor, int]]:
        o, divergence, path = self.options, self.divergence, self._path
        adaptive = None if o.integrator == "heun" else Adaptive(o.rtol, o.atol, o.max_steps)
        for number, (rows, noise) in enumerate(self._batches()):
            x = self._states(rows)
            shape = tuple(x.shape[1:])
            probes = None if divergence == "exact" else rademacher(noise, o.probes, shape, self.dtype)
            found = flow_log_prob(
                self.subject.denoiser,
                x,
                path,
                cond=self._embedded(rows, len(x)),
                probes=probes,
                adaptive=adaptive,
                prior=self.prior,
                chunk=o.chunk,
                heard=partial(self._at_time, number),
            )
            yield found.log_p, found.evaluations

    def _bound(self) -> Iterator[tuple[Tensor, int]]:
        o, values = self.options, None
        if self._is_discrete_bound:
            assert self.levels is not None
            integers = torch.arange(round(self.levels[0]), round(self.levels[1]) + 1, dtype=torch.float64)
            low, high = self.levels
            values = (integers - low) * (2.0 / (high - low)) - 1.0
        ends = Ends(self.t_min, self.t_max, o.levels, values)
        for number, (rows, noise) in enumerate(self._batches()):
            x = self._states(rows)
            found = denoising_bound(
                self.subject.denoiser,
                x,
                noise,
                o.draws,
                ends,
                cond=self._embedded(rows, len(x)),
                heard=partial(self._at_draw, number),
            )
            yield -found.T, o.draws * (1 if values is not None else 2)

    @property
    def divergence(self) -> str:
        """ "exact" or "hutchinson".

        Raises:
            ValueError: The exact one is asked for of too many elements.
        """
        if self.options.divergence == "auto":
            return "exact" if self.dims <= AUTO_LIMIT else "hutchinson"
        if self.options.divergence == "exact" and self.dims > EXACT_LIMIT:
            raise ValueError(
                f"divergence='exact' of items with {self.dims} elements costs as many backward passes per evaluation; "
                f"the cap is {EXACT_LIMIT}. Use divergence='hutchinson' with some probes, or method='elbo'."
            )
        return self.options.divergence

    @property
    def _path(self) -> Tensor:
        """Rising times: the steps of Heun's method, or the ends."""
        o, schedule = self.options, self.subject.process.schedule
        if o.integrator != "heun":
            return torch.tensor([self.t_min, self.t_max], dtype=torch.float64)
        return make_grid(schedule, o.steps, o.grid, self.t_min, self.t_max).flip(0)

    # -- data ---------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[slice, KeyedNoise]]:
        size, count = self.options.batch_size, len(self.data)
        for low in range(0, count, size):
            high = min(low + size, count)
            yield slice(low, high), self._noise(low, high)

    def _noise(self, low: int, high: int) -> KeyedNoise:
        return KeyedNoise(self.seed, range(low, high), self.subject.device)

    def _states(self, rows: slice) -> Tensor:
        """Return the states (B, *) of a batch, with the noise of one level where data are integers."""
        data = self.data[rows]
        if self.levels is not None:
            data = data.round()  # what went through float32 model units comes back a little off
        if self.dequantised:
            noise = KeyedNoise(self.seed, range(rows.start, rows.start + len(data)))
            data = data.double() + noise.uniform("data", 0, tuple(data.shape[1:])) - 0.5
        return self.subject.encode(data).to(self.dtype)

    def _embedded(self, rows: slice, count: int) -> Any:
        with torch.no_grad():
            return self.subject.denoiser.embed(self.cond.rows(rows.start, rows.start + count) or None, count)

    def _advance(self, batches: float) -> None:
        """Report so many batches, the last of them in part, as items."""
        self.listener(Advanced(_TASK, min(round(batches * self.options.batch_size), len(self.data))))

    def _at_time(self, batch: int, t: float) -> None:
        """Report that batch number `batch` has come to time `t`; work is spread evenly over the root of the time."""
        low, high = self.t_min**0.5, self.t_max**0.5
        self._advance(batch + (t**0.5 - low) / (high - low))

    def _at_draw(self, batch: int, draw: int) -> None:
        """Report that so many draws of a batch are done."""
        self._advance(batch + draw / self.options.draws)

    # -- words --------------------------------------------------------------------------------------

    @property
    def _is_discrete_bound(self) -> bool:
        return self.is_bound and self.levels is not None and self.options.dequantise is None

    @property
    def _units(self) -> str:
        if self.subject.is_latent:
            return "latents"
        if self.dequantised or self._is_discrete_bound:
            return "levels"
        return "data units" if self.subject.model is not None else "model units"

    @property
    def _settings(self) -> dict[str, Any]:
        o = self.options
        if self.is_bound:
            return {"draws": o.draws, "levels": o.levels or "continuous", "seed": self.seed}
        how = {"steps": o.steps, "grid": o.grid} if o.integrator == "heun" else {"rtol": o.rtol, "atol": o.atol}
        probes = {} if self.divergence == "exact" else {"probes": o.probes}
        return {"divergence": self.divergence, **probes, "integrator": o.integrator, **how, "seed": self.seed}

    def _notes(self) -> tuple[str, ...]:
        meaning = {
            "levels": "of integers" + (", with uniform noise of one level" if self.dequantised else ""),
            "latents": "of the latents, not of the data",
            "data units": "a density, in data units",
            "model units": "a density, in model units",
        }
        notes = [meaning[self._units], f"t_min={self.t_min:g}"]
        if not self.subject.denoiser.normalised:
            notes.append("of no normalised density: the denoiser is guided or wrapped")
        return tuple(notes)


def _warn_of_impossible(found: Likelihood) -> None:
    """Warn of whole numbers that would be likelier than certain, by more than the standard error."""
    nats = found.nats
    error = found.noise_standard_error if math.isnan(nats.standard_error) else nats.standard_error
    if found.units == "levels" and nats.mean < -(0.0 if math.isnan(error) else error):
        warnings.warn(
            f"{found.bits_per_dim.mean:.2f} bits per dimension cannot be: whole numbers are at most certain, at 0. The "
            "computation is too coarse; take more steps of heun or a smaller tolerance of dormand-prince, more probes, "
            "or the exact divergence.",
            stacklevel=4,
        )

"""`restore`: measurements in, samples of what they were made from out, with their spread and how well they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.events import Advanced, Finished, Listener, Message, Started, silent
from undiffuse.guidance.thresholding import Thresholding
from undiffuse.limits import check_counts
from undiffuse.models.conditions import fit_conditions
from undiffuse.models.guided import Wrap, threshold_mode
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import Operator
from undiffuse.tasks.restore.choose import Choice, check_needs, choose
from undiffuse.tasks.restore.fitting import Fitted, fit, measured_y
from undiffuse.tasks.restore.prior import prior_of
from undiffuse.tasks.restore.registry import make_restorer
from undiffuse.tasks.restore.restorer import Problem, Restorer, RestoreResult, Solution

if TYPE_CHECKING:
    from undiffuse.operators.noise import NoiseModel

TASK = "restore"
_MISSED = 3.0  # times the noise, beyond which answers do not explain the measurement
_DECODED = 1 << 20  # values of data that are decoded at once
_APART = 1 << 20  # more than the samples of any image, so that sample k of image b is always the same


def restore(
    model: Any,
    y: Tensor,
    operator: Operator,
    method: str | Restorer = "auto",
    *,
    noise_std: float | None = None,
    noise: NoiseModel | None = None,
    samples: int = 8,
    steps: int | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    budget: int | None = None,
    start: float = 1.0,
    x_init: Tensor | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | Sequence[Wrap] | None = None,
    threshold: Literal["static", "dynamic", "none"] | None = None,
    data_var: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    clip: tuple[float, float] | None = None,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
    listener: Listener = silent,
) -> RestoreResult:
    """Draw what y = operator(x) + noise was made from, with any model as the prior.

    Everything is in model units, where pictures span [-1, 1]: x, y and `noise_std`, and the result;
    `model.spec.to_model` and `from_model` are the border. Sample k of image b is the same whatever the batch, the
    number of samples and the batch size; only methods that know Gaussian noise alone take another noise's level over
    all the measurements given.

    Args:
        model: A `Model`, or a bare `Denoiser` (whose data have the operator's shape). A model of pictures (C, H, W)
            takes an operator on (Z, C, H, W) too, volumes of Z slices; only "diffusion-mbir" knows them for neighbours.
        y: Measurements (B, *operator.out_shape), or one without B.
        operator: What was done to x; see `undiffuse.operators`.
        method: A name of `RESTORERS`, a `Restorer`, or "auto", which chooses by operator, noise, prior and budget.
        noise_std: Standard deviation of y's noise, 0 where left out.
        noise: A noise model instead, where the noise is not Gaussian.
        samples: K per image.
        steps: Of the method; None: its own default.
        seed: Any integer.
        options: Options of the method, e.g. {"scale": 50} for "dps".
        budget: For "auto": forward passes per sample that may be spent.
        start: Begin at this time instead of 1, from a rough answer with noise: 0.2 to 0.5 saves steps.
        x_init: That rough answer (B, *operator.in_shape), or the start of methods that improve one; None: A^+ y.
        cond: Conditions of the prior, as for `Model.sample`, one or one per image.
        wrap: Wrappers around the prior, the first innermost.
        threshold: Bounds every answer of the prior to [-1, 1], before it is corrected, as `Model.sample` has it; of
            tiles, "dynamic" counts each by itself. None: no bounds.
        data_var: Variance of one element of the data; None: exact or measured, where a method uses it.
        tile, overlap: Of pictures larger than the model's, in pixels; None: the model's size, and a quarter of it. 0:
            ask the network about the whole picture.
        clip: Bounds of the answer; None: [-1, 1] for models of data with a range, unless they are analytic.
        batch_size: Samples computed at once.
        dtype: Of the state; None: float32, float64 for analytic priors.
        listener: Hears about progress.

    Raises:
        ValueError: What was given does not fit together; the message says what would.
        TypeError: Not a model, or one of tokens.
    """
    check_counts(samples=samples, batch_size=batch_size, steps=steps, budget=budget)
    check_counts(0, tile=tile, overlap=overlap)
    if not 0 < start <= 1:
        raise ValueError(f"start={start} is outside of (0, 1].")
    prior = prior_of(model, operator.in_shape, _wraps(model, wrap, threshold))
    fitted = fit(prior, y, operator, noise_std, noise, tile, overlap)
    choice, restorer = _method(method, options or {}, fitted, budget)
    check_needs(choice.method, restorer.needs, fitted.operator)
    known = data_var if data_var is not None else prior.data_var(restorer.uses_data_var)
    problem = _problem(fitted, model, cond, x_init, samples, known, start, dtype)
    warned = (*fitted.warnings, *restorer.check(problem), *_unused_noise(restorer, problem, choice.method))
    for text in warned:
        listener(Message(TASK, text, "warning"))
    if choice.why:
        listener(Message(TASK, f"method {choice.method}: {choice.why}"))
    parts = _solved(restorer, problem, samples, seed, batch_size, steps or choice.steps, listener)
    result = _result(fitted, model, restorer, parts, samples, choice, warned, clip)
    missed = _missed(result)
    for text in missed:
        listener(Message(TASK, text, "warning"))
    return replace(result, warnings=(*warned, *missed))


def _wraps(model: Any, wrap: Wrap | Sequence[Wrap] | None, threshold: str | None) -> list[Wrap]:
    """Return the wrappers around the prior, that of the threshold outermost.

    Raises:
        ValueError: The model's states are not bounded.
    """
    wraps: list[Wrap] = [] if wrap is None else [wrap] if callable(wrap) else list(wrap)
    mode: Any = None if threshold == "none" else threshold
    if mode is not None:
        if isinstance(model, Model):
            threshold_mode(model, mode)  # refuses latents, and data without a range
        wraps.append(lambda denoiser: Thresholding(denoiser, mode))
    return wraps


def _method(method: str | Restorer, options: dict[str, Any], fitted: Fitted, budget: int | None) -> tuple[Choice, Any]:
    if isinstance(method, Restorer):
        if options:
            raise ValueError("options belong to a method given by name; this one has its own already.")
        return Choice(type(method).__name__, ""), method
    choice = Choice(method, "")
    if method == "auto":
        prior, gaussian = fitted.prior, fitted.noise_model is None
        choice = choose(prior.denoiser, fitted.operator, fitted.noise_std, gaussian, budget)
    elif budget is not None:
        raise ValueError("budget is for method='auto'; a method by name takes steps.")
    return choice, make_restorer(choice.method, **options)


def _problem(
    fitted: Fitted,
    model: Any,
    cond: dict[str, Any] | None,
    x_init: Tensor | None,
    samples: int,
    data_var: float,
    start: float,
    dtype: torch.dtype | None,
) -> Problem:
    """Return the problem of all rows, the samples of an image after each other."""
    prior = fitted.prior
    count, dtype = len(fitted.y), dtype or prior.dtype
    index = torch.arange(count, device=prior.device).repeat_interleave(samples)
    conditions: dict[str, Tensor] = {}
    if cond:
        if not isinstance(model, Model):
            raise ValueError("conditions need a Model, which knows what they mean; wrap the denoiser instead.")
        told = fit_conditions(cond, count, model.state_spec, prior.device, model.codec)
        conditions = {k: v[index] for k, v in told.items()}
    first = None if x_init is None else _first(fitted, x_init.to(prior.device, dtype), count)[index]
    return Problem(
        denoiser=prior.denoiser,
        y=measured_y(fitted, fitted.y.to(dtype))[index],
        operator=fitted.operator.take(index),
        noise_std=fitted.noise_std,
        shape=prior.shape,
        noise_model=fitted.noise_model,
        codec=prior.codec,
        samples=samples,
        data_var=data_var,
        cond=conditions,
        t_start=start,
        dtype=dtype,
        x_init=first,
    )


def _first(fitted: Fitted, x: Tensor, count: int) -> Tensor:
    """Return first estimates as states, one per image."""
    if len(x) not in (1, count):
        raise ValueError(f"x_init has shape {tuple(x.shape)}; expected one or {count} items that the operator takes.")
    return fitted.states(x).expand(count, *fitted.prior.shape)


def _unused_noise(restorer: Restorer, problem: Problem, name: str) -> list[str]:
    if problem.noise_model is None or restorer.any_noise:
        return []
    law, std = type(problem.noise_model).__name__, problem.noise_std
    return [f"{name} knows Gaussian noise alone: {law} counts as one of standard deviation {std:.3g}."]


def _solved(
    restorer: Restorer,
    problem: Problem,
    samples: int,
    seed: int,
    batch_size: int,
    steps: int | None,
    listener: Listener,
) -> list[Solution]:
    """Solve the rows chunk by chunk; those of one image stay together where the method wants it."""
    count = restorer.default_steps if steps is None else steps
    together = max(1, batch_size // samples) * samples if restorer.couples else batch_size
    chunks = list(_chunks(problem.rows, together))
    listener(Started(TASK, len(chunks) * count, "step"))
    parts: list[Solution] = []
    for number, rows in enumerate(chunks):
        seen = [0]

        def advance(number: int = number, seen: list[int] = seen) -> None:
            seen[0] += 1
            if seen[0] < count:
                listener(Advanced(TASK, number * count + seen[0]))

        part = problem if len(chunks) == 1 else _rows(problem, rows)
        items = (rows // samples) * _APART + rows % samples
        noise = KeyedNoise(seed, items, problem.y.device)
        parts.append(restorer.solve(replace(part, progress=advance), noise, count))
        listener(Advanced(TASK, (number + 1) * count))
    listener(Finished(TASK))
    return parts


def _chunks(rows: int, size: int) -> Iterator[Tensor]:
    return (torch.arange(low, min(low + size, rows)) for low in range(0, rows, size))


def _rows(problem: Problem, rows: Tensor) -> Problem:
    index = rows.to(problem.y.device)
    return replace(
        problem,
        y=problem.y[index],
        operator=problem.operator.take(index),
        cond={name: value[index] for name, value in problem.cond.items()},
        x_init=None if problem.x_init is None else problem.x_init[index],
    )


def _result(
    fitted: Fitted,
    model: Any,
    restorer: Restorer,
    parts: list[Solution],
    samples: int,
    choice: Choice,
    warned: tuple[str, ...],
    clip: tuple[float, float] | None,
) -> RestoreResult:
    states = torch.cat([part.x for part in parts])
    learned = {name: torch.cat([part.learned[name] for part in parts]) for name in parts[0].learned}
    learned = {name: _by_sample(value, samples) for name, value in learned.items()}
    residual = torch.stack(
        [
            _residual(fitted, s, restorer, {name: value[k] for name, value in learned.items()})
            for k, s in enumerate(_by_sample(states, samples))
        ]
    )
    with torch.no_grad():
        data = torch.cat([fitted.data(part) for part in states.split(_together(fitted))])
    bounds = _bounds(fitted, model) if clip is None else clip
    data = data if bounds is None else data.clamp(*bounds)
    x = _by_sample(data, samples).contiguous()
    std = x.std(0) if samples > 1 else torch.zeros_like(x[0])
    return RestoreResult(
        samples=x,
        mean=x.mean(0),
        std=std,
        residual_rms=residual,
        noise_std=fitted.noise_std,
        nfe=max(part.nfe for part in parts),
        nfe_grad=max(part.nfe_grad for part in parts),
        method=choice.method,
        why=choice.why,
        warnings=warned,
        trace=parts[0].trace if len(parts) == 1 else {},
        learned=learned,
    )


def _together(fitted: Fitted) -> int:
    """Return how many states are decoded at once, for what a decoder keeps is many times the pictures."""
    return max(1, min(64, _DECODED // prod(fitted.pixels.in_shape)))


def _by_sample(rows: Tensor, samples: int) -> Tensor:
    """Return rows (B K, ...), the samples of an image after each other, as (K, B, ...)."""
    return rows.reshape(-1, samples, *rows.shape[1:]).transpose(0, 1)


def _missed(result: RestoreResult) -> list[str]:
    """Return a warning where the answers are far from what was measured."""
    worst, noise = float(result.residual_rms.mean(0).max()), result.noise_std
    if not noise or worst < _MISSED * noise:
        return []
    return [
        f"the answers miss the measurement by {worst:.3g} in model units, {worst / noise:.0f} times its noise "
        f"({noise:.3g}): take more steps or another method."
    ]


@torch.no_grad()
def _residual(fitted: Fitted, states: Tensor, restorer: Restorer, learned: dict[str, Tensor]) -> Tensor:
    """Return the root mean square of y - A(x) over what was measured, (B,)."""
    y = measured_y(fitted, fitted.y.to(states.dtype))
    square = (y - restorer.explained(fitted.operator, states, learned)).square()
    seen = fitted.operator.known(square)
    if seen is None:
        return square.flatten(1).mean(1).sqrt()
    share = seen.expand_as(square).flatten(1).sum(1).clamp(min=1)
    return (torch.where(seen, square, 0.0).flatten(1).sum(1) / share).sqrt()


def _bounds(fitted: Fitted, model: Any) -> tuple[float, float] | None:
    """Return the range of the data, where samples of a trained model may leave it."""
    spec = model.spec if isinstance(model, Model) else None
    analytic = isinstance(getattr(model, "module", model), MixtureDenoiser)
    return (-1.0, 1.0) if spec is not None and spec.range is not None and not analytic else None

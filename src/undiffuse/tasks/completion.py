"""Completion with token models: the gaps of texts, rows and pictures are drawn given what is known, without training.

Three situations, and what is exact:

- **Masks** (absorbing processes): known tokens are given as they are at every time, `clamp`. An open token is its own
  condition there, so what is drawn is the model's conditional, exact with `first-hitting`.
- **Other noise** (uniform, mask-replace): a clean token looks like one that may have been replaced, so known tokens are
  drawn anew at the noise level of each step, `replacement`. That is biased, whatever the number of steps; `resample`
  takes each step several times: 16 times leave about a quarter of the bias of once.
- **Pictures through a codec**: a token is known where all its pixels are, and a margin around.

Source: Hu et al. 2021 (VQ-DDM), arXiv:2112.01799, for completion by replacement; Lugmayr et al. 2022 (RePaint),
    arXiv:2201.09865, for resampling. The clamp, and what is exact when, are measured in `undiffuse papers vq-ddm`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from undiffuse.denoisers.elbo import token_bounds
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.models.conditions import Fitted, fit_conditions
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.sampling.constraints import Constraint, Known, Replacement
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.resampling import Resampled
from undiffuse.tasks.beginnings import model_of_beginnings
from undiffuse.tasks.known_tokens import Given, read_given

Method = Literal["auto", "clamp", "replacement"]
_RESAMPLE = 8
_DRAWS = 32  # noise draws of the likelihood that ranks completions
_OURS = ("start", "constraints", "prefix", "first", "size", "trajectory", "callback")


@dataclass(frozen=True)
class Completion:
    """What `inpaint` returns: B items, K completions of each, in data units.

    Args:
        samples: (K, B, *shape); for tokens the ids, int64 (K, B, length).
        tokens: All tokens that were drawn, int64 (K, B, L). Where noise replaces tokens they include those behind a
            text that is shorter than the model's items.
        known: Which tokens were known, bool (B, L).
        log_prob: Evidence bound of log p of `tokens`, in nats, (K, B); None where it was not asked for.
        log_prob_error: Its standard error.
        method: "clamp" or "replacement".
        why: Why, where the choice was left to us; else "".
        nfe: Network evaluations of each completion.
        warnings: What people should know about this answer.
    """

    samples: Tensor
    tokens: Tensor
    known: Tensor
    log_prob: Tensor | None = None
    log_prob_error: Tensor | None = None
    method: str = ""
    why: str = ""
    nfe: int = 0
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the figures, without the samples, as plain JSON types."""
        ranked = {} if self.log_prob is None else {"log_prob": self.log_prob.tolist()}
        return {
            "method": self.method,
            "why": self.why,
            "items": int(self.samples.shape[1]),
            "samples": int(self.samples.shape[0]),
            "known": int(self.known.sum()),
            "unknown": int((~self.known).sum()),
            "nfe": self.nfe,
            "warnings": list(self.warnings),
            **ranked,
        }


def inpaint(
    model: Model,
    x: str | list[str] | Mapping[str, Any] | Tensor | Any,
    mask: Tensor | Any = None,
    *,
    samples: int = 1,
    method: Method = "auto",
    resample: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    placeholder: str = "_",
    dilate: int | None = None,
    paste: bool = True,
    rank: bool = False,
    cond: dict[str, Any] | None = None,
    batch_size: int = 256,
    listener: Listener = silent,
    **options: Any,
) -> Completion:
    """Fill what is not known, `samples` times.

    Completion k of a seed is the same whatever `samples` is, for one item.

    Args:
        model: A model of tokens (texts, tables), or of pictures through a codec with a codebook.
        x: A text with a placeholder for each token to fill ("To be ____ not"), or several of one length; the known
            columns of a table's row ({"colour": "red"}); ids int64 (L,) or (B, L); pictures in data units (C, H, W) or
            (B, C, H, W).
        mask: For ids and pictures: 1 where known, 0 where not, of their shape (pictures: (H, W), or one for each).
        samples: Completions K of each item.
        method: "clamp" or "replacement", see the module; "auto" takes what is exact for the model's process.
        resample: For replacement: how often each step is taken; default 8.
        steps: Sampling steps; default: the model's own, or one for each token.
        solver: For clamp: any solver of tokens; default: the model's own. Replacement walks `ancestral`.
        seed: Any integer.
        placeholder: Character that stands for one token to fill.
        dilate: Pictures: tokens around a hole that count as unknown, because the codec's encoder saw the hole there;
            default 1.
        paste: Pictures: put the known pixels back, bit for bit.
        rank: Order the completions of each item by likelihood, the likeliest first.
        cond: Conditions, one value for all items or one for each; as in `Model.sample`.
        batch_size: Completions computed at once.
        listener: Hears about progress.
        options: Further arguments of `Model.sample_result`: guidance, temperature, ...

    Raises:
        ValueError: The model has no tokens, what is given does not fit it, or an option belongs to the other method.
        PlanError: The solver does not fit.
    """
    check_counts(samples=samples, batch_size=batch_size)
    process = token_process(model)
    taken = sorted(set(options) & set(_OURS))
    if taken:
        raise ValueError(f"{taken[0]} is what inpaint sets itself; leave it out.")
    chosen, why = choose_method(process, method, resample, solver)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = read_given(model, x, mask, placeholder, dilate)
    said = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    for text in said:
        warnings.warn(text, stacklevel=2)
    if options.get("autoguide") is None:  # which knows nothing of masks behind the text
        model, given = _beginning(model, given)
    items = len(given.tokens)
    rows = given.repeated(samples)
    conditions = _repeat(fit_conditions(cond, items, model.state_spec, model.device), samples)
    rule: Any = solver
    if chosen == "replacement":
        rule = Resampled(solver=make_solver("ancestral"), passes=_RESAMPLE if resample is None else resample)
    settings = {"solver": rule, "steps": steps, "seed": seed, **options}
    tokens, nfe = _draw(model, process, rows, chosen, conditions, settings, batch_size, listener)
    bound, error = _rate(model, tokens, conditions, seed, batch_size) if rank else (None, None)
    shaped = [None if part is None else part.unflatten(0, (items, samples)) for part in (tokens, bound, error)]
    best = None if shaped[1] is None else shaped[1].argsort(1, descending=True)
    drawn, bound, error = (_in_order(part, best) for part in shaped)
    assert drawn is not None
    return Completion(
        samples=_to_data(model, drawn, given, paste, batch_size),
        tokens=drawn,
        known=given.known,
        log_prob=bound,
        log_prob_error=error,
        method=chosen,
        why=why,
        nfe=nfe,
        warnings=said,
    )


def choose_method(
    process: CategoricalProcess, method: str, resample: int | None, solver: str | None = None
) -> tuple[str, str]:
    """Return "clamp" or "replacement" and, where the choice is ours, why.

    Raises:
        ValueError: An unknown method, one that does not fit the process, or options of the other method.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(get_args(Method))}.")
    if resample is not None and resample < 1:
        raise ValueError(f"resample={resample} must be at least 1, which is every step once.")
    why = ""
    if method == "auto":
        exact = process.kind == "absorbing"
        method = "clamp" if exact else "replacement"
        why = (
            "open tokens of an absorbing process are their own condition, so giving them is exact"
            if exact
            else f"tokens of kind {process.kind} may be replaced, so a clean one would not be believed"
        )
    if method == "clamp" and process.kind != "absorbing":
        raise ValueError(
            f"method=clamp is exact for absorbing processes alone, and this model's is {process.kind}: its network "
            "takes a clean token as one that may have been replaced. Use method=replacement, with resample=8 or more."
        )
    if method == "clamp" and resample is not None:
        raise ValueError(f"resample={resample} belongs to method=replacement; clamp is exact without. Leave it out.")
    if method == "replacement" and solver not in (None, "ancestral"):
        raise ValueError(f"solver={solver} cannot take steps again; method=replacement walks ancestral. Leave it out.")
    return method, why


def token_process(model: Model, task: str = "inpaint") -> CategoricalProcess:
    """Return the process of a model of tokens, which `task` needs.

    Raises:
        ValueError: It is continuous.
    """
    process = model.process
    if isinstance(process, CategoricalProcess):
        return process
    through = ", through a codec without a codebook" if model.codec is not None else ""
    found = f"this model is continuous ({model.spec.kind} data{through})"
    if task != "inpaint":
        raise ValueError(f"{task} mixes tokens, and {found}; train one of tokens: of pictures --recipe vq-image.")
    raise ValueError(
        f"inpaint completes tokens, and {found}; use ud.restore with a mask as the operator: undiffuse restore MODEL "
        "IMAGE --mask M.png."
    )


def _draw(
    model: Model,
    process: CategoricalProcess,
    rows: Given,
    method: str,
    conditions: Fitted,
    settings: dict[str, Any],
    batch_size: int,
    listener: Listener,
) -> tuple[Tensor, int]:
    """Return completed tokens (R, L) and the evaluations of each."""
    count, drawn, nfe = len(rows.tokens), [], 0
    listener(Started("inpaint", count, "completion"))
    for low in range(0, count, batch_size):
        part = slice(low, min(low + batch_size, count))
        tokens, known = rows.tokens[part].to(model.device), rows.known[part].to(model.device)
        constraint: Constraint = (
            Known(tokens, known) if method == "clamp" else Replacement(process, tokens, known, "fresh")
        )
        result = model.sample_result(
            len(tokens),
            first=low,
            cond=conditions.rows(part.start, part.stop) or None,
            constraints=[constraint],
            batch_size=len(tokens),
            **settings,
        )
        drawn.append(result.x.cpu())
        nfe = max(nfe, result.nfe)
        listener(Advanced("inpaint", part.stop))
    listener(Finished("inpaint"))
    return torch.cat(drawn), nfe


def _beginning(model: Model, given: Given) -> tuple[Model, Given]:
    """Return the model of texts as short as the one given, where it knows their marginal, and the text alone."""
    length = given.length
    short = None if given.tokens.shape[1] == length else model_of_beginnings(model, length)
    if short is None:
        return model, given
    return short, replace(given, tokens=given.tokens[:, :length], known=given.known[:, :length])


def _rate(model: Model, tokens: Tensor, conditions: Fitted, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the evidence bound of log p of each row in nats, and its error; all rows meet the same noise."""
    bounds, denoiser = [], model.denoiser
    for low in range(0, len(tokens), batch_size):
        rows = tokens[low : low + batch_size].to(model.device)
        cond = dict(conditions.rows(low, low + len(rows)))
        noise = KeyedNoise(seed, [0] * len(rows), model.device)
        bounds.append(token_bounds(denoiser, rows, noise, _DRAWS, cond=denoiser.embed(cond or None, len(rows))).cpu())
    draws = -torch.cat(bounds, dim=1).double() * tokens.shape[1]
    error = draws.std(0) / len(draws) ** 0.5 if len(draws) > 1 else torch.zeros_like(draws[0])
    return draws.mean(0), error


def _to_data(model: Model, tokens: Tensor, given: Given, paste: bool, batch_size: int) -> Tensor:
    """Return tokens (K, B, L) as data (K, B, *shape), with what is known of pictures put back."""
    if given.pixels is None:
        return tokens[..., : given.length]
    assert given.pixel_mask is not None
    rows = tokens.flatten(0, 1)
    with torch.no_grad():
        decoded = torch.cat([model.decode(part.to(model.device)).cpu() for part in rows.split(batch_size)])
    decoded = decoded.unflatten(0, tokens.shape[:2])
    return torch.where(given.pixel_mask, given.pixels.to(decoded.dtype), decoded) if paste else decoded


def _repeat(conditions: Fitted, times: int) -> Fitted:
    return Fitted((name, rows.repeat_interleave(times, 0)) for name, rows in conditions.items())


def _in_order(part: Tensor | None, best: Tensor | None) -> Tensor | None:
    """Return (B, K, ...) as (K, B, ...), the best first where their order is given (B, K)."""
    if part is None:
        return None
    if best is not None:
        part = part.gather(1, best.view(*best.shape, *[1] * (part.ndim - 2)).expand_as(part))
    return part.transpose(0, 1)

"""Items between two others, with token models: a mix of both at a noise level, denoised.

Both items are noised to time t by the same random numbers, each token of the mix is that of the second item with a
probability, its share, and the model walks from there to data. At t = 0 nothing is drawn: the mix itself, which at the
shares 0 and 1 is the one item or the other. At t = 1 nothing is left of either. In between the model makes one item of
what both still say, which is where to look for those that look like both.

Source: the code of Hu et al. 2021 (VQ-DDM), arXiv:2112.01799, mixes logarithms of noised one-hots there; tokens have no
    such mixtures, so here each is of one item or of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.models.conditions import fit_conditions
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import uniform_grid
from undiffuse.tasks.beginnings import model_of_beginnings
from undiffuse.tasks.completion import token_process

_OURS = ("start", "grid", "solver", "constraints", "prefix", "length", "first", "size", "trajectory", "callback")


def interpolate(
    model: Model,
    a: Tensor | str | Any,
    b: Tensor | str | Any,
    shares: float | Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    start: float = 0.5,
    samples: int = 1,
    steps: int = 32,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
    batch_size: int = 256,
    listener: Listener = silent,
    **options: Any,
) -> Tensor:
    """Return items between `a` and `b` in data units, (S, K, *shape) for S shares; for tokens the ids, int64.

    Sample k has the same random numbers at every share: tokens go over from the one item to the other one by one, and
    none comes back.

    Args:
        model: A model of tokens that does not read from left to right, or of pictures through a codec with a codebook.
        a, b: Two items: pictures in data units, ids int64 (L,), or texts of the model's length.
        shares: Chance of each token to be that of `b`, in [0, 1].
        start: Time at which the mix is made, in [0, 1]: 0 draws nothing, 1 forgets both items.
        samples: Items K for each share.
        steps: Sampling steps from `start` to 0.
        seed: Any integer.
        cond: Conditions, one value for all; as in `Model.sample`.
        batch_size: Items computed at once.
        listener: Hears about progress.
        options: Further arguments of `Model.sample_result`: guidance, temperature, ...

    Raises:
        ValueError: The model has no tokens or reads from left to right, an item does not fit it, or a number is out of
            range.
    """
    process = token_process(model, "interpolate")
    numbers = [shares] if isinstance(shares, (int, float)) else list(shares)
    _check(model, numbers, start, samples, steps, options)
    model, first, second = _tokens(model, a, b)
    process.check_data(torch.stack((first, second)))
    conditions = fit_conditions(cond, samples, model.state_spec, model.device)
    drawn: list[Tensor] = []
    listener(Started("interpolate", samples * len(numbers), "item"))
    for share in numbers:
        for low in range(0, samples, batch_size):
            items = range(low, min(low + batch_size, samples))
            x = _mix(process, first, second, share, start, KeyedNoise(seed, items, model.device))
            if start > 0:
                settings: dict[str, Any] = {
                    "grid": uniform_grid(steps, start=start),
                    "seed": seed,
                    "first": low,
                    **options,
                }
                settings["cond"] = conditions.rows(low, items.stop) or None
                x = model.sample_result(len(x), start=x, solver="ancestral", batch_size=len(x), **settings).x
            with torch.no_grad():
                drawn.append(model.decode(x).cpu())
            listener(Advanced("interpolate", sum(map(len, drawn))))
    listener(Finished("interpolate"))
    return torch.cat(drawn).unflatten(0, (len(numbers), samples))


def _check(model: Model, shares: list[float], start: float, samples: int, steps: int, options: dict[str, Any]) -> None:
    taken = sorted(set(options) & set(_OURS))
    if taken:
        raise ValueError(f"{taken[0]} is what interpolate sets itself; leave it out.")
    if model.denoiser.causal:
        raise ValueError("a network that reads from left to right does not start from a mix; give a masked model.")
    if not shares or not all(0.0 <= share <= 1.0 for share in shares):
        raise ValueError(f"shares={shares} must be one or more numbers in [0, 1]: 0 is the first item, 1 the second.")
    if not 0.0 <= start <= 1.0:
        raise ValueError(f"start={start} must be in [0, 1]: 0 mixes without drawing anything, 1 forgets both items.")
    check_counts(samples=samples, steps=steps)


def _tokens(model: Model, a: Any, b: Any) -> tuple[Model, Tensor, Tensor]:
    """Return two items as ids (L,) on the model's device, and the model of items as long as they are."""
    spec = model.spec
    if isinstance(a, str) and isinstance(b, str):
        from undiffuse.data.text import encode_text

        if not spec.is_discrete or spec.columns or spec.grid:
            raise ValueError(f"texts were given but the model makes {spec.noun}; give what it makes.")
        first, second = encode_text(a, spec), encode_text(b, spec)
        if len(first) != len(second) or not 0 < len(first) <= spec.shape[0]:
            raise ValueError(
                f"the texts are {len(first)} and {len(second)} tokens long; give two of one length, at most "
                f"{spec.shape[0]}."
            )
        short = model_of_beginnings(model, len(first))
        if short is None:
            raise ValueError(f"this model mixes texts of {spec.shape[0]} tokens alone; these have {len(first)}.")
        return short, first.to(model.device), second.to(model.device)
    x = [torch.as_tensor(item) for item in (a, b)]
    for item in x:
        if tuple(item.shape) != spec.shape:
            raise ValueError(f"an item has shape {tuple(item.shape)}; this model mixes items of {spec.shape}.")
    pair = torch.stack(x).to(model.device)
    with torch.no_grad():
        first, second = pair if model.codec is None else model.encode(pair)
    return model, first, second


def _mix(process: CategoricalProcess, a: Tensor, b: Tensor, share: float, t: float, noise: KeyedNoise) -> Tensor:
    """Return tokens (K, L) at time t, each of `b` with probability `share`."""
    shape, count = tuple(a.shape), len(noise.items)
    level, order = noise.uniform("data", 0, shape), noise.uniform("order", 0, shape)
    of_a, of_b = (process.corrupt(ids.expand(count, *shape), t, level) for ids in (a, b))
    return torch.where(order < share, of_b, of_a)

"""Likelihoods of tokens: the evidence bound that `Model.elbo` averages, item by item."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.items import Chosen
from undiffuse.analysis.options import LikelihoodOptions
from undiffuse.analysis.results import Likelihood
from undiffuse.analysis.subject import Asked, asked_of
from undiffuse.denoisers.elbo import token_bounds
from undiffuse.events import Advanced, Finished, Listener, Started
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess

_TASK = "likelihood"


def token_likelihood(
    model: Any, items: Chosen, options: LikelihoodOptions, seed: int, cond: dict[str, Any] | None, listener: Listener
) -> Likelihood:
    """Return the evidence bound of each row of token ids; the same numbers that `Model.elbo` averages.

    Raises:
        ValueError: The data are no token ids of the model's shape and vocabulary.
    """
    asked = asked_of(model, task="a likelihood")
    denoiser, device = asked.denoiser, asked.device
    tokens = encode_tokens(asked, items.data, options.batch_size)
    rows = asked.conditions(cond, len(tokens))
    size, count, parts = options.batch_size, len(tokens), []
    listener(Started(_TASK, count, "item"))
    for low in range(0, count, size):
        high = min(low + size, count)
        noise = KeyedNoise(seed, range(low, high), device)
        embedded = denoiser.embed(rows.rows(low, high) or None, high - low)
        batch = tokens[low:high].to(device)
        levels = options.levels or 1000
        parts.append(token_bounds(denoiser, batch, noise, options.draws, cond=embedded, levels=levels).double().cpu())
        listener(Advanced(_TASK, high))
    listener(Finished(_TASK))
    bounds = torch.cat(parts, dim=1) * tokens.shape[1]  # (draws, n), nats per item
    error: torch.Tensor | None = torch.full_like(bounds[0], torch.nan)
    if denoiser.causal:
        error = None  # nothing was drawn
    elif len(bounds) > 1:
        error = bounds.std(0) / len(bounds) ** 0.5
    return Likelihood(
        log_p=-bounds.mean(0),
        noise_error=error,
        dims=tokens.shape[1],
        method="exact" if denoiser.causal else "elbo",
        units="tokens",
        t_min=None,
        t_max=None,
        dequantised=False,
        nfe=len(bounds),
        passes=0,
        index=items.index,
        settings={"draws": len(bounds), "seed": seed},
    )


def encode_tokens(asked: Asked, data: Tensor, batch_size: int) -> Tensor:
    """Return data as token ids int64 (n, L), by the model's codec where it has one.

    Raises:
        ValueError: The data are no token ids of the model's shape and vocabulary.
    """
    tokens, process = data, asked.denoiser.process
    assert isinstance(process, CategoricalProcess)
    if asked.model is not None and asked.model.codec is not None:
        asked.check_shape(data)
        tokens = torch.cat([asked.encode(rows) for rows in data.split(batch_size)])
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"the data are {tokens.dtype} of shape {tuple(tokens.shape)}; expected token ids int64 (n, L)."
        )
    if bool(((tokens < 0) | (tokens >= process.classes)).any()):
        raise ValueError(f"the data have ids outside 0 to {process.classes - 1}, the classes of this model.")
    return tokens.to(asked.device)

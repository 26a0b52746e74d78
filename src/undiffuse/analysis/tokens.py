"""Likelihoods of tokens: the evidence bound that `Model.elbo` averages, item by item."""

from __future__ import annotations

from typing import Any

import torch

from undiffuse.analysis.items import Chosen
from undiffuse.analysis.options import LikelihoodOptions
from undiffuse.analysis.results import Likelihood
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.elbo import token_bounds
from undiffuse.events import Advanced, Finished, Listener, Started
from undiffuse.models.conditions import Fitted, fit_conditions
from undiffuse.models.model import Model
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
    denoiser: Denoiser = model.denoiser if isinstance(model, Model) else model
    assert isinstance(denoiser.process, CategoricalProcess)
    tokens, device = items.data, model.device if isinstance(model, Model) else items.data.device
    if isinstance(model, Model) and model.codec is not None:
        with torch.no_grad():
            tokens = torch.cat([model.encode(rows) for rows in tokens.split(options.batch_size)])
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"the data are {tokens.dtype} of shape {tuple(tokens.shape)}; expected token ids int64 (n, L)."
        )
    classes = denoiser.process.classes
    if bool(((tokens < 0) | (tokens >= classes)).any()):
        raise ValueError(f"the data have ids outside 0 to {classes - 1}, the classes of this model.")
    denoiser.eval()
    rows = fit_conditions(cond, len(tokens), model.spec, device) if isinstance(model, Model) else Fitted(cond or {})
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

"""A codec in the place of a denoiser, so that the trainer of denoisers trains it; and the loss of autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.codecs.autoencoder import Autoencoder
from undiffuse.codecs.codec import Codec
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import NoiseSource
from undiffuse.process.times import Time
from undiffuse.training.objectives import Corrupted, Losses, Objective, mean_over_items


class Reconstructor(Denoiser):
    """A codec seen as a denoiser without time: its answer is the item decoded from the item's code."""

    time_dependent = False

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec
        self.spec = codec.data

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Encode and decode `x` (B, *)."""
        return Posterior(self.codec.decode(self.codec.encode(x)))


class ReconstructionObjective(Objective):
    """|x - decode(z)|^2 / 2 + kl * KL(q(z | x) || N(0, 1)) per value of the data, z drawn from q.

    Args:
        kl: Weight of the divergence.

    Source: Kingma & Welling 2014, arXiv:1312.6114, equation 7, with a fixed variance of the decoder.
    """

    def __init__(self, kl: float) -> None:
        super().__init__()
        self.kl = kl

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw the noise of the code."""
        codec = _codec(denoiser)
        x: Tensor = batch["x"]
        none = x.new_zeros(len(x), 0)
        drawn = noise.normal("data", 0, codec.latent.shape, x.dtype)
        times = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return Corrupted(x=x, t=times, target=none, weight=none, extras={"code": drawn})

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return the loss of each item."""
        codec, x, noise = _codec(denoiser), corrupted.x, corrupted.extras["code"]
        frames = x.shape[1] if codec.data.kind == "video" else 1
        flat, drawn = (part.flatten(0, 1) if codec.data.kind == "video" else part for part in (x, noise))
        told = codec.reconstruct(flat, drawn)
        error = 0.5 * mean_over_items((told.x - flat).square())
        loss = error + self.kl * told.divergence / flat[0].numel()
        return Losses(loss.view(-1, frames).mean(1), None)


def _codec(denoiser: Denoiser) -> Autoencoder:
    assert isinstance(denoiser, Reconstructor) and isinstance(denoiser.codec, Autoencoder)
    return denoiser.codec

"""Texts shorter than a model's items: their marginal law, which masked models know without drawing the rest."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior, CategoricalPosterior
from undiffuse.models.model import Model
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time


class Beginning(Wrapper):
    """What an absorbing model says of the first tokens of items whose other tokens are masks: their marginal.

    Args:
        denoiser: Of items of `length` tokens.
        length: L.
    """

    process: CategoricalProcess

    def __init__(self, denoiser: Denoiser, length: int) -> None:
        super().__init__(denoiser)
        self.length = length

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Ask about items filled up with masks, at the time that goes with so many."""
        whole = pad(x, (0, self.length - x.shape[1]), value=self.process.classes)
        masked = self.process.is_mask(whole).double().mean(1)
        post = self.denoiser(whole, self.process.keep.time(1.0 - masked), cond)
        assert isinstance(post, CategoricalPosterior)
        return post.replace(logits=post.logits[:, : x.shape[1]])


def model_of_beginnings(model: Model, length: int) -> Model | None:
    """Return the model of the first `length` tokens of a model's items; None where it does not know their marginal.

    Masks stand for what nobody asked about, and a network that reads from left to right needs none. Where noise
    replaces tokens the others must be drawn beside those asked for.
    """
    whole, denoiser = model.state_spec.shape[0], model.denoiser
    if length == whole:
        return model
    if getattr(model.process, "kind", "") != "absorbing":
        return None
    short = denoiser if denoiser.causal else Beginning(denoiser, whole)
    return Model(short, replace(model.spec, shape=(length,)), model.defaults, model.info)

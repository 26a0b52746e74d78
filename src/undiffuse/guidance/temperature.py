"""Temperature and top-k of categorical posteriors: sharper samples, as an explicit choice.

They change the law of the samples: more likely tokens, less variety. Nothing in the library does so by accident (see
`undiffuse.process.draw`), and generative perplexities should be read beside the entropy that these cost.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior, CategoricalPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time


class TokenWrapper(Wrapper):
    """Base of wrappers that change the laws of tokens.

    Wrap the guided denoiser: what guidance adds is then part of what is changed.

    Raises:
        ValueError: The data are not tokens.
    """

    process: CategoricalProcess

    def __init__(self, denoiser: Denoiser) -> None:
        if not isinstance(denoiser.process, CategoricalProcess):
            raise ValueError(
                f"{type(self).__name__} changes laws of tokens; this model's data are continuous. Omit it."
            )
        super().__init__(denoiser)


class LogitsWrapper(TokenWrapper):
    """Base of wrappers that change the logits of each token by themselves; give `reshape`."""

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Change the answer's logits."""
        post = self.denoiser(x, t, cond)
        assert isinstance(post, CategoricalPosterior)
        return post.replace(logits=self.reshape(post.logits))

    @abstractmethod
    def reshape(self, logits: Tensor) -> Tensor:
        """Return logits (B, ..., K); those of known tokens, one finite number each, must keep their meaning."""


class Temperature(LogitsWrapper):
    """Draws from p^(1 / temperature), normalised: below 1 sharper, above 1 flatter, 1 the model's own law.

    Args:
        denoiser: What is changed.
        temperature: Above 0. For the most likely token always, use `TopK` with k = 1.

    Raises:
        ValueError: The data are not tokens, or the temperature is 0 or below.
    """

    def __init__(self, denoiser: Denoiser, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0; top_k=1 always takes the likeliest token.")
        super().__init__(denoiser)
        self.temperature = temperature

    def reshape(self, logits: Tensor) -> Tensor:
        """Divide log-probabilities; normalised first, so that large logits do not overflow."""
        return logits.log_softmax(-1) / self.temperature


class TopK(LogitsWrapper):
    """Keeps the k likeliest classes of each token and rules out the others.

    Args:
        denoiser: What is changed.
        k: At least 1; all classes or more change nothing.

    Raises:
        ValueError: The data are not tokens, or k is below 1.
    """

    def __init__(self, denoiser: Denoiser, k: int) -> None:
        if k < 1:
            raise ValueError(f"top_k={k} must be at least 1.")
        super().__init__(denoiser)
        self.k = k

    def reshape(self, logits: Tensor) -> Tensor:
        """Keep k logits; of equal ones the first."""
        if self.k >= logits.shape[-1]:
            return logits
        best = logits.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
        return logits.masked_fill(~kept, -torch.inf)

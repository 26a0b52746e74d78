"""The two wrappers of VQ-Diffusion's samplers: truncation, and sharpening by purity. Both trade variety for precision.

They go around the guided denoiser in this order: purity is read from the guided and truncated answer.

Sources: Gu et al. 2022 (VQ-Diffusion), arXiv:2111.14822; Tang et al. 2022 (Improved VQ-Diffusion), arXiv:2205.16007,
    section 3.3; and their code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import PURITY, AnyPosterior, CategoricalPosterior
from undiffuse.guidance.temperature import LogitsWrapper, TokenWrapper
from undiffuse.networks.embedded import Embedded
from undiffuse.process.times import Time


class Truncate(LogitsWrapper):
    """Keeps the likeliest classes of each token that together reach a probability, and rules out the rest.

    In falling order of probability, of equal ones the first, a class is kept while those before it add up to less than
    `rate`; so the likeliest is always kept, and what is kept has at least `rate`. What is left is normalised again: the
    published codes leave that to an arg-max of logarithms, which does not mind.

    Args:
        denoiser: What is changed.
        rate: In (0, 1]; 1 changes nothing, bit for bit. The paper uses 0.85 to 1.

    Raises:
        ValueError: The data are not tokens, or the rate is outside of (0, 1].
    """

    def __init__(self, denoiser: Denoiser, rate: float) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"truncation={rate} is outside of (0, 1]; 1 keeps all classes, 0.86 is usual.")
        super().__init__(denoiser)
        self.rate = rate

    def reshape(self, logits: Tensor) -> Tensor:
        """Rule out the tail. Sums are float64: in float32 they reach 1 early and drop classes that belong."""
        if self.rate >= 1:
            return logits
        probs, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = probs.cumsum(-1) - probs
        keep = (before < self.rate).index_fill(-1, order.new_zeros(1), True)
        kept = torch.zeros_like(keep).scatter(-1, order, keep)
        return logits.masked_fill(~kept, -torch.inf).log_softmax(-1)


class Sharpen(TokenWrapper):
    """Draws masked tokens from p^(1 + strength purity), normalised: the class rule of the purity prior.

    The purity of a token is its largest probability, divided by the largest one among the masks of its item. Known and
    replaced tokens are left as they are. With a right model this is a temperature below 1, which loses variety.

    Args:
        denoiser: What is changed.
        strength: 0 or above; 0 changes nothing but notes the purity for solvers (`extras`). 1 in the paper's examples.

    Raises:
        ValueError: The data are not tokens that can be masked in any order, or the strength is negative.
    """

    def __init__(self, denoiser: Denoiser, strength: float = 1.0) -> None:
        if not strength >= 0:
            raise ValueError(f"purity={strength} must not be negative; 0 sharpens nothing, 1 is usual.")
        super().__init__(denoiser)
        if self.process.mask_id is None:
            raise ValueError("purity chooses among masks, which uniform noise does not have; leave it out.")
        if denoiser.causal:
            raise ValueError("purity chooses among masks, and this model writes token after token; use temperature.")
        self.strength = strength

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Sharpen the answer where `x` is masked."""
        post = self.denoiser(x, t, cond)
        assert isinstance(post, CategoricalPosterior)
        masks, purest = self.process.is_mask(x), post.probs.amax(-1)
        most = torch.where(masks, purest, 0.0).flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1))
        purity = torch.where(masks, purest / torch.where(most > 0, most, 1.0), 1.0)
        noted = post.replace(extras={**post.extras, PURITY: purity})
        if not self.strength:
            return noted
        power = torch.where(masks, 1.0 + self.strength * purity, 1.0)[..., None].to(post.logits.dtype)
        sharp = (post.logits.log_softmax(-1) * power).log_softmax(-1)
        return noted.replace(logits=torch.where(masks[..., None], sharp, post.logits))

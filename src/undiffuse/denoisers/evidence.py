r"""Two meanings of a categorical answer, and the exact way between them.

Our posteriors mean p(x_0 | x_t), which goes into the *marginal* step p(x_s | x_t) = sum_j q(x_s | x_t, j) p(j | x_t).
Multinomial diffusion and VQ-DDM put their answer r into the *plug-in* step instead,

    p(x_s | x_t) prop. to q(x_t | x_s) sum_j q(x_s | j) r(j).

Fed p(x_0 | x_t) this counts the token's own evidence twice and does not converge, whatever the number of steps. What
the bound of the plug-in step makes a network answer is the posterior without that evidence, r(j) prop. to
p(j | x_t) / q(x_t | j), so

    log p(x_0 = j | x_t) = log r(j) + log q(x_t | x_0 = j) + const,

with q at the time of the question, not at that of the step's end. Then the marginal step is the plug-in step, for any
stride. For absorbing processes both are the same: a mask has no evidence, and any other token is certain (SUBS).

Sources: Hoogeboom et al. 2021, "Argmax Flows and Multinomial Diffusion", arXiv:2102.05379; Hu et al. 2021 (VQ-DDM),
    arXiv:2112.01799. The conversion is ours.
"""

from __future__ import annotations

from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time


class EvidenceFree(Wrapper):
    """A denoiser around one whose answers leave out what each noisy token says about itself.

    For token models from elsewhere. Networks of this library say it themselves (`CategoricalDenoiser.evidence_free`).

    Args:
        denoiser: Its process is categorical and its answers mean r.

    Raises:
        ValueError: The process is not categorical, or the denoiser adds the evidence itself.
    """

    process: CategoricalProcess

    def __init__(self, denoiser: Denoiser) -> None:
        if not isinstance(denoiser.process, CategoricalProcess):
            raise ValueError(
                "only tokens have evidence to add; this denoiser's process is Gaussian. Leave it as it is."
            )
        if getattr(denoiser, "evidence_free", False):
            raise ValueError(
                "this denoiser is marked evidence_free and adds the evidence itself; adding it again counts it twice."
            )
        super().__init__(denoiser)
        self.time_dependent = denoiser.time_dependent or denoiser.process.kind != "absorbing"

    @property
    def normalised(self) -> bool:
        """Whether the wrapped answers are those of one density: the conversion is exact."""
        return self.denoiser.normalised

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        """Return p(x_0 | x_t)."""
        answer = self.denoiser(x, t, cond)
        return answer.replace(logits=add_evidence(self.process, answer.logits, x, t))


def add_evidence(process: CategoricalProcess, logits: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """Return log p(x_0 | x_t) from log r: normalised, (B, ..., K) in the dtype of `logits`.

    Where q(x_t | x_0) leaves one class it is that class, certain, whatever the answer (an open token of an absorbing
    process, any token at t = 0).

    Args:
        process: The process that `x_t` came from.
        logits: log r up to a constant, (B, ..., K).
        x_t: The tokens that were asked about, (B, ...).
        t: When they were asked about.
    """
    evidence = process.likelihood(x_t, t).log()
    certain = (evidence > -float("inf")).sum(-1, keepdim=True) == 1
    answer = logits.double().log_softmax(-1)
    total = evidence.masked_fill(certain & evidence.isfinite(), 0.0) + answer.masked_fill(certain, 0.0)
    return total.log_softmax(-1).to(logits.dtype)


def remove_evidence(process: CategoricalProcess, logits: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """Return log r from log p(x_0 | x_t): normalised, (B, ..., K) in the dtype of `logits`.

    Classes that x_t rules out get probability 0, though nothing is known about them: both steps give them none.
    """
    evidence = process.likelihood(x_t, t).log()
    possible = evidence.isfinite()
    answer = logits.double().log_softmax(-1)
    rest = (answer - evidence.masked_fill(~possible, 0.0)).masked_fill(~possible, -float("inf"))
    return rest.log_softmax(-1).to(logits.dtype)

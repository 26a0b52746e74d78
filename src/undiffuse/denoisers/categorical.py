"""`CategoricalDenoiser`: a token network with a categorical process is a denoiser. And guidance on logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.evidence import add_evidence
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time, expand_time
from undiffuse.spec import DataSpec


class CategoricalDenoiser(Denoiser):
    """Wraps a backbone from token ids (B, L) to logits (B, L, K) over clean tokens.

    For absorbing processes the logits become a posterior by SUBS: never a mask, and open tokens are themselves.
    Such a posterior is the same at all times, so those networks need no time.

    A network trained by the bound of the plug-in step (VQ-DDM, multinomial diffusion) leaves out the evidence of each
    token about itself; `evidence_free` says so and adds it (`denoisers.evidence`).

    Args:
        backbone: Called as backbone(x, noise_level, cond); returns logits, or a dict with them under "out" and
            further heads beside. The noise level is the time t, (B,) or (B, L); None where time-free.
        process: The categorical process of the training.
        spec: What one item is.
        time_dependent: Whether the backbone is told the time.
        evidence_free: Whether the backbone leaves out what each noisy token says about itself.

    Raises:
        ValueError: `time_dependent` contradicts what the backbone says about itself.
    """

    process: CategoricalProcess

    def __init__(
        self,
        backbone: nn.Module,
        process: CategoricalProcess,
        *,
        spec: DataSpec | None = None,
        time_dependent: bool = False,
        evidence_free: bool = False,
    ) -> None:
        super().__init__()
        if getattr(backbone, "time_dependent", time_dependent) != time_dependent:
            raise ValueError(
                f"time_dependent={time_dependent} but the network was built with time_dependent={not time_dependent}; "
                f"build both alike."
            )
        self.backbone = backbone
        self.process = process
        self.spec = spec
        self.time_dependent = time_dependent
        self.evidence_free = evidence_free

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        """Run the backbone once; logits are float32 also where it runs in half precision."""
        self.process.check_tokens(x)
        level = expand_time(t, x).to(self._dtype()) if self.time_dependent else None
        heads = self.backbone(x, level, cond)
        heads = dict(heads) if isinstance(heads, dict) else {"out": heads}
        logits = heads.pop("out")
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return CategoricalPosterior(self._clean(logits, x, t), extras=heads)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Run the backbone's conditioners."""
        conditioners = getattr(self.backbone, "conditioners", None)
        return super().embed(cond, batch, drop) if conditioners is None else conditioners.embed(cond, batch, drop)

    def _clean(self, logits: Tensor, x: Tensor, t: Time) -> Tensor:
        if self.process.kind == "absorbing":
            return self.process.subs(logits, x)
        if logits.shape[-1] != self.process.classes:
            raise ValueError(f"the network gives {logits.shape[-1]} logits per token; expected {self.process.classes}.")
        logits = self.process.within_blocks(logits)
        return add_evidence(self.process, logits, x, t) if self.evidence_free else logits

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.backbone.parameters() if p.is_floating_point()), torch.float32)


def guide_logits(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Return log p_u + scale (log p_c - log p_u), normalised: guidance of a categorical posterior.

    Classes that the condition rules out stay out. Classes that only the unconditional answer rules out have no
    ratio; they keep their conditional log-probability. So tokens carried over by both stay carried over.

    Args:
        conditional: Logits (B, ..., K), -inf allowed.
        unconditional: Logits (B, ..., K), -inf allowed.
        scale: 1 is the conditional posterior, 0 the unconditional one; a number, or a tensor that broadcasts.

    Source: Tang et al. 2022, "Improved Vector Quantized Diffusion Models", arXiv:2205.16007.
    """
    log_c, log_u = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    has_ratio = log_c.isfinite() & log_u.isfinite()
    gain = torch.where(has_ratio, log_c - log_u, 0.0)
    guided = torch.where(log_u.isfinite(), log_u, log_c) + scale * gain
    ruled_out = log_c.isneginf() & (torch.as_tensor(scale, device=log_c.device) > 0)
    return guided.masked_fill(ruled_out, -torch.inf).log_softmax(-1)

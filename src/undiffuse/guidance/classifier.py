r"""Guidance by a classifier, of noisy data or of clean data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.guidance.guidance import Guidance, part_of, tiled
from undiffuse.networks.attention import math_attention
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess, fit
from undiffuse.process.times import Time, expand_time


class ClassifierGuidance(Guidance):
    r"""D = D_0 + scale sigma^2 / alpha grad_x log p(y | x_t); scale 1 is Bayes' rule, 0 is without guidance.

    `at="noisy"` asks a classifier of noisy data, log p(y | x_t, t). With the true one and scale 1 the answer is the
    conditional posterior mean. `at="clean"` asks any classifier of clean data about the posterior mean,
    log p(y | D_0(x_t)), and differentiates through the denoiser. That is another quantity: the classifier of an
    average instead of the average of the classifier. It agrees at the end of sampling, is biased before it, and costs
    a backward pass through the network. It needs no training.

    Where alpha is 0 the weight is infinite and the gradient 0; there both are those of the schedule's `t_max`.
    Gradients flow through all of this where they are asked for. Evaluations counted are those of the denoiser.

    Args:
        denoiser: What is guided: unconditional, or conditional on whatever its conditions say.
        classifier: "noisy": called as classifier(x_t, t) with t (B,) or (B, F); "clean": as classifier(mean). Returns
            logits (B, K), or, where `label` is None, any log-density (B,) of what is wanted.
        label: Class y, or one per sample, int64 (B,).
        scale, interval, rescale: See `Guidance`.
        at: What the classifier sees.

    Raises:
        ValueError: The data are tokens, `at` is unknown, or the classifier returns another shape.

    Source: Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", section 4, arXiv:2105.05233; at
        the posterior mean: Bansal et al. 2023, "Universal guidance for diffusion models", arXiv:2302.07121, eq. 6.
    """

    neutral: ClassVar[float] = 0.0
    process: GaussianProcess

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: Callable[..., Tensor],
        label: int | Tensor | None,
        scale: float | Tensor = 1.0,
        *,
        at: Literal["noisy", "clean"] = "noisy",
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("a classifier guides continuous data by its gradient; tokens have none. Use a condition.")
        if at not in ("noisy", "clean"):
            raise ValueError(f"at={at!r} is unknown; choose 'noisy' (sees x_t and t) or 'clean' (sees the mean).")
        super().__init__(denoiser, scale, interval=interval, rescale=rescale)
        self.classifier = classifier
        self.label = None if label is None else torch.as_tensor(label, dtype=torch.int64).reshape(-1)
        self.at = at
        self.time_dependent = True
        self.needs_grad = not self.is_neutral

    @property
    def _questions(self) -> int:
        return 1

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Pass the conditions on."""
        inner = self.denoiser.embed(cond, batch, drop)
        return inner if self.is_neutral or inner is None else Embedded(parts=(inner,))

    def with_estimate(self, cond: Embedded | None, estimate: Tensor) -> Embedded:
        """Pass the estimate on."""
        if self.is_neutral:
            return self.denoiser.with_estimate(cond, estimate)
        return replace(cond or Embedded(), parts=(self.denoiser.with_estimate(part_of(cond, 0), estimate),))

    def log_prob(self, seen: Tensor, t: Time) -> Tensor:
        """Return log p(y | seen) per row, (B,).

        Raises:
            ValueError: The classifier returns another shape, or a label lies outside its classes.
        """
        out = (
            self.classifier(seen, expand_time(t, seen).to(seen.dtype)) if self.at == "noisy" else self.classifier(seen)
        )
        if self.label is None:
            if out.shape != (len(seen),):
                raise ValueError(f"without a label the classifier returns log p (B,); got {tuple(out.shape)}.")
            return out
        if out.ndim != 2 or len(out) != len(seen):
            raise ValueError(f"the classifier returned {tuple(out.shape)}; expected logits ({len(seen)}, classes).")
        self.label = self.label.to(out.device)  # once; it stays there
        label = tiled(self.label, len(seen))
        if int(label.max()) >= out.shape[1] or int(label.min()) < 0:
            raise ValueError(f"label {int(label.max())} does not exist; the classifier knows 0 to {out.shape[1] - 1}.")
        return out.log_softmax(1).gather(1, label[:, None])[:, 0]

    def _guided(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        post, gradient = self._answer_and_gradient(x, t, cond)
        at = _within(t, self.process.schedule.t_max)
        alpha, sigma = (fit(c, x) for c in self.process.evaluate("levels", self.process.schedule.levels, at))
        scale = self._scale_at(x, t)
        mean = post.mean + (scale * sigma**2 / alpha * gradient).to(x.dtype)
        eps = None if post.eps is None else post.eps - (scale * sigma * gradient).to(x.dtype)
        return post.replace(mean=self._rescaled(mean, post.mean, t), eps=eps, raw=None)

    def _answer_and_gradient(self, x: Tensor, t: Time, cond: Embedded | None) -> tuple[Posterior, Tensor]:
        """Return the plain answer and grad_x log p(y | x_t)."""
        keep, clean = torch.is_grad_enabled(), self.at == "clean"
        at, inner = _within(t, self.process.schedule.t_max), part_of(cond, 0)
        with torch.enable_grad(), math_attention() if keep and clean else nullcontext():
            point = x if keep and x.requires_grad else x.detach().requires_grad_()
            if clean:
                post = cast(Posterior, self.denoiser(point, t, inner))
                log_p = self.log_prob(post.mean, t)
            else:
                log_p = self.log_prob(point, at)
            (gradient,) = torch.autograd.grad(log_p.sum(), point, create_graph=keep, materialize_grads=True)
        if clean:
            return (post if keep else tree_map(Tensor.detach, post)), gradient
        return cast(Posterior, self.denoiser(x, t, inner)), gradient


def _within(t: Time, most: float) -> Time:
    """Return `t`, at most `most`."""
    return t.clamp(max=most) if isinstance(t, Tensor) else min(t, most)

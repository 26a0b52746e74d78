"""`NetworkFlowMap`: any network that denoises, told a second time, is a flow map."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans, check_spans, shared_times, step_rule
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.jump import JumpEmbedding
from undiffuse.process.gaussian import Prediction, fit
from undiffuse.process.times import Time, align

_NEAR = 1e-4  # spans below this share of t use the slope at their middle: its error is 1e-9, that of differences 1e-12


class NetworkFlowMap(FlowMap):
    r"""A denoiser's network that also reads where a jump ends.

    The network's output F(x, t, s) gives a mean by the rule of its prediction, g = skip x + out F, and the map is the
    DDIM step with that mean,

        Phi(x, t, s) = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) g(x, t, s).

    This is one form for all methods: on `rf` with prediction "velocity" F is MeanFlow's average velocity; in the
    variable sigma / alpha it is CTM's G = (s/t) x + (1 - s/t) g; a jump to `end` is the identity at `end`, which
    consistency models need; on `trig` with prediction "v" a jump to 0 is TrigFlow's cos x - sin F. The embedding of the
    second time starts at 0, so a student starts as the DDIM steps of its teacher, whatever s is.

    Times are shared by the elements of an item. An estimate of self-conditioning is not told.

    Args:
        denoiser: Network and parametrisation; shared, not copied.
        spans: Which pairs of times are trained; see `FlowMap`.
        start, end, guided: See `FlowMap`.
        seed: Seed of the embedding's first layer.

    Raises:
        ValueError: The network's blocks read no vector, or a word is unknown.

    Source: principles, section 2.8; Kim et al. 2024, "Consistency trajectory models", arXiv:2310.02279, eq. 8.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        *,
        spans: Spans = "any",
        start: float = 1.0,
        end: float = 0.0,
        guided: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_spans(spans)
        if isinstance(denoiser.backbone, Backbone) and denoiser.backbone.counts_steps:
            raise ValueError("a network of diffusers cannot be told a second time; use model=unet or dit.")
        if not isinstance(denoiser.backbone, Backbone):
            raise ValueError(f"{type(denoiser.backbone).__name__} is no Backbone, so it cannot be told a second time.")
        self.denoiser = denoiser
        self.jump = JumpEmbedding(denoiser.backbone.context_dim, seed=seed)
        denoiser.backbone.reads_vector = True
        self.process, self.spec = denoiser.process, denoiser.spec
        self.spans, self.start, self.end, self.guided = spans, start, end, guided

    @property
    def backbone(self) -> Backbone:
        """The network."""
        return self.denoiser.backbone  # type: ignore[return-value]

    @property
    def prediction(self) -> Prediction:
        """What the network predicts on the diagonal."""
        return self.denoiser.prediction

    @property
    def data_std(self) -> float:
        """Standard deviation of the data that the parametrisation assumes, model units."""
        return self.denoiser.data_std

    @property
    def learns_variance(self) -> bool:
        """Whether the network has a head "variance"."""
        return self.denoiser.learns_variance

    def forward(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the state at `s`, (B, *); `x` itself where s = t. See `FlowMap.forward`."""
        now, then = shared_times(t, x), shared_times(s, x)
        state, share = step_rule(self.process, now, then)
        skip, out = self._rule(now)
        output = self.output(x, now, then, cond)
        moved = fit(state + share * skip, x) * x + fit(share * out, x) * output
        return torch.where(align(now == then, x), x, moved)

    def average_velocity(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return u = (x - Phi(x, t, s)) / (t - s) and its limit where s = t, (B, *)."""
        now, then = shared_times(t, x), shared_times(s, x)
        state, share = self._velocity_rule(now, then)
        skip, out = self._rule(now)
        output = self.output(x, now, then, cond)
        return fit(state + share * skip, x) * x + fit(share * out, x) * output

    def mean(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the mean g of the DDIM step from `t` that lands on the state at `s`, (B, *)."""
        now = shared_times(t, x)
        skip, out = self._rule(now)
        return fit(skip, x) * x + fit(out, x) * self.output(x, now, shared_times(s, x), cond)

    def instant(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Posterior:
        """Return the posterior on the diagonal."""
        now = shared_times(t, x)
        return self.denoiser(x, now, self._told(x, now, now, cond))

    def output(self, x: Tensor, t: Tensor, s: Tensor, cond: Embedded | None = None) -> Tensor:
        """Return what the network puts out, (B, *), at float64 times (B,)."""
        raw = self.denoiser(x, t, self._told(x, t, s, cond)).raw
        assert raw is not None
        return raw

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Run the network's conditioners."""
        return self.denoiser.embed(cond, batch, drop)

    def _told(self, x: Tensor, t: Tensor, s: Tensor, cond: Embedded | None) -> Embedded:
        """Return the conditions with the second time in their vector."""
        told = cond or self.denoiser.embed(None, len(x)) or Embedded()
        vector = self.jump(self.denoiser.noise_level(s, x), t - s)
        return replace(told, vector=vector if told.vector is None else told.vector + vector)

    def _rule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.rule(self.prediction, t, self.data_std)

    def _velocity_rule(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state, share) of u = state x + share g at float64 times, from slopes where both times are close."""
        schedule, span, middle = self.process.schedule, t - s, (t + s) / 2
        near = span.abs() <= _NEAR * t
        safe = torch.where(near, 1.0, span)
        state, share = step_rule(self.process, t, s)
        alpha, sigma = schedule.levels(middle)
        alpha_slope, sigma_slope = schedule.alpha_slope(middle), schedule.sigma_slope(middle)
        now = schedule.sigma(t)
        clean = now == 0
        steep = sigma_slope / torch.where(clean, 1.0, now)
        turn = (alpha_slope * sigma - alpha * sigma_slope) / torch.where(clean, 1.0, now)
        slopes = torch.where(clean, 0.0, steep), torch.where(clean, alpha_slope, turn)
        return torch.where(near, slopes[0], (1 - state) / safe), torch.where(near, slopes[1], -share / safe)


def as_denoiser(held: Denoiser | FlowMap) -> Denoiser:
    """Return a denoiser as it is, and the denoiser in a flow map.

    Raises:
        ValueError: The flow map was not trained to be one.
    """
    return held.diagonal() if isinstance(held, FlowMap) else held

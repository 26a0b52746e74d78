"""Residual MLP for vectors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP, fourier_features
from undiffuse.networks.heads import read_heads
from undiffuse.networks.modulation import ModulatedNorm, ModulatedResidual, zero_linear
from undiffuse.spec import ConditionSpec


class MLP(Backbone):
    """Residual network for vectors (B, D), modulated by noise level and condition.

    With one noise level per element (B, D) the context is that of the mean embedding plus a linear function
    of each element's deviation from the mean level, so equal levels give what a shared level gives.

    Args:
        features: Size D of the vectors.
        width: Features of the hidden layers.
        depth: Number of residual blocks.
        conditions: Conditions by name; of texts and embeddings it reads the summary alone, and maps are refused.
        self_condition: Whether it reads its last estimate of x_0.
        variance: Whether it has a head "variance".
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 256,
        depth: int = 4,
        conditions: Mapping[str, ConditionSpec] | None = None,
        self_condition: bool = False,
        variance: bool = False,
    ) -> None:
        super().__init__(make_conditioners(conditions, width, tokens=False))
        self.features, self.self_conditioned, self.learns_variance = features, self_condition, variance
        self.context = ContextMLP(width)
        self.deviation = zero_linear(features, width, bias=False)
        self.enter = nn.Linear(features * (1 + self_condition), width)
        self.body = nn.ModuleList(ModulatedResidual(_two_layers(width), width, width) for _ in range(depth))
        self.norm = ModulatedNorm(width, width)
        self.leave = zero_linear(width, features)
        self.variance = zero_linear(width, features) if variance else None

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Map `x` (B, D) to {"out": (B, D)} and, where it is learned, "variance"; `noise_level` is (B,) or (B, D)."""
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x has shape {tuple(x.shape)}; this MLP expects (B, {self.features}).")
        level = self.noise_level_for(noise_level, x.shape[0], self.features)
        assert level is not None
        cond = self.conditions(cond, x.shape[0])
        context = self._context(level, cond.vector)
        hidden = self.enter(self.add_estimate(x, cond, 1))
        for block in self.body:
            hidden = self.run(block, hidden, context)
        hidden = self.norm(hidden, context)
        return read_heads(hidden, self.leave, self.variance)

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named "in", "block0" .. , "out" and, where there is one, "variance"; outputs (B, width), heads (B, D)."""
        body = {f"block{index}": block for index, block in enumerate(self.body)}
        return {"in": self.enter, **body, "out": self.leave} | ({"variance": self.variance} if self.variance else {})

    def _context(self, level: Tensor, vector: Tensor | None) -> Tensor:
        features = fourier_features(level, self.context.features)
        if level.ndim == 2:
            features, deviation = features.mean(1), level - level.mean(1, keepdim=True)
        else:  # The path runs on zeros, so that every parameter always has a gradient (data parallelism needs that).
            deviation = level.new_zeros(level.shape[0], self.features)
        hidden = self.context.project(features) + self.deviation(deviation.to(self.deviation.weight.dtype))
        return self.context.combine(hidden, vector)


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

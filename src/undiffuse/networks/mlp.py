"""Residual MLP for vectors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP, fourier_features
from undiffuse.networks.modulation import ModulatedNorm, ModulatedResidual, zero_linear


class MLP(Backbone):
    """Residual network for vectors (B, D), modulated by noise level and condition.

    With one noise level per element (B, D) the context is that of the mean embedding plus a linear function
    of each element's deviation from the mean level, so equal levels give what a shared level gives.

    Args:
        features: Size D of the vectors.
        width: Features of the hidden layers.
        depth: Number of residual blocks.
        classes: Number of labels, 0 for none.
        vectors: Vector conditions, name -> width.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 256,
        depth: int = 4,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(make_conditioners(classes, vectors, width))
        self.features = features
        self.context = ContextMLP(width)
        self.deviation = zero_linear(features, width, bias=False)
        self.enter = nn.Linear(features, width)
        self.body = nn.ModuleList(ModulatedResidual(_two_layers(width), width, width) for _ in range(depth))
        self.norm = ModulatedNorm(width, width)
        self.leave = zero_linear(width, features)

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Map `x` (B, D) to {"out": (B, D)}; `noise_level` is (B,) or (B, D)."""
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x has shape {tuple(x.shape)}; this MLP expects (B, {self.features}).")
        level = self.noise_level_for(noise_level, x.shape[0], self.features)
        assert level is not None
        context = self._context(level, self.condition_vector(cond, x.shape[0]))
        hidden = self.enter(x)
        for block in self.body:
            hidden = block(hidden, context)
        return {"out": self.leave(self.norm(hidden, context))}

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named "in", "block0" .. , "out"; outputs (B, width), the last (B, D)."""
        body = {f"block{index}": block for index, block in enumerate(self.body)}
        return {"in": self.enter, **body, "out": self.leave}

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

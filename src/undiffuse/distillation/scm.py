r"""Continuous-time consistency (sCM), on schedule `trig` with angle th = pi t / 2.

With f(x, th) = cos(th) x - sin(th) F(x, th), the student's jump to 0, consistency says df/dth = 0 along a path. Its
derivative, times cos(th) and with a share r of the network's own, is the tangent

    g = -cos^2(th) (F - dx/dth) - r cos(th) sin(th) (x + dF/dth),

all with stop-gradient; dx/dth is the teacher's F (distillation) or cos(th) eps - sin(th) x_0 (training), and dF/dth the
derivative along the path, by one Jacobian-vector product. The loss is weight / d |F - stop-gradient(F + g)|^2 after
g <- g / (|g| + 0.1). At the exact map g = 0.

The data's standard deviation is taken to be 1, as model units mean it. The paper learns ln weight(th) by a network,
whose optimum is -ln E[loss | th]; here that is a running average over levels.

Source: Lu and Song 2024, "Simplifying, stabilizing and scaling continuous-time consistency models", arXiv:2410.11081,
equations 6 to 8 and algorithm 1.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.level_weight import LevelWeight
from undiffuse.distillation.objective import FlowMapObjective, embed
from undiffuse.distillation.options import SCMOptions
from undiffuse.networks.attention import math_attention
from undiffuse.process.times import align
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items
from undiffuse.training.time_samplers import LogNormalTimes

_LONGEST = 0.1  # added to the length of a tangent


class SCM(FlowMapObjective):
    """Continuous-time consistency training, or distillation where there is a teacher.

    Args:
        options: Law of angles, tangent and weight.
        steps: Optimizer steps of the run, of which the fading-in takes a share.
        teacher: Whose velocity to follow, on schedule `trig`; None: that of single samples.
    """

    spans: ClassVar[Spans] = "clean"

    def __init__(self, options: SCMOptions, *, steps: int, teacher: Denoiser | FlowMap | None = None) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options = options
        self.fading = max(1.0, options.warmup * steps)
        self.levels = LevelWeight() if options.adapt else None
        self.watches = options.adapt

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the weighted squared tangent, as a loss of the network's output."""
        process, eps = denoiser.process, corrupted.extras["eps"]
        t = LogNormalTimes(process.schedule, self.options.time_mean, self.options.time_std)(
            corrupted.extras["u"][:, 0]
        ).t
        x = process.corrupt(corrupted.x, t, eps)
        with torch.no_grad():
            velocity = self._velocity(corrupted, x, t)
            cond = embed(denoiser, corrupted)
            tangent = scm_tangent(denoiser, x, t, velocity, cond, (self.done / self.fading).clamp(max=1.0))
        if self.options.normalise:
            length = tangent.flatten(1).norm(dim=1)
            tangent = tangent / align(length + _LONGEST, x)
        output = angle_output(denoiser, x, t, embed(denoiser, corrupted))
        loss = mean_over_items((output - (output + tangent).detach()).square())
        half_logsnr = process.schedule.half_logsnr(t)
        if self.levels is not None:
            loss = loss * self.levels(half_logsnr).to(loss.dtype)
        return Losses(loss, half_logsnr)

    def watch(self, losses: Losses) -> None:
        """Learn the weight of each level from the losses of a batch."""
        if self.levels is not None and losses.half_logsnr is not None:
            self.levels.update(losses.half_logsnr, losses.per_sample / self.levels(losses.half_logsnr))

    def _velocity(self, corrupted: Corrupted, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dth: the teacher's, or that of the sample."""
        cos, sin = _angle(x, t)
        if self.teacher is None:
            return cos * corrupted.extras["eps"] - sin * corrupted.x
        cond = embed(self.teacher, corrupted)
        post = self.teacher.instant(x, t, cond) if isinstance(self.teacher, FlowMap) else self.teacher(x, t, cond)
        return (cos * x - post.mean) / sin


def scm_tangent(
    flow_map: FlowMap, x: Tensor, t: Tensor, velocity: Tensor, cond: object, share: float | Tensor = 1.0
) -> Tensor:
    """Return g (B, *), not normalised, for the path with slope `velocity` = dx/dth; `share` is r."""
    cos, sin = _angle(x, t)
    # The product with cos sin goes into the direction: near both ends dF/dth alone is huge.
    slope = (cos * sin).reshape(-1).double() * (2 / math.pi)
    with math_attention(), torch.autocast(x.device.type, enabled=False):  # in half precision the derivative is noise
        output, along = torch.func.jvp(
            lambda x, t: angle_output(flow_map, x, t, cond), (x, t), (cos * sin * velocity, slope)
        )[:2]
    return -(cos**2) * (output - velocity) - share * (cos * sin * x + along)


def angle_output(flow_map: FlowMap, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
    """Return F with f = cos x - sin F, (B, *): what a network of prediction "v" puts out for a jump to 0."""
    if isinstance(flow_map, NetworkFlowMap) and flow_map.prediction == "v":
        return flow_map.output(x, t, torch.zeros_like(t), cond)  # type: ignore[arg-type]
    cos, sin = _angle(x, t)
    return (cos * x - flow_map(x, t, torch.zeros_like(t), cond)) / sin  # type: ignore[arg-type]


def _angle(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    angle = align(t * (math.pi / 2), x)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

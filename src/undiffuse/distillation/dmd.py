r"""Distribution matching distillation (DMD2): samples whose noisy density is the teacher's.

The gradient of the divergence between the densities of noisy samples and of noisy data is the difference of their
scores. In posterior means, for a sample x = G(z), x_t = alpha x + sigma eps and t uniform in [0.02, 0.98],

    g = alpha_t (D_fake(x_t) - D_real(x_t)) / mean |D_real(x_t) - x|,    loss = |x - stop-gradient(x - g)|^2 / 2.

D_real is the frozen teacher. D_fake denoises samples of G; it starts as the teacher and is trained beside G by several
updates of the denoising loss before each update of G, with an optimizer of its own, whose state is saved with a run.

With several jumps the generator is trained on the states that sampling meets: it makes all earlier jumps first, with
fresh noise after each, and one of its jumps, drawn per row, is the sample. The logged loss is |g|^2 / 2 per value.

A student that starts as a good denoiser jumps from pure noise to one point, the mean of the data, and there the
gradient has no direction to spread in: on a Gaussian it stays there for thousands of steps. So the run begins with the
regression of DMD, on samples that the teacher's own steps make from the same noise, as DMD2 does for its one-step
generators. The adversarial loss of DMD2 is left out.

Source: Yin et al. 2024, "Improved distribution matching distillation for fast image synthesis", arXiv:2405.14867,
sections 4.1 to 4.5; Yin et al. 2024, "One-step diffusion with distribution matching distillation", arXiv:2311.18828,
equations 7 and 8 (whose published code leaves out alpha_t); principles, section 2.8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.distillation.objective import FlowMapObjective, embed, freeze
from undiffuse.distillation.options import DMDOptions
from undiffuse.distillation.own_adam import OwnAdam
from undiffuse.distillation.reflow import follow_path
from undiffuse.distillation.velocities import mean_of
from undiffuse.noise import NoiseSource
from undiffuse.process.times import align
from undiffuse.training.denoising import gaussian_process, parametrisation
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items
from undiffuse.training.time_samplers import UniformTimes

_SMALLEST = 1e-3  # of mean |D_real - x|, model units
_OWN_DRAW = 32  # "time" step of the uniforms; see `objective`


class DMD(FlowMapObjective):
    """Distribution matching distillation.

    Args:
        options: Jumps, updates and times.
        teacher: The denoiser of the data.
        fake: The denoiser of samples, as it starts; a part of this objective from now on.
        steps: Optimizer steps of the run, of which the regression takes a share.
    """

    spans: ClassVar[Spans] = "clean"
    uniforms: ClassVar[int] = 2

    def __init__(self, options: DMDOptions, *, teacher: Denoiser | FlowMap, fake: Denoiser, steps: int = 0) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options, self.regressed = options, round(options.warmup * steps)
        freeze(fake)  # it is trained by `before_step` alone
        self.fake = fake
        self.adam = OwnAdam(list(fake.parameters()), options.fake_lr)

    def prepare(self, denoiser: FlowMap, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw, for the generator's update and for each of D_fake, noise for all jumps and for x_t, and uniforms."""
        made = super().prepare(denoiser, batch, noise, batch_size)
        times, jumps = 1 + self.options.updates, self.options.jumps
        shape = tuple(made.x.shape[1:])
        draws = noise.normal("data", 1, (times * jumps + self.options.updates, *shape), made.x.dtype)
        starts, rest = draws.split([times * jumps, self.options.updates], dim=1)
        extras = {
            "starts": starts.unflatten(1, (times, jumps)),
            "fake_eps": rest,
            "fake_u": noise.uniform("time", _OWN_DRAW, (self.options.updates, 2)),
        }
        return replace(made, extras=made.extras | extras)

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return |g|^2 / 2 as a loss of the sample; at first the error of the jump from pure noise, on pairs."""
        assert self.teacher is not None
        if self.steps_done < self.regressed:
            return self._regression(denoiser, corrupted)
        u = corrupted.extras["u"]
        x = self.generate(denoiser, corrupted, corrupted.extras["starts"][:, 0], u[:, 1])
        t = self.options.time_low + (self.options.time_high - self.options.time_low) * u[:, 0]
        process = denoiser.process
        with torch.no_grad():
            noisy = process.corrupt(x, t, corrupted.extras["eps"])
            real = mean_of(self.teacher, noisy, t, embed(self.teacher, corrupted))
            fake = mean_of(self.fake, noisy, t, embed(self.fake, corrupted))
            size = mean_over_items((real - x).abs()).clamp(min=_SMALLEST)
            target = x - align(process.schedule.alpha(t).to(x.dtype) / size, x) * (fake - real)
        return Losses(0.5 * mean_over_items((x - target).square()), process.schedule.half_logsnr(t))

    def _regression(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return half the squared distance of single jumps from where the teacher gets from the same noise."""
        assert self.teacher is not None
        eps, process = corrupted.extras["starts"][:, 0, 0], denoiser.process
        with torch.no_grad():
            wanted = follow_path(self.teacher, replace(corrupted, extras={"eps": eps}), self.options.teacher_steps)
        start = torch.full_like(corrupted.extras["u"][:, 0], denoiser.start)
        cond = embed(denoiser, corrupted)
        found = denoiser(process.prior(eps, denoiser.start), start, torch.zeros_like(start), cond)
        levels = process.schedule.half_logsnr(start.clamp(max=process.schedule.t_max))
        return Losses(0.5 * mean_over_items((found - wanted).square()), levels)

    def before_step(self, denoiser: FlowMap, corrupted: Corrupted) -> None:
        """Train D_fake on new samples."""
        for update in range(self.options.updates):
            with torch.no_grad():
                starts, u = corrupted.extras["starts"][:, 1 + update], corrupted.extras["fake_u"][:, update]
                x = self.generate(denoiser, corrupted, starts, u[:, 1])
            t = UniformTimes(denoiser.process.schedule)(u[:, 0]).t
            self._train_fake(corrupted, x, t, corrupted.extras["fake_eps"][:, update])

    def generate(self, denoiser: FlowMap, corrupted: Corrupted, draws: Tensor, u: Tensor) -> Tensor:
        """Return clean samples (B, *) after jump floor(u jumps), from noise (B, jumps, *)."""
        jumps, process = self.options.jumps, denoiser.process
        cond, clean = embed(denoiser, corrupted), torch.zeros_like(u)
        times = torch.linspace(denoiser.start, 0.0, jumps + 1, dtype=torch.float64, device=u.device)
        states = [process.prior(draws[:, 0], denoiser.start)]
        with torch.no_grad():
            for k in range(1, jumps):
                landed = denoiser(states[-1], times[k - 1].expand(len(u)), clean, cond)
                states.append(process.corrupt(landed, times[k].expand(len(u)), draws[:, k]))
        number = torch.floor(u * jumps).long()
        rows = torch.arange(len(u), device=u.device)
        return denoiser(torch.stack(states, dim=1)[rows, number], times[number], clean, cond)

    def _train_fake(self, corrupted: Corrupted, x0: Tensor, t: Tensor, eps: Tensor) -> None:
        """Make one update of D_fake by the error of what its network predicts."""
        process, (kind, data_std) = gaussian_process(self.fake), parametrisation(self.fake)
        parameters = list(self.fake.parameters())
        with torch.enable_grad():
            for p in parameters:
                p.requires_grad_(True)
            post = self.fake(process.corrupt(x0, t, eps), t, embed(self.fake, corrupted))
            output = post.mean if post.raw is None else post.raw
            loss = (output - process.target(kind, x0, eps, t, data_std)).square().mean()
            gradients = torch.autograd.grad(loss, parameters)
            for p in parameters:
                p.requires_grad_(False)
        self.adam.update(parameters, gradients)

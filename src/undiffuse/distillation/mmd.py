r"""MMD fine-tuning: train a network *through* its sampler, so that its N-step samples match the data in features.

    loss = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

with a = phi(sampler(noise)) and b = phi(data). The sampling loop is the ordinary one, with gradients. Noise is fresh in
every step: on a fixed set of noises the unbiased loss has a saddle where it should have a minimum. Nothing is clamped
or rounded on the way.

The estimate couples all rows of a batch. It is a mean of row contributions (`mmd_rows`), which is what the trainer
takes; a batch that goes through the network in parts is run twice, first without gradients (`couple`), so that the
gradient is that of the whole batch. Several processes each compare their own rows: a mean of estimates, unbiased too.
Their queue is one: every process keeps the rows of all.

Source: Aiello, Valsesia, Magli 2023, "Fast Inference in Denoising Diffusion Models via MMD Finetuning",
    arXiv:2301.07969. Ours differs: averaged weights, one data-driven bandwidth for the three terms, no clamping,
    dropout off, classes compared within themselves, the exact gradient of accumulated batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.errors import ConfigError, NotFiniteError, TrainingError
from undiffuse.metrics.kernels import KernelName, kernel_for, mmd_rows
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import InjectedNoise, NoiseSource, RecordedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import check_grid
from undiffuse.sampling.loop import sample
from undiffuse.sampling.solver import Solver
from undiffuse.training.objectives import Corrupted, Losses, Objective

_CHUNK = 256  # items whose features are computed at once
_WHICH, _KEY, _ROWS, _COTANGENT = "sampler", "class", "rows", "cotangent"  # in `Corrupted.extras`, beside "stream/step"


@dataclass(frozen=True)
class Sampler:
    """A solver and the grid (K + 1,) that it walks, down to clean data.

    Raises:
        ValueError: The solver walks tokens or draws its own times, or the grid ends above t = 0.
    """

    solver: Solver
    grid: Tensor

    def __post_init__(self) -> None:
        if self.solver.discrete or self.solver.draws_times:
            raise ValueError(
                f"{type(self.solver).__name__} walks tokens or makes its own times, a path that has no gradient; MMD "
                f"tuning needs a continuous solver on a grid, such as ddim."
            )
        last = float(check_grid(self.grid)[-1].max())
        if last != 0:
            raise ValueError(f"the grid ends at t={last:g}, above clean data; end it at 0, as make_grid does.")


class MMDObjective(Objective):
    """Unbiased MMD^2 between the features of N-step samples and of data.

    Args:
        features: Maps states (B, *shape) in model units to features (B, D), differentiable and frozen.
        samplers: What to tune through; with several, each batch takes one of them at random.
        width: D.
        kernel: See `undiffuse.metrics.kernels.kernel_for`; computed in float64.
        queue: Features of real items kept from earlier batches.
        classes: Number of values of each label condition by name: with it, `joint` compares within classes.
        joint: Weight of pairs of one class: every pair counts 1 - joint, and those of one class joint * (number of
            classes) more, which is a product kernel of the joint law of items and labels.
        guide: Puts guidance around the denoiser, as the sampler will have it; None for none.
        drop: Probability that a row's condition is replaced by its null, which is then a class of its own.
        dropout: Leave the network's dropout on.
        checkpoint: Recompute each network call in the backward pass.
        gather: Returns the rows of all processes, in order, for those of this one; None for one process.

    Raises:
        ConfigError: There is no sampler.

    Source: arXiv:2301.07969, equations 5 to 7.
    """

    queue: Tensor
    queue_class: Tensor
    filled: Tensor

    least_rows = 2

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        samplers: Sequence[Sampler],
        *,
        width: int,
        kernel: KernelName = "rbf-mix",
        queue: int = 0,
        classes: dict[str, int] | None = None,
        joint: float = 0.5,
        guide: Callable[[Denoiser], Denoiser] | None = None,
        drop: float = 0.0,
        dropout: bool = False,
        checkpoint: bool = True,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(drop)
        if not samplers:
            raise ConfigError("MMD tuning needs a sampler; give at least one number of steps.")
        # In a list, so that a network among the features is no part of the state that a checkpoint keeps.
        self._features = [features]
        self.samplers, self.kernel, self.guide = tuple(samplers), kernel, guide
        self.classes, self.joint = dict(classes or {}), joint
        self.dropout, self.checkpoint, self._gather = dropout, checkpoint, gather
        self._latest: tuple[Tensor, Tensor] | None = None
        self.register_buffer("queue", torch.zeros(queue, width))
        self.register_buffer("queue_class", torch.zeros(queue, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    # -- before the network -----------------------------------------------------------------------

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw the noise that sampling takes, and compute the features of the data."""
        x0: Tensor = batch["x"]
        known = {} if denoiser.spec is None else denoiser.spec.conditions
        batch = {**batch, "cond": {name: part for name, part in (batch.get("cond") or {}).items() if name in known}}
        conditions = self.conditions(batch, noise, denoiser.kept_conditions)
        extras = self._draws(denoiser, x0, noise)
        extras[_WHICH] = self._choices(noise, len(x0), batch_size)
        extras[_KEY] = self._keys(conditions, len(x0), x0.device)
        return Corrupted(
            x=noise.normal("init", 0, tuple(x0.shape[1:]), x0.dtype),
            t=torch.ones(len(x0), dtype=torch.float64, device=x0.device),
            target=self.real_features(x0),
            weight=x0.new_zeros(len(x0), 0),
            extras=extras,
            **conditions,
        )

    @torch.no_grad()
    def real_features(self, x0: Tensor) -> Tensor:
        """Return the features (N, D) of data, float32."""
        return torch.cat([self._features[0](part).float() for part in x0.split(_CHUNK)])

    def _draws(self, denoiser: Denoiser, x0: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
        """Return the noise of the samplers, drawn as they would draw it, by "stream/step"."""
        recorded = RecordedNoise(noise)
        for sampler in self.samplers:
            plan = sampler.solver.prepare(denoiser.process, sampler.grid, x0, recorded)
            for entry in plan.entries:
                sampler.solver.draw(entry, x0, recorded)
        return {f"{stream}/{step}": drawn for (stream, step), drawn in recorded.record.items()}

    def _choices(self, noise: NoiseSource, rows: int, batch_size: int) -> Tensor:
        """Return which sampler each row takes, the same within a batch, int64 (rows,)."""
        if len(self.samplers) == 1:
            return torch.zeros(rows, dtype=torch.int64)
        first = noise.uniform("time", 0, ()).cpu().view(-1, batch_size)[:, :1]
        return (first * len(self.samplers)).long().expand(-1, batch_size).reshape(-1)

    def _keys(self, conditions: dict[str, Any], rows: int, device: torch.device) -> Tensor:
        """Return one number for the labels of each row, dropped ones included, int64 (rows,)."""
        key = torch.zeros(rows, dtype=torch.int64, device=device)
        for name, count in self.classes.items():
            label = conditions["cond"].get(name)
            if label is None:
                continue
            dropped = conditions["drop"].get(name)
            label = label if dropped is None else torch.where(dropped, count, label)
            key = key * (count + 1) + label
        return key

    # -- through the network ----------------------------------------------------------------------

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Sample from the noise of one batch and return what each row adds to MMD^2, which may be negative."""
        found = self.sampled_features(denoiser, corrupted)
        if _COTANGENT in corrupted.extras:  # a part of a batch: `couple` has seen the whole
            along = (found * corrupted.extras[_COTANGENT]).flatten(1).sum(1)
            return Losses(corrupted.extras[_ROWS] + (along - along.detach()), None)
        rows = self._rows(found, corrupted, torch.is_grad_enabled())
        return Losses(rows, None)

    @torch.no_grad()
    def couple(self, denoiser: Denoiser, corrupted: Corrupted, parts: int) -> Corrupted:
        """Run all parts of a batch without gradients; return it with its row contributions and their derivative.

        The parts then have, together, exactly the gradient of the whole batch.
        """
        size = len(corrupted.x) // parts
        pieces = (corrupted.rows(low, low + size) for low in range(0, size * parts, size))
        found = torch.cat([self.sampled_features(denoiser, piece) for piece in pieces])
        with torch.enable_grad():
            leaf = found.requires_grad_()
            rows = self._rows(leaf, corrupted, True)
            (cotangent,) = torch.autograd.grad(rows.sum(), leaf)
        return replace(corrupted, extras={**corrupted.extras, _ROWS: rows.detach(), _COTANGENT: cotangent})

    def sampled_features(self, denoiser: Denoiser, corrupted: Corrupted) -> Tensor:
        """Return the features (B, D) of the samples that a batch's noise becomes.

        Raises:
            TrainingError: The samples are not finite.
        """
        return self._features[0](self.samples(denoiser, corrupted))

    def samples(self, denoiser: Denoiser, corrupted: Corrupted) -> Tensor:
        """Return the samples (B, *shape) in model units that a batch's noise becomes."""
        sampler = self.samplers[int(corrupted.extras[_WHICH][0])]
        given = {("init", 0): corrupted.x}
        for name, drawn in corrupted.extras.items():
            stream, slash, step = name.partition("/")
            if slash:
                given[stream, int(step)] = drawn
        asked: Denoiser = _Dropping(denoiser, corrupted.drop) if corrupted.drop else denoiser
        if self.guide is not None and corrupted.cond:
            asked = self.guide(asked)
        if not self.dropout:
            denoiser.eval()  # and so it stays: the backward pass computes the calls again
        try:
            return sample(
                asked,
                noise=InjectedNoise(given),
                shape=tuple(corrupted.x.shape[1:]),
                solver=sampler.solver,
                grid=sampler.grid,
                cond=corrupted.cond or None,
                dtype=corrupted.x.dtype,
                grad=torch.is_grad_enabled() and ("checkpoint" if self.checkpoint else True),
            ).x
        except NotFiniteError as error:
            raise TrainingError(
                f"MMD tuning stopped: {error} The learning rate is likely too high; lower train.lr and begin again. "
                f"The best weights so far are kept."
            ) from error

    def _rows(self, found: Tensor, corrupted: Corrupted, training: bool) -> Tensor:
        """Return the row contributions (B,); `training` compares with the queue too."""
        key = corrupted.extras[_KEY]
        real, real_key = corrupted.target, key
        if training and len(self.queue):
            kept = int(self.filled)
            real = torch.cat([real, self.queue[:kept]])
            real_key = torch.cat([key, self.queue_class[:kept]])
        within = bool(self.classes and self.joint)
        weights = (self._weights(key, key), self._weights(key, real_key)) if within else None
        with torch.autocast(found.device.type, enabled=False):
            a, b = found.double(), real.double()
            kernel = kernel_for(self.kernel, b)
            return mmd_rows(a, b, kernel, weights=weights, paired=bool(corrupted.cond)).to(found.dtype)

    def _weights(self, rows: Tensor, columns: Tensor) -> Tensor:
        count = 1
        for classes in self.classes.values():
            count *= classes
        same = rows[:, None] == columns
        return (1.0 - self.joint) + self.joint * count * same.double()

    def before_step(self, denoiser: Denoiser, corrupted: Corrupted) -> None:
        """Remember the data of the batch, for the queue."""
        self._latest = (corrupted.target, corrupted.extras[_KEY])

    @torch.no_grad()
    def after_step(self, denoiser: Denoiser, step: int) -> None:
        """Put the newest features at the front of the queue; the oldest fall out."""
        size = len(self.queue)
        if not size or self._latest is None:
            return
        target, key = self._latest if self._gather is None else map(self._gather, self._latest)
        self.queue.copy_(torch.cat([target, self.queue])[:size])
        self.queue_class.copy_(torch.cat([key, self.queue_class])[:size])
        self.filled.add_(len(target)).clamp_(max=size)


class _Dropping(Wrapper):
    """Replaces the conditions of some rows by their null.

    Args:
        denoiser: Conditional denoiser.
        drop: Condition name -> (B,) bool.
    """

    def __init__(self, denoiser: Denoiser, drop: dict[str, Tensor]) -> None:
        super().__init__(denoiser)
        self.drop = drop

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Embed with the rows dropped that were drawn, unless the caller drops others."""
        own = {name: rows for name, rows in self.drop.items() if name in (cond or {})}
        return self.denoiser.embed(cond, batch, own if drop is None else drop)


def check_tunable(denoiser: Denoiser) -> None:
    """Refuse what cannot be tuned through its sampler.

    Raises:
        ConfigError: The process is categorical, or the denoiser has no parameters.
    """
    if not isinstance(denoiser.process, GaussianProcess):
        raise ConfigError(
            "MMD tuning needs a continuous model: tokens are picked at random, which has no gradient; this model's "
            "process is categorical."
        )
    if not any(p.requires_grad for p in denoiser.parameters()):
        raise ConfigError(f"{type(denoiser).__name__} has no weights to tune; give a trained network.")

r"""The loss of vector-quantised codecs, and how their codebook follows the encodings.

With encodings z, their code vectors e, the reconstruction x_rec = decode(z + sg(e - z)), means over values,

    loss = |x - x_rec|^2 + absolute |x - x_rec| + beta |z - sg(e)|^2
           + perceptual d(x, x_rec) - adversarial mean D(x_rec),

and |sg(z) - e|^2 where gradients train the codebook. Otherwise each code vector is the mean of the encodings that were
nearest to it, by moving averages of their number and sum. A code vector that no encoding chose for `restart` steps
becomes a random encoding of the last batch; before the first step all count as such, so the codebook starts as a
sample of encodings.

Source: van den Oord et al. 2017, arXiv:1711.00937, equation 3 and appendix A.1 (beta stands at the commitment, where
    the first code of VQ-GAN and diffusers' `VectorQuantizer(legacy=True)` have it at the other term); Dhariwal et al.
    2020, "Jukebox", section 3 (restarts), arXiv:2005.00341; Esser et al. 2021, arXiv:2012.09841, equations 4 to 6, with
    a fixed weight of the adversary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.codecs.options import VQOptions
from undiffuse.codecs.quantised import Quantised, TokenCodec
from undiffuse.denoisers.base import Denoiser
from undiffuse.metrics.perceptual import Distance
from undiffuse.noise import NoiseSource
from undiffuse.training.adversary import Adversary
from undiffuse.training.objectives import Corrupted, Losses, Objective, mean_over_items
from undiffuse.training.reconstruction import Reconstructor

_SMALLEST = 1e-6  # of a moving average of counts: below, the quotient of two numbers that underflow


class QuantisingObjective(Objective):
    """Trains a `TokenCodec` inside a `Reconstructor`.

    Args:
        codec: Read for its codebook, which the moving averages start from.
        options: Weights of the parts, and the codebook's rule.
        seeded: Whether the codebook is good already; else it is a sample of encodings after the first step.
        distance: In features, where `options.perceptual` is above 0.
        adversary: Where `options.adversarial` is above 0.

    Attributes:
        count, sums: Moving averages of the number (K,) and the sum (K, d) of a code vector's encodings, per step.
        idle: Steps since each was used (K,).
    """

    count: Tensor
    sums: Tensor
    idle: Tensor
    steps: Tensor

    def __init__(
        self,
        codec: TokenCodec,
        options: VQOptions,
        *,
        seeded: bool = False,
        distance: Distance | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        super().__init__()
        self.options, self.seeded, self.distance, self.adversary = options, seeded, distance, adversary
        codes = codec.codebook.detach().clone()
        self.register_buffer("count", torch.ones(len(codes)))
        self.register_buffer("sums", codes)
        self.register_buffer("idle", torch.zeros(len(codes), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw which encodings of an item could become code vectors."""
        codec, x = codec_of(denoiser), batch["x"]
        picks = min(codec.latent.shape[0], -(-len(codec.codebook) // batch_size))
        times = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        none = x.new_zeros(len(x), 0)
        return Corrupted(x=x, t=times, target=none, weight=none, extras={"pick": noise.uniform("data", 1, (picks,))})

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return the loss of each item; in training note which code vectors were used."""
        codec, options, x = codec_of(denoiser), self.options, corrupted.x
        told = codec.quantise(codec.encodings(x))
        made = codec.compose(told.passed)
        loss = mean_over_items((x - made).square())
        loss = loss + options.commitment * mean_over_items((told.encodings - told.chosen.detach()).square())
        if options.codebook == "gradient":
            loss = loss + mean_over_items((told.encodings.detach() - told.chosen).square())
        if options.absolute:
            loss = loss + options.absolute * mean_over_items((x - made).abs())
        loss = loss + self._beyond_values(codec, x, made)
        if torch.is_grad_enabled():
            self._note(told, corrupted.extras["pick"])
        return Losses(loss, None)

    def before_step(self, denoiser: Denoiser, corrupted: Corrupted) -> None:
        """Train the adversary on this batch and its reconstructions."""
        if self.adversary is None or not self._adversary_heard():
            return
        codec, x = codec_of(denoiser), corrupted.x
        with torch.no_grad():
            made = codec.decode(codec.encode(x))
        self.adversary.learn(frames_of(codec, x), frames_of(codec, made))

    @torch.no_grad()
    def after_step(self, denoiser: Denoiser, step: int) -> None:
        """Move the codebook."""
        codec = codec_of(denoiser)
        seen = list(zip(*self._seen, strict=True))
        self._seen = []
        used, sums = (_total(sum(parts[1:], parts[0])) for parts in seen[:2])
        candidates = _of_first(torch.cat(seen[2]))
        codes = codec.codebook
        if self.options.codebook == "ema":
            good = torch.isfinite(sums).all()
            self._move(self.count, used, good)
            self._move(self.sums, sums, good)
            held = (self.count > _SMALLEST)[:, None]
            codes.copy_(torch.where(held, self.sums / self.count.clamp(min=_SMALLEST)[:, None], codes))
        if self.options.restart:
            self._restart(codes, used, candidates)
        self.steps += 1

    def _beyond_values(self, codec: TokenCodec, x: Tensor, made: Tensor) -> Tensor:
        """Return the perceptual and the adversarial part, (B,)."""
        parts = x.new_zeros(len(x))
        flat, rendered = frames_of(codec, x), frames_of(codec, made)
        if self.distance is not None:
            parts = parts + self.options.perceptual * self.distance(flat, rendered).view(len(x), -1).mean(1)
        if self.adversary is not None and self._adversary_heard():
            parts = parts + self.options.adversarial * self.adversary(rendered).view(len(x), -1).mean(1)
        return parts

    def _adversary_heard(self) -> bool:
        return int(self.steps) >= self.options.adversarial_start

    def _note(self, told: Quantised, picks: Tensor) -> None:
        """Add up the encodings of each code vector (`score` is called once per part of a batch)."""
        encodings, numbers = told.encodings.detach().float(), told.numbers.flatten()
        rows = encodings.flatten(0, -2)
        used = torch.zeros_like(self.count).index_add_(0, numbers, torch.ones_like(numbers, dtype=torch.float32))
        sums = torch.zeros_like(self.sums).index_add_(0, numbers, rows)
        places = (picks * encodings.shape[1]).long().clamp(max=encodings.shape[1] - 1)
        chosen = encodings.gather(1, places[..., None].expand(-1, -1, encodings.shape[2]))
        self._seen.append((used, sums, chosen.flatten(0, 1)))

    def _move(self, average: Tensor, now: Tensor, good: Tensor) -> None:
        moved = torch.lerp(now, average, self.options.decay)
        average.copy_(torch.where(good, moved, average))

    def _restart(self, codes: Tensor, used: Tensor, candidates: Tensor) -> None:
        """Replace the code vectors without use by encodings, one each, as far as there are candidates."""
        self.idle.copy_(torch.where(used > 0, 0, self.idle + 1))
        dead = self.idle >= self.options.restart
        if not self.seeded:
            dead = dead | (self.steps == 0)
        number = dead.cumsum(0) - 1
        dead = dead & (number < len(candidates)) & torch.isfinite(candidates).all()
        fresh = candidates[number.clamp(0, len(candidates) - 1)]
        codes.data.copy_(torch.where(dead[:, None], fresh, codes))
        self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
        self.count.copy_(torch.where(dead, 1.0, self.count))
        self.idle.copy_(torch.where(dead, 0, self.idle))


def codec_of(denoiser: Denoiser) -> TokenCodec:
    """Return the codec that a `Reconstructor` trains."""
    assert isinstance(denoiser, Reconstructor) and isinstance(denoiser.codec, TokenCodec)
    return denoiser.codec


def frames_of(codec: TokenCodec, x: Tensor) -> Tensor:
    """Return items (B, C, *) as they are, and video (B, F, C, H, W) as frames (B * F, C, H, W)."""
    return x.flatten(0, 1) if codec.data.kind == "video" else x


def _total(tensor: Tensor) -> Tensor:
    """Return the sum over all processes."""
    group = torch.distributed
    if group.is_available() and group.is_initialized():
        group.all_reduce(tensor)
    return tensor


def _of_first(tensor: Tensor) -> Tensor:
    """Return the first process' tensor in all of them."""
    group = torch.distributed
    if group.is_available() and group.is_initialized():
        group.broadcast(tensor, 0)
    return tensor

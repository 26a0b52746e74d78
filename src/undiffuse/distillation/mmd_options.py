"""Options of MMD fine-tuning, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from undiffuse.limits import share
from undiffuse.words import option


@dataclass(frozen=True, kw_only=True)
class MMDOptions:
    """Fine-tune a denoiser through its sampler, that of `sample.*`, until samples and data agree in features."""

    kind: Literal["mmd"] = "mmd"
    features: str = option(
        "pixels",
        "what samples and data are compared in: pixels (latents, where the model has a codec), classifier (one trained "
        "on the labels first), classifier:FOLDER, random, dinov2:FOLDER, inception:FILE, clip:FOLDER, model:FOLDER",
    )
    kernel: Literal["rbf-mix", "cubic", "linear", "gaussian", "rational-quadratic", "energy"] = option(
        "rbf-mix", "kernel of the distance; cubic is that of KID"
    )
    more_steps: tuple[int, ...] = option((), "further numbers of steps, each tuned in turn with sample.steps")
    queue: int = option(0, "features of real items kept from earlier batches, to compare each batch with more")
    joint: float = option(
        0.5, "labelled data: share of the kernel that compares samples and data within each class; 0 ignores classes"
    )
    drop: float = option(0.1, "share of labels and vector conditions dropped, so that unconditional samples stay good")
    dropout: bool = option(False, "leave the network's dropout on; it then learns to be a noisy sampler")
    checkpoint: bool = option(True, "recompute each network call in the backward pass: memory of one call, not of all")

    def __post_init__(self) -> None:
        share(self, "joint", "drop")
        if self.queue < 0:
            raise ValueError(f"queue={self.queue} must not be negative; 0 keeps none.")
        if any(steps < 1 for steps in self.more_steps):
            raise ValueError(f"more_steps={self.more_steps} holds a number below 1; give numbers of steps, such as 3.")

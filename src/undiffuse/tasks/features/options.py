"""What a probe says about its head. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from undiffuse.limits import at_least_one, not_negative, positive
from undiffuse.words import did_you_mean, option

HEAD_NAMES = ("ridge", "logistic", "knn", "mlp", "cnn", "attention")
CLOSED = ("ridge", "logistic", "knn")  # one answer, without training by steps: quick enough to be fitted many times


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How a head on frozen features is trained. A head leaves alone what is not its own.

    Raises:
        ValueError: An unknown head, or a number out of its range.
    """

    head: Literal["ridge", "logistic", "knn", "mlp", "cnn", "attention"] = option(
        "ridge", "ridge, logistic, knn, mlp (on pooled features), cnn, attention (on maps)"
    )
    alpha: float | None = option(
        None, "ridge: penalty, none: the best by leaving one out; logistic: penalty of the summed loss, none: 1"
    )
    neighbours: int = option(5, "knn: nearest items that vote")
    epochs: int = option(30, "mlp, cnn, attention: passes over the items")
    batch: int = option(64, "mlp, cnn, attention: items of a step")
    rate: float = option(1e-3, "mlp, cnn, attention: learning rate of AdamW, which falls by a cosine to 0")
    width: int | None = option(None, "mlp: hidden features, none: 4 F, 2048 at most; attention: none: C, 256 at most")
    depth: int = option(2, "attention: transformer blocks; cnn: convolutions")
    cells: int = option(8, "attention: cells on each axis of a map, each a token")
    seed: int = option(0, "first weights and order of the items")

    def __post_init__(self) -> None:
        if self.head not in HEAD_NAMES:
            raise ValueError(
                f"head={self.head!r} is unknown; choose one of {', '.join(HEAD_NAMES)}."
                f"{did_you_mean(self.head, HEAD_NAMES)}"
            )
        at_least_one(self, "neighbours", "epochs", "batch", "depth", "cells", "width")
        positive(self, "rate")
        not_negative(self, "alpha")

    @property
    def reads_maps(self) -> bool:
        """Whether the head reads maps; the others read flat features."""
        return self.head in ("cnn", "attention")

"""Options of correspondence. Torch-free: `--help` reads this file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from undiffuse.limits import at_least_one, check_counts
from undiffuse.words import did_you_mean, option

Feature = Literal["diffusion", "dino", "patch", "position"]
METHODS = ("nearest", "soft-argmax", "window")
OWNERS = dict.fromkeys(("layers", "t", "draws", "cond", "pca"), "diffusion") | {"dino_size": "dino", "patch": "patch"}
"""Option -> the feature that alone reads it."""


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """Which features describe a picture, how they are fused, and how a match is chosen.

    Raises:
        ValueError: An unknown word, a number out of range, or options that contradict each other.
    """

    features: Sequence[str] | None = option(
        None, "diffusion, dino, patch (raw pixels), position; none: diffusion, and dino where one is named"
    )
    alpha: float | Sequence[float] | None = option(
        None, "weight of the first of two features, the second has 1 - alpha; or one for each; none: equal ones"
    )
    layers: Sequence[str] | None = option(None, "blocks of the network; none: the decoder's coarse ones")
    t: float | Sequence[float] = option(0.1, "time at which the diffusion features are read, or several")
    draws: int = option(1, "noise draws that are averaged")
    cond: Mapping[str, Any] | None = option(None, "condition of the model, such as a prompt or a label; none: the null")
    size: int | Sequence[int] | None = option(
        None,
        "pixels to which pictures are scaled for all but DINO, one side or height and width; none: the model's own",
    )
    pca: int = option(256, "dimensions of the co-PCA of diffusion layers with more channels than that; 0: none")
    dino: str | None = option(None, "a DINO network: a folder, or a name on the hub such as facebook/dinov2-base")
    dino_size: int = option(840, "pixels of the longer side for DINO, rounded to whole patches")
    patch: int = option(5, "side of raw patches in pixels of the scaled picture, odd")
    cells: int | None = option(None, "cells of the longer side of the grid; none: that of the finest features")
    method: Literal["nearest", "soft-argmax", "window"] = option(
        "nearest", "nearest: centre of the best cell; soft-argmax: mean over all; window: mean near the best"
    )
    temperature: float = option(0.04, "of the similarities, for soft-argmax, window and the confidence")
    window: int = option(7, "cells on each side of the best one that `window` averages over")
    mutual: bool = option(False, "drop points whose match does not lead back to them")
    ratio: float | None = option(
        None, "drop points with best / second best distance above this, outside of the next cells; 0.9 is usual"
    )
    batch_size: int = option(16, "pictures and draws computed at once; changes speed and memory only")
    seed: int = option(0, "of the noise that is added to pictures, the same for both")

    def __post_init__(self) -> None:
        self._check_features()
        self._check_numbers()
        self.weights  # noqa: B018 - refuses what does not fit

    def _check_features(self) -> None:
        for name in self.sources:
            _check_word("features", name, get_args(Feature))
        _check_word("method", self.method, METHODS)
        if len(set(self.sources)) != len(self.sources):
            raise ValueError(f"features={', '.join(self.sources)} names one twice.")
        if ("dino" in self.sources) != (self.dino is not None):
            raise ValueError(
                "the feature dino needs a network: dino='facebook/dinov2-base', or a folder."
                if self.dino is None
                else f"dino={self.dino!r} has no use without the feature dino; name it among the features."
            )
        for name, owner in OWNERS.items():
            if owner not in self.sources and getattr(self, name) != getattr(MatchOptions, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} is read by the feature {owner} alone; name it among the features, "
                    f"or leave {name} out."
                )

        if self.size is not None and self.sources == ("dino",):
            raise ValueError(f"size={self.size} has no use with the feature dino alone; use dino_size.")

    def _check_numbers(self) -> None:
        if self.window != MatchOptions.window and self.method != "window":
            raise ValueError(f"window={self.window} has no use with method={self.method!r}; use method='window'.")
        at_least_one(self, "draws", "dino_size", "patch", "window", "batch_size")
        check_counts(least=2, cells=self.cells)
        check_counts(least=0, pca=self.pca)
        if self.patch % 2 == 0:
            raise ValueError(f"patch={self.patch} has no middle pixel; use an odd number.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0.")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} must lie in (0, 1].")

    @property
    def sources(self) -> tuple[str, ...]:
        """The features by name."""
        if self.features is None:
            return ("diffusion",) if self.dino is None else ("diffusion", "dino")
        return (self.features,) if isinstance(self.features, str) else tuple(self.features)

    @property
    def times(self) -> tuple[float, ...]:
        """The times of diffusion features."""
        return tuple(self.t) if isinstance(self.t, Sequence) else (float(self.t),)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each feature, which sum to 1.

        Raises:
            ValueError: Weights that do not fit the features.
        """
        count = len(self.sources)
        if not count:
            raise ValueError(f"features is empty; name some of {', '.join(get_args(Feature))}.")
        if self.alpha is None:
            return (1.0 / count,) * count
        if count == 1:
            raise ValueError(
                f"alpha={self.alpha} weighs several features and there is one, {self.sources[0]}; omit it."
            )
        given = (float(self.alpha),) if not isinstance(self.alpha, Sequence) else tuple(map(float, self.alpha))
        if not all(math.isfinite(value) and 0 <= value <= 1 for value in given):
            raise ValueError(f"alpha={self.alpha} must lie in [0, 1].")
        if len(given) == 1 and count == 2:
            given = (given[0], 1.0 - given[0])
        if len(given) != count:
            raise ValueError(
                f"alpha={self.alpha} does not fit {count} features, {', '.join(self.sources)}; give "
                "one number for two features, or one for each."
            )
        if not sum(given) > 0:
            raise ValueError(f"alpha={self.alpha} leaves no feature; one must be above 0.")
        return tuple(value / sum(given) for value in given)


def _check_word(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = did_you_mean(str(value), known)
        raise ValueError(f"{name} {value!r} is unknown; choose among {', '.join(known)}.{near}")

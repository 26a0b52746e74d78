r"""How a codec with a codebook does on data: which code vectors are used, how evenly, and what reconstruction loses.

With p_k the share of tokens that are k, the perplexity is exp(-sum_k p_k ln p_k): K where all K are used alike, 1 where
one is. Both figures depend on how many tokens were seen: few tokens cannot use many code vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.codecs.quantised import TokenCodec, nearest, require_finite
from undiffuse.errors import ConfigError
from undiffuse.events import Advanced, Finished, Listener, Started, silent

if TYPE_CHECKING:
    from undiffuse.data import Dataset

_ROWS = 128


@dataclass(frozen=True)
class CodebookHealth:
    """Figures of a codebook on some data.

    Args:
        codes: Code vectors K.
        usage: Share of them that occur, in (0, 1].
        perplexity: exp of the entropy of the tokens, between 1 and K.
        error: Mean squared error of reconstructions per value, in model units (images in [-1, 1]).
        distance: Mean squared distance of encodings to their code vectors, per number.
        items, tokens: How many were looked at.
        counts: How often each code vector occurs.
    """

    codes: int
    usage: float
    perplexity: float
    error: float
    distance: float
    items: int
    tokens: int
    counts: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON types, the counts left out."""
        names = ("codes", "usage", "perplexity", "error", "distance", "items", "tokens")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return (
            f"{self.usage:.1%} of {self.codes} codes used, perplexity {self.perplexity:.1f}, squared error "
            f"{self.error:.4g} on {self.items} items"
        )


def require_codebook(codec: Codec) -> TokenCodec:
    """Return a codec that has a codebook.

    Raises:
        ConfigError: This one has none.
    """
    if not isinstance(codec, TokenCodec):
        kind = getattr(codec.options, "kind", type(codec).__name__)
        raise ConfigError(
            f"this codec ({kind}) has no codebook: its latents are numbers; train one with codec.kind=vq, or give a "
            f"VQModel."
        )
    return codec


@torch.no_grad()
def codebook_health(
    codec: Codec, dataset: Dataset, *, items: int | None = None, device: str = "cpu", listener: Listener = silent
) -> CodebookHealth:
    """Return usage, perplexity and reconstruction error of a codec on a data set.

    Args:
        codec: A codec with a codebook, on `device`.
        dataset: Items in model units.
        items: Look at the first so many only.
        device: Where the codec is.
        listener: Hears about progress.

    Raises:
        ConfigError: The codec has no codebook, or the data are of another shape.
        ValueError: The encodings are not finite.
    """
    codec = require_codebook(codec)
    if dataset.spec.shape != codec.data.shape or dataset.spec.kind != codec.data.kind:
        raise ConfigError(
            f"the codec codes {codec.data.kind} data of shape {codec.data.shape}, these are {dataset.spec.kind} data "
            f"of shape {dataset.spec.shape}; set data.size and data.channels as in its training."
        )
    count = min(len(dataset), items or len(dataset))
    counts = torch.zeros(codec.latent.categories, dtype=torch.int64)
    error, distance = 0.0, 0.0
    listener(Started("codes", count, "item"))
    done = 0
    for rows in torch.arange(count).split(_ROWS):
        x = dataset.batch(rows)["x"].to(device)
        numbers, lost, gap = _look(codec, x)
        counts += torch.bincount(numbers, minlength=len(counts))
        error, distance, done = error + lost, distance + gap, done + len(rows)
        listener(Advanced("codes", done))
    listener(Finished("codes"))
    total = int(counts.sum())
    return CodebookHealth(
        codes=len(counts),
        usage=float((counts > 0).double().mean()),
        perplexity=perplexity(counts),
        error=error / count,
        distance=distance / count,
        items=count,
        tokens=total,
        counts=tuple(counts.tolist()),
    )


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of the shares that counts (K,) are."""
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def _look(codec: TokenCodec, x: Tensor) -> tuple[Tensor, float, float]:
    """Return tokens, and the sums over items of reconstruction error and of quantisation error."""
    encodings = require_finite(codec.encodings(x))
    numbers = nearest(encodings, codec.codebook)
    chosen = codec.codebook[numbers]
    lost = (codec.compose(chosen) - x).double().square().flatten(1).mean(1).sum()
    gap = (encodings - chosen).double().square().flatten(1).mean(1).sum()
    return numbers.flatten().cpu(), float(lost), float(gap)

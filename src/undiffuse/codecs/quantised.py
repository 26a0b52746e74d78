r"""Codecs whose latents are tokens: every vector of an item's encoding becomes the number of the nearest code vector.

Straight-through: in training the decoder is given z + stop-gradient(e - z), which has the value of the code vector e
and the gradient of the encoding z. Where the encoder is frozen that would be lost, and the gradient is that of e.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", section 3.1 and 3.2, arXiv:1711.00937.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from undiffuse.cache import content_hash
from undiffuse.codecs.codec import Codec
from undiffuse.errors import CheckpointError
from undiffuse.spec import DataSpec

_ELEMENTS = 1 << 24  # of a table of distances that is made at once


class Quantised(NamedTuple):
    """Code vectors with the straight-through gradient (..., d), their numbers (...), and what they stand for (..., d).

    `chosen` are the code vectors themselves, `encodings` what was to be quantised.
    """

    passed: Tensor
    numbers: Tensor
    chosen: Tensor
    encodings: Tensor


class TokenCodec(Codec):
    """Base of codecs with a codebook; `latent` has kind "tokens" and a `grid`.

    Tokens follow each other frame by frame, row by row. Two codebooks give one number different meanings, so a trained
    codec is *sealed*: `latent.codebook` then names its codebook, and a denoiser of other tokens is refused.
    """

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """Code vectors (K, d)."""

    @abstractmethod
    def decoding(self) -> list[nn.Module]:
        """Return the parts of the decoder, which can be trained without a change of any encoding."""

    @abstractmethod
    def with_codebook(self, vectors: Tensor) -> TokenCodec:
        """Return a codec with the same weights and other code vectors (K, d); tokens then mean something else."""

    def encodings(self, x: Tensor) -> Tensor:
        """Map data (B, *data.shape) to vectors before quantisation (B, L, d)."""
        code = self._per_frame(self.code, x)
        return code.movedim(self.data.channel_axis + 1, -1).flatten(1, -2)

    def quantise(self, encodings: Tensor) -> Quantised:
        """Quantise encodings (..., d)."""
        numbers = nearest(encodings, self.codebook)
        chosen = self.codebook[numbers].to(encodings.dtype)
        passed = encodings + (chosen - encodings).detach() if encodings.requires_grad else chosen
        return Quantised(passed, numbers, chosen, encodings)

    def compose(self, vectors: Tensor) -> Tensor:
        """Map code vectors (B, L, d) to data (B, *data.shape)."""
        code = vectors.unflatten(1, self.latent.grid).movedim(-1, self.data.channel_axis + 1)
        return self._per_frame(self.render, code)

    def encode(self, x: Tensor) -> Tensor:
        """Map data (B, *data.shape) to tokens, int64 (B, L).

        Raises:
            ValueError: The encodings are not finite.
        """
        return nearest(require_finite(self.encodings(x)), self.codebook)

    def decode(self, z: Tensor) -> Tensor:
        """Map tokens (B, L) to data (B, *data.shape)."""
        return self.compose(self.codebook[z])

    def calibrate(self, x: Tensor) -> None:
        """Do nothing: tokens have no scale."""

    def seal(self) -> None:
        """Name the codebook as it is now in `latent`."""
        self.latent = replace(self.latent, codebook=self.identity())

    def identity(self) -> str:
        """Return a name of the codebook: another one wherever numbers could mean other vectors."""
        return content_hash({"codebook": self.codebook.detach().float()}, {})

    def saved_seal(self) -> str:
        """Return the name under which the codebook is saved: in half precision that of its rounded vectors."""
        rounded = bool(self.latent.codebook) and self.codebook.dtype in (torch.float16, torch.bfloat16)
        return self.identity() if rounded else self.latent.codebook

    def check_seal(self) -> None:
        """Refuse a codebook that is not the one that `latent` names.

        Raises:
            CheckpointError: It is another, so that tokens mean something else.
        """
        if self.latent.codebook and self.latent.codebook != self.identity():
            raise CheckpointError(
                "the codebook is not the one that this model's tokens are numbers of (was it rebuilt?); tokens changed "
                "their meaning. Put the old codec back, or train the denoiser again on the new one."
            )


def require_finite(encodings: Tensor) -> Tensor:
    """Return encodings as they are.

    Raises:
        ValueError: They are not finite.
    """
    if not bool(torch.isfinite(encodings).all()):
        raise ValueError("the codec's encodings are not finite; look for extreme values in the data or its weights.")
    return encodings


def check_codebook(spec: DataSpec | None, codec: Codec | None) -> None:
    """Refuse a codec whose tokens are not those that `spec` describes.

    Raises:
        ValueError: Numbers of another codebook, or another number of them.
    """
    if spec is None or not isinstance(codec, TokenCodec):
        return
    theirs = codec.latent
    if spec.categories != theirs.categories:
        raise ValueError(
            f"the codec has {theirs.categories} code vectors, the denoiser was trained on tokens of {spec.categories}; "
            f"give the codec that it was trained with."
        )
    if spec.codebook and theirs.codebook and spec.codebook != theirs.codebook:
        raise ValueError(
            "the denoiser was trained on numbers of another codebook (was the codec rebuilt since?); tokens changed "
            "their meaning. Give the codec that it was trained with, or train a denoiser on the new one."
        )


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the numbers (...) of the code vectors (K, d) nearest to vectors (..., d); of equal ones the first.

    Distances are computed in float32 at least, around the codebook's mean: |e|^2 / 2 - <z, e> loses digits where both
    are far from 0.
    """
    dtype = torch.promote_types(codebook.dtype, torch.float32)
    codes = codebook.detach().to(dtype)
    center = codes.mean(0)
    codes = codes - center
    rows = vectors.detach().to(dtype).flatten(0, -2) - center
    half = 0.5 * codes.square().sum(1)
    found = [(half - part @ codes.T).argmin(1) for part in rows.split(max(1, _ELEMENTS // len(codes)))]
    return torch.cat(found).view(vectors.shape[:-1]) if found else rows.new_zeros(vectors.shape[:-1], dtype=torch.int64)

"""A vector-quantised autoencoder (VQ-VAE, VQ-GAN): the encoder and decoder of `Autoencoder` around a codebook.

It is trained by `undiffuse.training.quantising`, its codebook rebuilt by `undiffuse.training.refit`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from undiffuse.codecs.autoencoder import coding_sides
from undiffuse.codecs.options import VQOptions
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.spec import DataSpec


class VQCodec(TokenCodec):
    """Residual encoder and decoder, generic in 1, 2 and 3 dimensions, with a codebook between them.

    The codebook is a parameter where gradients train it, and a buffer where moving averages do.

    Args:
        data: Signals, images, volumes or video (frame by frame).
        options: Widths, sizes and codebook.

    Source: van den Oord et al. 2017, arXiv:1711.00937; Esser et al. 2021, "Taming Transformers for High-Resolution
        Image Synthesis", section 3.1, arXiv:2012.09841.
    """

    vectors: Tensor

    def __init__(self, data: DataSpec, options: VQOptions) -> None:
        super().__init__(data, options, channels=options.channels, factor=2**options.halvings, codes=options.codes)
        self.encoder, self.decoder = coding_sides(data, options, options.channels)
        first = torch.randn(options.codes, options.channels)
        if options.codebook == "gradient":
            self.vectors = nn.Parameter(first)
        else:
            self.register_buffer("vectors", first)

    @property
    def codebook(self) -> Tensor:
        """Code vectors (K, d)."""
        return self.vectors

    def code(self, x: Tensor) -> Tensor:
        """Return the encodings before they are quantised."""
        return self.encoder(x)

    def render(self, code: Tensor) -> Tensor:
        """Decode code vectors."""
        return self.decoder(code)

    def decoding(self) -> list[nn.Module]:
        """Return the parts of the decoder."""
        return [self.decoder]

    def with_codebook(self, vectors: Tensor) -> VQCodec:
        """Return a codec with the same weights and other code vectors (K, d); tokens then mean something else."""
        made = VQCodec(self.data, replace(self.options, codes=len(vectors)))
        weights = {key: part for key, part in self.state_dict().items() if key != "vectors"}
        made.load_state_dict(weights | {"vectors": vectors})
        return made

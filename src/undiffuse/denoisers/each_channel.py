"""`EachChannel`: a denoiser of grey pictures asked about every channel of a picture by itself."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.each_part import EachPart


class EachChannel(EachPart):
    """A prior of pictures with one channel as one of pictures with several that say nothing of each other.

    So a prior of real MR pictures restores complex ones, real and imaginary part by themselves, and a prior of grey
    pictures colour. It costs the evaluations of the wrapped denoiser, on as many more rows.

    Args:
        denoiser: Of items (1, *size).
        channels: Of the items to be asked about.

    Raises:
        ValueError: The data are tokens or have several channels, or there are no channels.

    Source: Chung and Ye 2022, "Score-based diffusion models for accelerated MRI", arXiv:2110.05243, section 3.3.
    """

    def __init__(self, denoiser: Denoiser, channels: int) -> None:
        if channels < 1 or (denoiser.spec is not None and denoiser.spec.shape[0] != 1):
            seen = "any shape" if denoiser.spec is None else denoiser.spec.shape
            raise ValueError(f"channels={channels} of a prior of {seen}: give 1 or more, and a prior of one channel.")
        super().__init__(denoiser, channels)
        if self.spec is not None:
            self.spec = replace(self.spec, shape=(channels, *self.spec.shape[1:]))

    def rows(self, x: Tensor) -> Tensor:
        """Return every channel as a picture of one."""
        return x.flatten(0, 1)[:, None]

"""`EachSlice`: a denoiser of pictures asked about every slice of a volume by itself."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.each_part import EachPart


class EachSlice(EachPart):
    """A prior of pictures (C, H, W) as one of volumes (Z, C, H, W) whose slices say nothing of each other.

    What neighbouring slices have in common is left to what is built on it; see `restore`'s method "diffusion-mbir".

    Args:
        denoiser: Of pictures.
        slices: Z.
        batch: Slices computed at once.

    Raises:
        ValueError: The data are no pictures, or there are no slices.

    Source: Chung et al. 2023, "Solving 3D inverse problems using pre-trained 2D diffusion models", arXiv:2211.10655.
    """

    def __init__(self, denoiser: Denoiser, slices: int, batch: int = 64) -> None:
        if slices < 1 or batch < 1:
            raise ValueError(f"slices={slices} and batch={batch} must be at least 1.")
        if denoiser.spec is not None and denoiser.spec.kind != "image":
            raise ValueError(f"slices are pictures; this model's data are of kind {denoiser.spec.kind!r}.")
        super().__init__(denoiser, slices, batch)
        if self.spec is not None:
            self.spec = replace(self.spec, kind="video", shape=(slices, *self.spec.shape), sizes=())

    def rows(self, x: Tensor) -> Tensor:
        """Return every slice as an item."""
        return x.flatten(0, 1)

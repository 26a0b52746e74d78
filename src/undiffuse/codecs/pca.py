r"""Principal components of patches: the codec in closed form.

The latents of a patch are its coordinates in the basis of leading components, all on one scale: so it is an
orthogonal projection, an isometry (up to that scale) of what it keeps, and exact where it keeps everything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.codecs.codec import SPATIAL_AXES, Codec
from undiffuse.codecs.options import PCAOptions
from undiffuse.spec import DataSpec

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


class PatchPCA(Codec):
    """Coordinates of non-overlapping patches in their leading principal components.

    Args:
        data: Signals, images, volumes or video.
        options: Side of a patch.
        channels: Components kept, at most C * patch^dims.

    Raises:
        ValueError: Sizes that the patch does not divide, or more components than values in a patch.
    """

    basis: Tensor
    center: Tensor

    def __init__(self, data: DataSpec, options: PCAOptions, *, channels: int) -> None:
        super().__init__(data, options, channels=channels, factor=options.patch)
        self.dims = SPATIAL_AXES[data.kind]
        values = data.channels * options.patch**self.dims
        if not 1 <= channels <= values:
            raise ValueError(f"codec.channels={channels}; a patch has {values} values, so keep 1 to {values}.")
        self.register_buffer("basis", torch.eye(values)[:channels])  # rows are orthonormal
        self.register_buffer("center", torch.zeros(values))

    def code(self, x: Tensor) -> Tensor:
        """Return basis (patch - center)."""
        offset = -(self.basis @ self.center)
        return _CONV[self.dims](x, self._kernel(), offset, stride=self.factor)

    def render(self, code: Tensor) -> Tensor:
        """Return center + basis^T code."""
        patches = _TRANSPOSED[self.dims](code, self._kernel(), stride=self.factor)
        repeats = (size // self.factor for size in patches.shape[2:])
        return patches + self.center.view(self._patch_shape()).repeat(1, *repeats)

    def _patch_shape(self) -> tuple[int, ...]:
        return (self.data.channels, *[self.factor] * self.dims)

    def _kernel(self) -> Tensor:
        return self.basis.view(-1, *self._patch_shape())


@torch.no_grad()
def fit_pca(options: PCAOptions, data: DataSpec, x: Tensor) -> PatchPCA:
    """Return the codec fitted to items `x` (M, *data.shape) in model units.

    Raises:
        ValueError: As `PatchPCA`.
    """
    PatchPCA(data, options, channels=1)  # checks sizes before anything is computed
    patches = _patches(x.flatten(0, 1) if data.kind == "video" else x, options.patch)
    center = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - center).T @ (patches - center) / len(patches))
    variances, components = values.flip(0).clamp_min(0), vectors.flip(1).T  # leading ones first
    codec = PatchPCA(data, options, channels=options.channels or _needed(variances, options.share))
    kept = len(codec.basis)
    codec.basis.copy_(components[:kept])
    codec.center.copy_(center)
    codec.scale(torch.zeros(kept), variances[:kept].mean().sqrt().expand(kept))
    return codec


def _patches(x: Tensor, side: int) -> Tensor:
    """Return all patches of (N, C, *) as float64 rows (N * patches, C * side^dims)."""
    dims = x.ndim - 2
    for axis in range(2, x.ndim):
        x = x.unfold(axis, side, side)
    places = [0, *range(2, 2 + dims)]
    return x.permute(*places, 1, *range(2 + dims, x.ndim)).flatten(dims + 1).flatten(0, dims).double()


def _needed(variances: Tensor, share: float) -> int:
    """Return how many leading components hold `share` of the variance."""
    held = variances.cumsum(0) / variances.sum().clamp_min(1e-300)
    return min(len(variances), int((held < share - 1e-12).sum()) + 1)

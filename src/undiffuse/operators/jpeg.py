"""JPEG as an operator: what a picture becomes by coding and decoding it, without the entropy coder, which is exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.operators.base import Operator, Shape, image_shape
from undiffuse.operators.pointwise import straight_through

# The tables of the standard (ITU-T T.81, annex K) at quality 50, row by row.
_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 "
    "99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"
)
# Y, Cb - 128 and Cr - 128 from R, G, B (JFIF).
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735891647856, -0.331264108352144, 0.5),
    (0.5, -0.418687589158345, -0.081312410841655),
)


class JPEG(Operator):
    """Round the 8 x 8 cosine coefficients of a grey or RGB picture by the tables of a quality.

    Pictures whose sides are no multiples of the block are continued by their last row and column. The result is the
    decoded picture, not rounded to bytes. The approximate inverse is the identity.

    Args:
        in_shape: (1, H, W) or (3, H, W).
        quality: 1 to 100, as Pillow's.
        subsampling: Store chroma at half the size (4:2:0), as most files do.
        straight_through: Let gradients pass as if nothing were rounded; else they are 0.

    Raises:
        ValueError: The quality is outside 1 to 100, or there are other than 1 or 3 channels.
    """

    kind = "jpeg"
    has_pinv = True

    def __init__(
        self, in_shape: Shape, quality: int = 20, subsampling: bool = True, straight_through: bool = True
    ) -> None:
        lead, self._height, self._width = image_shape(in_shape, "jpeg")
        if len(lead) != 1 or lead[0] not in (1, 3):
            raise ValueError(f"jpeg works on grey or RGB pictures, (1, H, W) or (3, H, W); got {tuple(in_shape)}.")
        tables = torch.stack([quantisation_table(name, quality) for name in ("luma", "chroma")])
        super().__init__(
            in_shape,
            in_shape,
            settings={"quality": quality, "subsampling": subsampling, "straight_through": straight_through},
            derived={
                "tables": tables.double(),
                "dct": dct_matrix(8),
                "colours": torch.tensor(_YCBCR, dtype=torch.float64),
                "back": torch.linalg.inv(torch.tensor(_YCBCR, dtype=torch.float64)),
            },
        )
        self.subsampling = subsampling and lead[0] == 3
        self.differentiable = straight_through

    def apply(self, x: Tensor) -> Tensor:
        grey = 127.5 * (x + 1)
        block = 16 if self.subsampling else 8
        grey = functional.pad(grey, (0, -self._width % block, 0, -self._height % block), mode="replicate")
        decoded = self._code(grey - 128, 0) + 128 if self.in_shape[0] == 1 else self._colour(grey)
        decoded = decoded[..., : self._height, : self._width].clamp(0, 255)
        return decoded / 127.5 - 1

    def pinv(self, y: Tensor) -> Tensor:
        """Return y, the decoded picture."""
        return y

    def _colour(self, rgb: Tensor) -> Tensor:
        planes = torch.einsum("mc,bchw->bmhw", self._get("colours", rgb), rgb)
        luma = self._code(planes[:, :1] - 128, 0) + 128
        chroma = planes[:, 1:]
        chroma = functional.avg_pool2d(chroma, 2) if self.subsampling else chroma
        chroma = self._code(chroma, 1)
        if self.subsampling:
            chroma = chroma.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return torch.einsum("mc,bchw->bmhw", self._get("back", rgb), torch.cat((luma, chroma), 1))

    def _code(self, plane: Tensor, table: int) -> Tensor:
        """Round the coefficients of every block of (B, C, H, W), values around 0."""
        dct, steps = self._get("dct", plane), self._get("tables", plane)[table]
        blocks = plane.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # (B, C, h, w, 8, 8)
        scaled = dct @ blocks @ dct.mT / steps
        rounded = scaled.round()
        rounded = straight_through(rounded, scaled) if self.differentiable else rounded
        blocks = dct.mT @ (rounded * steps) @ dct
        return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def quantisation_table(name: str, quality: int) -> Tensor:
    """Return the (8, 8) table "luma" or "chroma" at a quality of 1 to 100, int64.

    Raises:
        ValueError: The quality is out of range.
    """
    if isinstance(quality, bool) or not 1 <= quality <= 100 or quality != int(quality):
        raise ValueError(f"quality={quality} of jpeg must be a whole number from 1 to 100.")
    base = torch.tensor([int(step) for step in (_LUMA if name == "luma" else _CHROMA).split()]).view(8, 8)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((base * scale + 50) // 100).clamp(1, 255)


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix (size, size), float64."""
    k = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (k + 0.5) * k[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def jpeg(
    shape: Shape, *, quality: int = 20, subsampling: bool = True, straight_through: bool = True, seed: int = 0
) -> JPEG:
    """Return JPEG of a quality."""
    return JPEG(shape, quality, subsampling, straight_through)

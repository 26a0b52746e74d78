"""The Inception network of published FIDs (the TensorFlow graph of 2015-12-05, without its last layers).

Its weights are not shipped: give them as a safetensors file, with the names of the tensors as in the widely used
PyTorch port of that graph (pt_inception-2015-12-05). It differs from the usual Inception v3 in its average pools, which
do not count their padding, and in a max pool in the last block.

Source: Szegedy et al. 2016, "Rethinking the Inception architecture", arXiv:1512.00567; Heusel et al. 2017,
    arXiv:1706.08500, for its use. This definition was checked for shapes and for the published number of parameters;
    features of the published weights were not compared with published figures.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.errors import CheckpointError

SIDE = 299  # pixels
_UNUSED = ("fc.", "AuxLogits.")


def load_inception(path: str | Path) -> Inception:
    """Return the network with the weights of a safetensors file.

    Raises:
        CheckpointError: The file is missing, a pickle, damaged, or of another network.
    """
    from undiffuse.models.folder import read_tensors

    if not Path(path).is_file():
        raise CheckpointError(
            f"there is no Inception file {path}; make it of pt_inception-2015-12-05, where you trust that: "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'inception.safetensors')."
        )
    state = {name: tensor for name, tensor in read_tensors(Path(path)).items() if not name.startswith(_UNUSED)}
    with torch.device("meta"):
        network = Inception()
    expected = network.state_dict()
    # Ports differ in whether they kept the number of batches seen, which plays no part in features.
    state |= {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith("num_batches_tracked")}
    wrong = sorted(expected.keys() ^ state.keys()) or [
        name for name, tensor in expected.items() if tensor.shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} is not the Inception network of FID: {len(wrong)} tensor(s) differ, such as {wrong[0]}; convert "
            "pt_inception-2015-12-05 to safetensors."
        )
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False)


class Inception(nn.Module):
    """Maps images (B, 3, 299, 299) in [-1, 1] to features (B, 2048), the last pooling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _A(192, pool=32)
        self.Mixed_5c = _A(256, pool=64)
        self.Mixed_5d = _A(288, pool=64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, 128)
        self.Mixed_6c = _C(768, 160)
        self.Mixed_6d = _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280, max_pool=False)
        self.Mixed_7c = _E(2048, max_pool=True)

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature maps, (B, 2048, 8, 8) for images of 299 x 299 pixels."""
        for name, block in self.named_children():
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = F.max_pool2d(x, 3, stride=2)
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, 2048)."""
        return self.maps(x).mean(dim=(2, 3))


class _Conv(nn.Module):
    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _wide(width_in: int, width: int, kernel: int) -> _Conv:
    """A row of `kernel` weights."""
    return _Conv(width_in, width, (1, kernel), padding=(0, kernel // 2))


def _tall(width_in: int, width: int, kernel: int) -> _Conv:
    """A column of `kernel` weights."""
    return _Conv(width_in, width, (kernel, 1), padding=(kernel // 2, 0))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 64, 1)
        self.branch5x5_1 = _Conv(width, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], dim=1)


class _B(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class _C(nn.Module):
    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 192, 1)
        self.branch7x7_1 = _Conv(width, middle, 1)
        self.branch7x7_2 = _wide(middle, middle, 7)
        self.branch7x7_3 = _tall(middle, 192, 7)
        self.branch7x7dbl_1 = _Conv(width, middle, 1)
        self.branch7x7dbl_2 = _tall(middle, middle, 7)
        self.branch7x7dbl_3 = _wide(middle, middle, 7)
        self.branch7x7dbl_4 = _tall(middle, middle, 7)
        self.branch7x7dbl_5 = _wide(middle, 192, 7)
        self.branch_pool = _Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], dim=1)


class _D(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(width, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(width, 192, 1)
        self.branch7x7x3_2 = _wide(192, 192, 7)
        self.branch7x7x3_3 = _tall(192, 192, 7)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class _E(nn.Module):
    def __init__(self, width: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = _Conv(width, 320, 1)
        self.branch3x3_1 = _Conv(width, 384, 1)
        self.branch3x3_2a = _wide(384, 384, 3)
        self.branch3x3_2b = _tall(384, 384, 3)
        self.branch3x3dbl_1 = _Conv(width, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _wide(384, 384, 3)
        self.branch3x3dbl_3b = _tall(384, 384, 3)
        self.branch_pool = _Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)

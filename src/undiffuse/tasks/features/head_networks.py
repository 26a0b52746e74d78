"""Small networks on frozen features: a perceptron, convolutions, and attention over the cells of maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from undiffuse.networks.convolution import convolution
from undiffuse.tasks.features.encoder import pool_map
from undiffuse.tasks.features.options import HeadOptions

_MOST_HIDDEN, _MOST_WIDTH, _MOST_CHANNELS = 2048, 256, 64
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class PerceptronHead(nn.Module):
    """Flat features (n, F) -> one hidden layer -> scores (n, classes)."""

    def __init__(self, features: int, classes: int, width: int | None = None) -> None:
        super().__init__()
        hidden = width or min(_MOST_HIDDEN, 4 * features)
        self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        return self.second(relu(self.first(x)))


class ConvolutionHead(nn.Module):
    """One map (n, C, *) -> convolutions with stride 2 where there is room, batch norm, ReLU -> mean -> scores.

    Every convolution halves the channels, to 64 at least.
    """

    def __init__(self, shape: Sequence[int], classes: int, depth: int = 2) -> None:
        super().__init__()
        channels, sizes, dims = shape[0], list(shape[1:]), len(shape) - 1
        layers: list[nn.Module] = []
        for _ in range(depth):
            stride = 2 if min(sizes) >= 4 else 1
            width = max(channels // 2, _MOST_CHANNELS)
            layers += [convolution(dims, channels, width, stride=stride), _NORMS[dims](width), nn.ReLU()]
            channels, sizes = width, [ceil(size / stride) for size in sizes]
        self.body, self.leave = nn.Sequential(*layers), nn.Linear(channels, classes)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return scores for the one map."""
        (value,) = maps.values()
        return self.leave(self.body(value).flatten(2).mean(2))


class AttentionHead(nn.Module):
    """Maps -> cells as tokens, a class token before them, transformer blocks -> scores.

    Maps of one time go through a norm and a 1 x 1 convolution each, then stand behind each other in one sequence. Each
    time has blocks of its own; their class tokens are put side by side before the last layer (DifFormer). There is no
    embedding of positions.

    Args:
        shapes: Shape (C, *) of each map.
        groups: Names of the maps of each time.
        classes: Number of classes.
        width: Features of a token; None: the channels of the widest map, 256 at most.
        depth: Blocks.
        cells: Cells on each axis of a map.

    Source: Mukhopadhyay et al. 2023, arXiv:2311.17921, section 3.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        groups: Sequence[Sequence[str]],
        classes: int,
        *,
        width: int | None = None,
        depth: int = 2,
        cells: int = 8,
    ) -> None:
        super().__init__()
        self.groups, self.cells = [list(names) for names in groups], cells
        width = width or min(_MOST_WIDTH, max(shape[0] for shape in shapes.values()))
        pooled = {name: (shape[0], *(min(cells, size) for size in shape[1:])) for name, shape in shapes.items()}
        order = [name for names in self.groups for name in names]
        self.norms = nn.ModuleList(nn.LayerNorm(pooled[name]) for name in order)
        self.enter = nn.ModuleList(nn.Linear(pooled[name][0], width) for name in order)
        self.trunks = nn.ModuleList(ClassTokenTrunk(width, depth) for _ in self.groups)
        self.leave = nn.Linear(width * len(self.groups), classes)
        self.tokens = {name: prod(shape[1:]) for name, shape in pooled.items()}

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return scores."""
        layers = iter(zip(self.norms, self.enter, strict=True))
        read = []
        for names, trunk in zip(self.groups, self.trunks, strict=True):
            parts = [self._tokens(maps[name], *next(layers)) for name in names]
            read.append(trunk(torch.cat(parts, dim=1)))
        return self.leave(torch.cat(read, dim=1))

    def _tokens(self, value: Tensor, norm: nn.Module, enter: nn.Module) -> Tensor:
        return enter(norm(pool_map(value, self.cells)).flatten(2).transpose(1, 2))


class ClassTokenTrunk(nn.Module):
    """Tokens (n, L, d) -> blocks over them and a learned token, zero at first -> that token (n, d)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(AttentionBlock(width) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the class token behind the last block."""
        hidden = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden[:, 0]


class AttentionBlock(nn.Module):
    """Pre-norm attention and feed-forward layer of ratio 4: 12 d^2 + 10 d numbers, as queries and keys have no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, L, d) to the same shape."""
        query, key, value = self.qkv(self.first_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.mix(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.narrow(gelu(self.widen(self.second_norm(x))))


def build_head(facts: Mapping[str, object], classes: int, options: HeadOptions) -> nn.Module:
    """Return the network of a head with fresh weights, a function of `options.seed`.

    Args:
        facts: "features", or "shapes" and "groups": what `head_training.facts_of` says about the inputs.
        classes: Number of classes.
        options: Kind and size of the head.

    Raises:
        ValueError: Several maps for `cnn`, or vectors.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(options.seed)
        if options.head == "mlp":
            return PerceptronHead(int(facts["features"]), classes, options.width)  # type: ignore[call-overload]
        shapes: dict[str, list[int]] = facts["shapes"]  # type: ignore[assignment]
        if options.head == "cnn":
            if len(shapes) > 1:
                raise ValueError(f"head='cnn' reads one map, and here are {', '.join(shapes)}; use attention for all.")
            return ConvolutionHead(next(iter(shapes.values())), classes, options.depth)
        groups: list[list[str]] = facts["groups"]  # type: ignore[assignment]
        settings = {"width": options.width, "depth": options.depth, "cells": options.cells}
        return AttentionHead(shapes, groups, classes, **settings)  # type: ignore[arg-type]

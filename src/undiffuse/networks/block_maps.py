"""What blocks return, as maps on the data's axes, whatever network they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import ceil, prod

from torch import Tensor, nn


def block_map(network: nn.Module, name: str, value: Tensor, batch: int, sizes: Sequence[int]) -> Tensor:
    """Return what a block returned as a map (B, C, *), for video (B, C, F, *), for vectors (B, C, 1).

    Args:
        network: Holds the block; `returns_tokens(name)` says what values of three axes are for one-dimensional data,
            `patch` (default 1) how many elements a token spans on an axis.
        name: Name of the block.
        value: (B, C, *), tokens (B, L, C) or vectors (B, C); for video (B * F, ...), the frames of a clip in a row.
        batch: B.
        sizes: Spatial sizes of the network's input, or of the grid that its tokens lie on.

    Raises:
        ValueError: Rows that are no multiple of `batch`.
    """
    if len(value) % batch:
        raise ValueError(f"block {name!r} returns {len(value)} rows for {batch} items; it has no map for each of them.")
    if value.ndim == 2:
        value = value[:, :, None]
    elif value.ndim == 3 and _returns_tokens(network, name, sizes):
        value = tokens_to_map(value, sizes, getattr(network, "patch", 1))
    if len(value) == batch:
        return value
    return value.unflatten(0, (batch, -1)).movedim(1, 2)


def tokens_to_map(tokens: Tensor, sizes: Sequence[int], patch: int = 1) -> Tensor:
    """Return tokens (B, L, C), a row for each patch of a picture of `sizes`, as a map (B, C, *).

    `patch` is the network's own. Deeper blocks of a U-Net have larger ones: it is the smallest from there whose tokens
    are no more than there are. Tokens in excess lead: a class token, registers, the tokens of a text.
    """
    length = tokens.shape[1]
    grids = ([ceil(size / patch) for size in sizes] for patch in count(patch))
    grid = next(grid for grid in grids if prod(grid) <= length)
    return tokens[:, length - prod(grid) :].movedim(2, 1).unflatten(2, grid)


def _returns_tokens(network: nn.Module, name: str, sizes: Sequence[int]) -> bool:
    """Ask the network; of another one, values of three axes are tokens unless the data have one spatial axis."""
    asked = getattr(network, "returns_tokens", None)
    return len(sizes) != 1 or (asked is not None and bool(asked(name)))

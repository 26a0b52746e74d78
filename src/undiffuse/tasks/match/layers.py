"""Which blocks of a network correspond best: the default layers of diffusion features."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UP = re.compile(r"up(\d+)\.(?:resnet|attention)?(\d+)$")
_BLOCK = re.compile(r"block(\d+)$")


def correspondence_layers(known: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the layers to match with, in order of execution.

    Of a U-Net the coarse levels of the decoder: of each level the state that goes into its last sub-block, before the
    skip is put beside it, which is what the sub-block before it returns (its only one's output, where it has one). The
    finest level is left out where there are several: it knows colours and edges, not parts. Of Stable Diffusion 1.5
    that is the input of the decoder's sub-blocks 2, 5 and 8 of 12. Of a transformer the block at two thirds of the
    depth; of other networks all their maps.

    Args:
        known: Names of all blocks, in order of execution.
        shapes: Their maps' shapes.

    Source: Zhang et al. 2023, arXiv:2305.15347, section 3 and its code.
    """
    levels: dict[str, dict[int, str]] = {}
    for name in known:
        found = _UP.match(name)
        if found and name in shapes:
            levels.setdefault(found[1], {})[int(found[2])] = (
                name  # an attention comes behind its resnet and replaces it
            )
    if levels:
        chosen = [blocks[max(0, len(blocks) - 2)] for blocks in levels.values()]
        return tuple(chosen[:-1] or chosen)
    blocks = [name for name in known if _BLOCK.match(name)]
    if blocks:
        return (blocks[2 * len(blocks) // 3],)
    return tuple(name for name in known if len(shapes.get(name, ())) == 3) or tuple(known)

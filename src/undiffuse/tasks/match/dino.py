"""Features of DINO networks (v1, v2 with or without registers, v3) through transformers.

The tokens of the last layer before the final norm, without the class token and registers. Pictures are scaled and
normalised here: the image processors of transformers want torchvision, and networks cut off what is no whole patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.metrics.networks import IMAGENET
from undiffuse.metrics.vision import load_vision
from undiffuse.networks.block_maps import tokens_to_map
from undiffuse.tasks.match.frame import Frame, Picture

KINDS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


class DinoFeatures:
    """Maps of one DINO network.

    Args:
        name: A folder with config.json and model.safetensors, or a name on the hub.
        size: Pixels of the canvas' longer side, rounded down to whole patches, at least one.
        device: Where it runs.

    Raises:
        CheckpointError: transformers is not installed, there is no such network, or it is none of `KINDS`.

    Source: Caron et al. 2021, arXiv:2104.14294; Oquab et al. 2023, arXiv:2304.07193; Simeoni et al. 2025,
        arXiv:2508.10104; as used in Zhang et al. 2023, arXiv:2305.15347, section 3.
    """

    def __init__(self, name: str, size: int, device: torch.device | str = "cpu") -> None:
        self.name, self.size, self.device = name, size, torch.device(device)
        self.network: Any = load_vision(name, "DINO", "facebook/dinov2-base", kinds=KINDS).to(device)
        self.patch = int(self.network.config.patch_size)
        self.skipped = 1 + int(getattr(self.network.config, "num_register_tokens", 0) or 0)
        self._bounds = tuple(torch.tensor(v, device=self.device).view(3, 1, 1) for v in IMAGENET)

    def cells(self, frame: Frame) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        longer = max(frame.rows, frame.columns)
        rows, columns = (max(1, round(self.size * n / longer) // self.patch) for n in (frame.rows, frame.columns))
        return rows, columns

    @torch.no_grad()
    def maps(self, picture: Picture, frame: Frame) -> dict[str, Tensor]:
        """Return the features of a picture's canvas, {"dino": (C, h, w)}."""
        rows, columns = self.cells(frame)
        pixels = frame.canvas(picture.channels(3), (rows * self.patch, columns * self.patch)).to(self.device)
        mean, std = self._bounds
        seen = (((pixels + 1) / 2 - mean) / std)[None].to(next(self.network.parameters()).dtype)
        more = {"interpolate_pos_encoding": True} if self.network.config.model_type == "vit" else {}
        hidden = self.network(pixel_values=seen, output_hidden_states=True, **more).hidden_states[-1]
        return {"dino": tokens_to_map(hidden[:, self.skipped :], (rows, columns))[0].float().cpu()}

    def describe(self) -> dict[str, Any]:
        """Return what the features depend on."""
        size = self.size // self.patch * self.patch
        return {"network": self.name, "kind": self.network.config.model_type, "size": size, "patch": self.patch}

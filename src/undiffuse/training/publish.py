"""What a run shows of its averaged model: the model itself, and previews from fixed seeds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.config import to_dict
from undiffuse.data.text import decode_text
from undiffuse.denoisers.base import Denoiser
from undiffuse.images import image_grid, write_image
from undiffuse.models import Model
from undiffuse.spec import DataSpec
from undiffuse.training.checkpoints import disk_errors
from undiffuse.training.folder import write_text
from undiffuse.training.recipe import Recipe

_PREVIEW_SEED = 0


class Publisher:
    """Writes a run's model and previews.

    Args:
        folder: The run's folder.
        recipe: Its recipe; goes into pictures and, as sampling defaults, into the model.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe

    def model(self, denoiser: Denoiser, step: int) -> None:
        """Write `model.safetensors` and `config.json`."""
        self._wrap(denoiser).save(self.folder)

    def preview(self, denoiser: Denoiser, step: int) -> None:
        """Write samples/step-NNNNNNNN: a PNG grid of images, a text file of texts; nothing for other data."""
        spec = denoiser.spec
        if spec is None or spec.kind not in ("image", "tokens"):
            return
        samples = self._wrap(denoiser).sample(self.recipe.train.previews, seed=_PREVIEW_SEED, cond=self._labels(spec))
        path = self.folder / "samples" / f"step-{step:08d}"
        with disk_errors("preview", self.folder):
            path.parent.mkdir(exist_ok=True)
            self._write(path, samples, spec, step)

    def _write(self, path: Path, samples: Tensor, spec: DataSpec, step: int) -> None:
        if spec.kind == "tokens":
            texts = (decode_text(row, spec) for row in samples.cpu())
            write_text(path.with_suffix(".txt"), "\n\n----\n\n".join(texts) + "\n")
            return
        made_by: dict[str, Any] = {"recipe": to_dict(self.recipe), "step": step, "seed": _PREVIEW_SEED}
        write_image(path.with_suffix(".png"), image_grid(samples, bounds=spec.range or (-1.0, 1.0)), made_by)

    def _labels(self, spec: DataSpec) -> dict[str, Tensor] | None:
        if not spec.classes:
            return None
        return {"label": torch.arange(self.recipe.train.previews) % len(spec.classes)}

    def _wrap(self, denoiser: Denoiser) -> Model:
        chosen = {key: value for key, value in asdict(self.recipe.sample).items() if value is not None}
        assert denoiser.spec is not None
        return Model(denoiser, denoiser.spec, chosen)

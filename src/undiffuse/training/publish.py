"""What a run shows of its averaged model: the model itself, and previews from fixed seeds."""

from __future__ import annotations

import json
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
from undiffuse.training.versions import versions

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
        """Write `model.safetensors`, then `config.json` and `README.md`, which name the step."""
        self._wrap(denoiser, step).save(self.folder)

    def published(self) -> int | None:
        """Return the step of the model in the folder; None where there is none, or none that is whole."""
        try:
            info = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["info"]
            return info["step"] if (self.folder / "model.safetensors").is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def preview(self, denoiser: Denoiser, step: int) -> None:
        """Write samples/step-NNNNNNNN: a PNG grid of images, a text file of texts; nothing for other data."""
        spec = denoiser.spec
        if spec is None or spec.kind not in ("image", "tokens"):
            return
        model = self._wrap(denoiser, step)
        samples = model.sample(self.recipe.train.previews, seed=_PREVIEW_SEED, cond=self._labels(spec))
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

    def _wrap(self, denoiser: Denoiser, step: int) -> Model:
        chosen = {key: value for key, value in asdict(self.recipe.sample).items() if value is not None}
        assert denoiser.spec is not None
        made_by = {
            "step": step,
            "seed": self.recipe.train.seed,
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            "recipe": to_dict(self.recipe),
        }
        return Model(denoiser, denoiser.spec, chosen, made_by)

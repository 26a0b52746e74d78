"""What a run shows of its averaged model: the model itself, and previews from fixed seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from undiffuse.codecs.codec import Codec
from undiffuse.codecs.pretrained import PretrainedCodec
from undiffuse.config import to_dict
from undiffuse.data.dataset import Dataset
from undiffuse.data.pairs import SOURCE
from undiffuse.data.text import decode_text
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.distillation.options import FlowMapOptions
from undiffuse.images import curves, film_strips, image_grid, movie_grid, slices, write_image, write_movie
from undiffuse.models import Model
from undiffuse.models.conditions import class_turns
from undiffuse.models.folder import CONFIG, weights_of
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.noise import KeyedNoise
from undiffuse.pretrained.tuning import TunedDenoiser
from undiffuse.sampling.flow_map import default_solver
from undiffuse.spec import DataSpec
from undiffuse.training.checkpoints import disk_errors
from undiffuse.training.degrade import NOISE_LEVEL, TASK, make_degrade
from undiffuse.training.folder import write_text
from undiffuse.training.objectives import Trained
from undiffuse.training.recipe import Recipe
from undiffuse.training.versions import versions

_PREVIEW_SEED = 0


class Publisher:
    """Writes a run's model and previews.

    Args:
        folder: The run's folder.
        recipe: Its recipe; goes into pictures and, as sampling defaults, into the model.
        codec: What made the latents that it trains on.
        given: Conditions of the previews, by name, a row for each; pictures as `Model.sample` takes them.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, codec: Codec | None = None, given: dict[str, Tensor] | None = None
    ) -> None:
        self.folder, self.recipe, self.codec, self.given = folder, recipe, codec, given or {}

    def model(self, denoiser: Trained, step: int) -> None:
        """Write `model.safetensors`, then `config.json` and `README.md`, which name the step."""
        self._wrap(denoiser, step).save(self.folder)

    def published(self) -> int | None:
        """Return the step of the model in the folder; None where there is none, or none that is whole."""
        try:
            info = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["info"]
            return info["step"] if weights_of(self.folder).is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def preview(self, denoiser: Trained, step: int) -> Path | None:
        """Write samples/step-NNNNNNNN: a PNG file (grid of images, strips, slices, curves), a text file of texts.

        Videos give a moving .gif beside it; vectors give nothing.

        Returns the file's path, None where nothing was written.
        """
        model = self._wrap(denoiser, step)
        spec = model.spec
        if spec.kind == "vector":
            return None
        samples = model.sample(self.recipe.train.previews, seed=_PREVIEW_SEED, cond=self._asked(denoiser, spec))
        path = self.folder / "samples" / f"step-{step:08d}"
        with disk_errors("preview", self.folder):
            path.parent.mkdir(exist_ok=True)
            return self._write(path, samples, spec, step)

    def _write(self, path: Path, samples: Tensor, spec: DataSpec, step: int) -> Path:
        if spec.kind == "tokens":
            texts = (decode_text(row, spec) for row in samples.cpu())
            write_text(path.with_suffix(".txt"), "\n\n----\n\n".join(texts) + "\n")
            return path.with_suffix(".txt")
        made_by: dict[str, Any] = {"recipe": to_dict(self.recipe), "step": step, "seed": _PREVIEW_SEED}
        write_image(path.with_suffix(".png"), picture(samples, spec), made_by)
        if spec.kind == "video":
            write_movie(path.with_suffix(".gif"), movie_grid(samples, _bounds(samples, spec)), spec.rate)
        return path.with_suffix(".png")

    def _asked(self, denoiser: Trained, spec: DataSpec) -> dict[str, Any] | None:
        if isinstance(denoiser, TunedDenoiser):
            return dict(denoiser.prompted(self.given, self.recipe.train.previews))
        return {**class_turns(spec, self.recipe.train.previews), **self.given} or None

    def _wrap(self, denoiser: Trained, step: int) -> Model:
        chosen = {key: value for key, value in asdict(self.recipe.sample).items() if value is not None}
        if isinstance(denoiser, TunedDenoiser):
            return self._tuned(denoiser, chosen, step)
        if isinstance(denoiser, FlowMap):
            steps = self.recipe.objective.default_steps if isinstance(self.recipe.objective, FlowMapOptions) else 1
            chosen = {"solver": default_solver(denoiser), "steps": steps, "grid": "t"} | chosen
        assert denoiser.spec is not None
        return Model(denoiser, self.codec.data if self.codec else denoiser.spec, chosen, self._facts(step), self.codec)

    def _tuned(self, denoiser: TunedDenoiser, chosen: dict[str, Any], step: int) -> Model:
        """Return the pipeline with other weights, and what else it said of sampling."""
        theirs = denoiser.pipeline
        info = theirs.info | self._facts(step)
        assert isinstance(self.codec, PretrainedCodec) and isinstance(self.codec.network, nn.Module)
        codec = PretrainedCodec(theirs.spec, self.codec.options, self.codec.network)
        return Model(denoiser.as_loaded(), theirs.spec, theirs.defaults | chosen, info, codec)

    def _facts(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "seed": self.recipe.train.seed,
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            "recipe": to_dict(self.recipe),
        }


def shown_conditions(recipe: Recipe, dataset: Dataset) -> dict[str, Tensor]:
    """Return what previews are given, of the first items: pictures to restore, or what a prompt is made of; empty where
    the model reads neither."""
    degrade = make_degrade(recipe.data, dataset.spec)
    prompted = isinstance(recipe.model, PretrainedNetworkOptions)
    if degrade is None and not prompted and getattr(recipe.process, "start", "noise") == "noise":
        return {}
    positions = torch.arange(recipe.train.previews) % len(dataset)
    batch = dataset.batch(positions)
    if prompted:
        return dict(batch["cond"])
    if degrade is not None:
        batch = degrade(batch, KeyedNoise(0, positions))
    shown = {name: value for name, value in batch["cond"].items() if name in (SOURCE, TASK, NOISE_LEVEL)}
    if degrade is not None and NOISE_LEVEL in shown:  # as people write it
        part = degrade.conditions(dataset.spec)[NOISE_LEVEL]
        shown[NOISE_LEVEL] = part.mean[0] + part.std[0] * shown[NOISE_LEVEL]
    return shown


def picture(samples: Tensor, spec: DataSpec) -> np.ndarray:
    """Return samples in data units as one picture."""
    if spec.kind == "signal":
        return curves(samples, spec.range)
    draw = {"video": film_strips, "volume": slices}.get(spec.kind)
    return image_grid(samples, bounds=_bounds(samples, spec)) if draw is None else draw(samples, _bounds(samples, spec))


def _bounds(samples: Tensor, spec: DataSpec) -> tuple[float, float]:
    if spec.range is not None or spec.kind == "image":
        return spec.range or (-1.0, 1.0)
    return float(samples.min()), float(samples.max()) + 1e-9

"""From a model to a folder that diffusers reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.errors import CheckpointError

if TYPE_CHECKING:
    from undiffuse.models.model import Model


def write_diffusers(model: Model, out: str | Path) -> Path:
    """Write the pipeline or network that a model was loaded from, as it is now, into a folder; return it.

    Weights are written as safetensors in their present dtype, with a LoRA that was loaded fused into them.

    Networks of ours are refused. None of them is a network of diffusers: they are told log(sigma / alpha) / 4 instead
    of the number of a training step, through another embedding, so no copying of weights makes the two agree.

    Raises:
        CheckpointError: The model is no pipeline of diffusers, or the folder is not empty.
    """
    out = Path(out)
    (held,) = getattr(model.module, "held", [None])
    if held is None:
        raise CheckpointError(
            f"a {type(model.module).__name__} has no counterpart in diffusers: networks of ours are told the noise "
            f"level and not the number of a training step, so their weights fit none of its classes. Models that were "
            f"loaded from diffusers can be written back; share others as they are (undiffuse.load reads their folder)."
        )
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; give another folder.")
    held.save_pretrained(out, safe_serialization=True)
    scheduler = model.defaults.get("scheduler")
    if scheduler is not None and not (out / "model_index.json").is_file():  # a network alone
        import json

        text = json.dumps(scheduler["config"], indent=2) + "\n"
        (out / "scheduler_config.json").write_text(text, encoding="utf-8")
    return out

"""From a model to a folder that diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.denoisers.timestep import STEPS, TimestepDenoiser
from undiffuse.errors import CheckpointError
from undiffuse.models.scheduled import SCHEDULER
from undiffuse.networks.diffusers_network import DiffusersNetwork
from undiffuse.pretrained.files import BESIDE, read_beside
from undiffuse.process.tables import TableSchedule

if TYPE_CHECKING:
    from undiffuse.models.model import Model

_SCHEDULE = "scheduler_config.json"


def write_diffusers(model: Model, out: str | Path) -> Path:
    """Write a model whose network is one of diffusers into a folder, as it is now, and return the folder.

    What was loaded from diffusers is written as it came, with a LoRA that was loaded as part of its weights, and with
    the scheduler that was given in place of its own. A network of diffusers that was trained here becomes the pipeline
    that samples it (a DDIM pipeline for pictures without labels, a DDPM pipeline for a straight line, a DiT pipeline
    where the codec is an AutoencoderKL), else the network alone beside its scheduler. Weights are safetensors in their
    present dtype.

    Networks of ours are refused: they are told log(sigma / alpha) / 4 instead of the number of a training step, through
    another embedding, so no copying of weights makes the two agree.

    Raises:
        CheckpointError: The network is none of diffusers, or the folder is not empty.
    """
    out = Path(out)
    (held,) = getattr(model.module, "held", [None])
    trained: Any = getattr(model.module, "backbone", None)
    if held is None and not (isinstance(model.module, TimestepDenoiser) and isinstance(trained, DiffusersNetwork)):
        raise CheckpointError(
            f"a {type(model.module).__name__} has no counterpart in diffusers: networks of ours are told the noise "
            f"level and not the number of a training step, so their weights fit none of its classes. Train with "
            f"model=diffusers-unet or model=diffusers-dit to write the result for diffusers; share this one as it is "
            f"(undiffuse.load reads its folder)."
        )
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; give another folder.")
    if held is None:
        return _write_trained(model, model.module, trained, out)
    scheduler = model.defaults.get(SCHEDULER)
    if scheduler is not None and "scheduler" in model.info.get("load", {}) and hasattr(held, "register_modules"):
        held.register_modules(scheduler=_scheduler(scheduler["config"]))
    held.save_pretrained(out, safe_serialization=True)
    if scheduler is not None and not (out / "model_index.json").is_file():  # a network alone
        _write_json(out / _SCHEDULE, scheduler["config"])
    if beside := read_beside(Path(model.info["source"])):
        _write_json(out / BESIDE, beside)
    return out


def _write_trained(model: Model, denoiser: Any, backbone: DiffusersNetwork, out: Path) -> Path:
    """Write a network that was trained here."""
    import diffusers

    config = scheduler_config(denoiser)
    scheduler = _scheduler(config)
    network, straight = backbone.network, config["_class_name"] != "DDIMScheduler"
    autoencoder = getattr(model.codec, "network", None)
    shift = getattr(getattr(autoencoder, "config", None), "shift_factor", None)  # DiTPipeline decodes without one
    if isinstance(network, diffusers.UNet2DModel) and not (
        model.spec.classes or model.codec or denoiser.learns_variance
    ):
        pipeline: Any = diffusers.DDPMPipeline if straight else diffusers.DDIMPipeline
        pipeline(unet=network, scheduler=scheduler).save_pretrained(out, safe_serialization=True)
    elif (
        isinstance(network, diffusers.DiTTransformer2DModel)
        and isinstance(autoencoder, diffusers.AutoencoderKL)
        and not shift
        and not straight
    ):
        dit: Any = diffusers.DiTPipeline(transformer=network, vae=autoencoder, scheduler=scheduler)
        dit.save_pretrained(out, safe_serialization=True)
    else:
        network.save_pretrained(out, safe_serialization=True)  # type: ignore[operator]
        scheduler.save_config(out)
    null = len(model.spec.classes) if model.spec.classes else None
    _write_json(out / BESIDE, {"spec": model.state_spec.to_json(), "data": model.spec.to_json(), "null": null})
    return out


def scheduler_config(denoiser: TimestepDenoiser) -> dict[str, Any]:
    """Return the config of the scheduler that samples a denoiser: DDIM on a table of noise levels, Euler on a line."""
    from undiffuse.sampling.ddim import DDIM
    from undiffuse.sampling.diffusers_betas import Betas
    from undiffuse.sampling.diffusers_setup import DiffusersSetup
    from undiffuse.sampling.diffusers_spacing import FlowSpacing, TableSpacing
    from undiffuse.sampling.euler import Euler

    schedule = denoiser.process.schedule
    common: dict[str, Any] = {"process": denoiser.process, "prediction": denoiser.prediction}
    if isinstance(schedule, TableSchedule):
        spacing = TableSpacing(shape="trailing")
        setup = DiffusersSetup(name="DDIMScheduler", solver=DDIM(), spacing=spacing, betas=Betas.of(schedule), **common)
    else:
        setup = DiffusersSetup(
            name="FlowMatchEulerDiscreteScheduler",
            solver=Euler(),
            spacing=FlowSpacing(total=STEPS),
            **common,
        )
    return setup.to_diffusers()


def _scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

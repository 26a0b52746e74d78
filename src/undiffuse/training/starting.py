"""What a run takes over from the model of diffusers that it starts from: network, process, and the size of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.denoisers.timestep import STEPS
from undiffuse.errors import CheckpointError, PlanError
from undiffuse.networks.diffusers_build import options_of
from undiffuse.pretrained.denoiser import DiffusersDenoiser
from undiffuse.pretrained.files import read_json
from undiffuse.pretrained.loading import configs_of, is_diffusers, prompted_family, usual_guidance
from undiffuse.pretrained.readers import PROMPT_BYTES
from undiffuse.pretrained.tunable import codec_factor
from undiffuse.process.schedules import RectifiedFlowSchedule
from undiffuse.process.tables import cosine_table_schedule, ddpm_schedule, scaled_linear_schedule

if TYPE_CHECKING:
    from undiffuse.sampling.diffusers_setup import DiffusersSetup

_TABLE = "backbone.network.class_embedding.weight"
_SCHEDULES = {"linear": "ddpm", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine-table"}
_MAKERS: dict[str, Callable[..., Any]] = {
    "ddpm": ddpm_schedule,
    "scaled-linear": scaled_linear_schedule,
    "cosine-table": cosine_table_schedule,
}


_PROMPTED = {"steps": 1000, "batch_size": 4, "lr": 1e-4, "warmup": 50, "checkpoint_every": 250, "preview_every": 250}
_PROMPTED |= {"previews": 4}
"""Of a LoRA, as such are usually trained: large networks, few pictures."""


def recipe_of(name: str | None) -> dict[str, Any]:
    """Return the keys of a recipe that follow from a model of diffusers; {} where `name` means none.

    Args:
        name: What `train.init` says: a folder, a name on the hub, a model of ours, or nothing.

    Raises:
        CheckpointError: It cannot be read, or networks and processes of its kind are not trained here.
    """
    if not name or not is_diffusers(name):
        return {}
    from undiffuse.sampling.diffusers_setup import from_diffusers

    network, scheduler, latent = configs_of(name)
    prompted = prompted_family(name)
    try:
        model = {"kind": "pretrained"} if prompted else asdict(options_of(network))
        setup = from_diffusers(scheduler, mu=0.0)
        process = {"kind": "gaussian", "prediction": setup.prediction, **_schedule(setup)}
    except (ValueError, PlanError) as error:
        raise CheckpointError(
            f"train.init={name} cannot be tuned here: {error}. What is tuned are the networks of DDPM, DDIM and DiT "
            f"pipelines and of those with prompts, on the noise levels that they were trained on."
        ) from error
    taken: dict[str, Any] = {"model": model, "process": process}
    if prompted:
        taken |= {"train": dict(_PROMPTED), "sample": {"guidance": usual_guidance(name, prompted)}}
    if network.get("out_channels", 0) == 2 * network.get("in_channels", 3):
        taken["objective"] = {"kind": "denoising", "learn_variance": True}
    reads, factor = network, 1  # of pictures
    if latent is not None:
        taken["codec"] = {"kind": "pretrained", "path": str(latent)}
        reads = read_json(latent / "vae" / "config.json")
        factor = codec_factor(latent)
    size, channels = (
        network.get("sample_size") or (prompted and prompted.sides),
        {1: "grey", 3: "rgb", 4: "rgba"}.get(reads.get("in_channels", 3)),
    )
    known = {"size": size * factor if isinstance(size, int) else None, "channels": channels}
    known["caption_length"] = PROMPT_BYTES if prompted else None
    return {**taken, "data": {key: value for key, value in known.items() if value is not None}}


@torch.no_grad()
def fit_labels(given: dict[str, Tensor], own: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Return the weights of a model of diffusers with a row for "no label" in their table of labels, where ours has it.

    A new row is the mean of the others; a table for a network that had none is zero, which changes none of its answers.

    Args:
        given: Its weights by name.
        own: Ours.
        model: What they are of.
    """
    if _TABLE not in own or not isinstance(model, DiffusersDenoiser):
        return given
    if _TABLE not in given:
        return {**given, _TABLE: torch.zeros_like(own[_TABLE])}
    table, numbers = given[_TABLE], getattr(model.reader, "numbers", None)
    if numbers is not None and numbers.number is None:
        table = torch.cat([table, table.mean(0, keepdim=True)])
    return {**given, _TABLE: table}


def _schedule(setup: DiffusersSetup) -> dict[str, Any]:
    """Return the options of a schedule, without those that are usual: they would be in the way of another schedule."""
    betas, total = setup.betas, getattr(setup.spacing, "total", STEPS)
    if isinstance(setup.process.schedule, RectifiedFlowSchedule):
        if total != STEPS:
            raise ValueError(f"its network counts {total} training steps on the straight line, those here {STEPS}")
        return {"schedule": "rf"}
    if betas is None or betas.trained is not None or betas.kind not in _SCHEDULES:
        raise ValueError(f"its noise levels are none of {', '.join(_SCHEDULES)} betas")
    name = _SCHEDULES[betas.kind]
    ends = {} if name == "cosine-table" else {"beta_min": betas.first, "beta_max": betas.last}
    given: dict[str, Any] = {"levels": betas.count, **ends, "zero_snr": betas.zero_snr}  # in the order of the makers
    usual = (part.default for part in signature(_MAKERS[name]).parameters.values())
    pairs = zip(given.items(), usual, strict=True)
    return {"schedule": name, **{key: value for (key, value), default in pairs if value != default}}

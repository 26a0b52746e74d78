"""Starting a run from the weights of a model."""

from __future__ import annotations

import torch

from undiffuse.config import resolve
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.build import SCHEDULE_FREE
from undiffuse.errors import CheckpointError
from undiffuse.models import Model, load
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.inflation import fill_inflated, has_temporal
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.pretrained.loading import is_diffusers
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.objectives import Trained
from undiffuse.training.recipe import Recipe
from undiffuse.training.starting import fit_labels, recipe_of

_VARIANCE = "backbone.variance"  # a head that a student does not need


def start_from(denoiser: Trained, name: str) -> None:
    """Copy the weights of a model into a new denoiser; see `take_weights`.

    Args:
        denoiser: Changed in place.
        name: A model's folder, a built-in model, or a folder of diffusers (see `undiffuse.training.starting`).

    Raises:
        CheckpointError: There is no such model, or its network is another.
    """
    model = load(name)
    if "pipeline" in model.info and not is_diffusers(name):
        raise CheckpointError(
            f"train.init={name} refers to {model.info['source']}; begin with that, or with a pipeline that has the "
            f"tuned weights: undiffuse convert {name} OUT."
        )
    _check_tokens(denoiser.spec, model.state_spec, name)
    take_weights(denoiser, model.module, name)


def tunable(model: Model, name: str) -> Model:
    """Return a pipeline of diffusers as a model of the same answers whose network is trained here; others as they are.

    Args:
        model: What `name` stands for.
        name: See `start_from`; empty for none.

    Raises:
        CheckpointError: The pipeline reads prompts, or is of another kind that is not trained here.
    """
    given = recipe_of(name)
    if not given:
        return model
    if given["model"]["kind"] == PretrainedNetworkOptions.kind:
        raise CheckpointError(
            f"{name} reads prompts, and its sampler is not tuned here; train a LoRA for it with undiffuse train "
            f"PICTURES train.init={name}, or use one that was distilled for few steps (--load lora=FILE)."
        )
    own = build_denoiser(resolve(Recipe, given), model.state_spec, told=True)
    take_weights(own, model.module, name)
    return Model(own, model.spec, model.defaults, {"recipe": given}, model.codec)


@torch.no_grad()
def take_weights(denoiser: Trained, model: Trained, name: str) -> None:
    """Copy the weights of one denoiser into a new one of the same network and prediction, its variance head left out
    where the new one has none.

    A flow map may start from a denoiser: it is then, at first, its DDIM steps.

    A video network with temporal attention may start from an image model: it is then, at first, that model frame by
    frame.

    Args:
        denoiser: Changed in place.
        model: What has the weights.
        name: Where it is from, for errors.

    Raises:
        CheckpointError: Its network is another.
    """
    if isinstance(denoiser, NetworkFlowMap) and not isinstance(model, FlowMap):
        _check_schedule(model, denoiser, name)
        denoiser = denoiser.denoiser
    theirs, ours = getattr(model, "backbone", None), getattr(denoiser, "backbone", None)
    if isinstance(theirs, Backbone) and isinstance(ours, Backbone) and has_temporal(ours) and not has_temporal(theirs):
        try:
            fill_inflated(ours, theirs.options, theirs.state_dict())
        except ValueError as error:
            raise CheckpointError(f"train.init={name} does not fit: {error}") from error
        _check_prediction(model, denoiser, name)
        return
    own = denoiser.state_dict()
    given = {key: part for key, part in model.state_dict().items() if key in own or not key.startswith(_VARIANCE)}
    given = fit_labels(given, own, model)
    wrong = [key for key in sorted(own.keys() | given.keys()) if _shape(given, key) != _shape(own, key)]
    if wrong:
        raise CheckpointError(
            f"train.init={name} does not fit: {wrong[0]!r} is {_shape(given, wrong[0])} there and "
            f"{_shape(own, wrong[0])} here ({len(wrong)} such tensors); use the model.* options and data of its recipe."
        )
    _check_prediction(model, denoiser, name)
    denoiser.load_state_dict(given)


def _check_tokens(ours: DataSpec | None, theirs: DataSpec, name: str) -> None:
    """Weights that know the numbers of one codebook say nothing about those of another."""
    if ours is not None and ours.codebook != theirs.codebook and (ours.codebook or theirs.is_discrete):
        raise CheckpointError(
            f"train.init={name} was trained on numbers of another codebook, so its tokens mean something else; use the "
            f"codec of that model (codec.kind=pretrained codec.path={name}), or start without it."
        )
    if ours is not None and ours.is_discrete and not ours.codebook and ours.vocabulary != theirs.vocabulary:
        raise CheckpointError(
            f"train.init={name} was trained on {theirs.categories} other tokens than these {ours.categories}; use data "
            f"with its vocabulary (data.units=bytes and a tokenizer have the same for all texts), or start without it."
        )


def _check_schedule(model: Trained, denoiser: NetworkFlowMap, name: str) -> None:
    """A flow map is to start as its teacher; other denoisers may start from a network that meant something else."""
    schedules = [getattr(held.process, "schedule", None) for held in (model, denoiser)]
    if schedules[0] != schedules[1] and denoiser.prediction not in SCHEDULE_FREE:
        raise CheckpointError(
            f"train.init={name} predicts {denoiser.prediction} on another schedule, where that means something else; "
            f"set process.schedule to its own."
        )


def _check_prediction(model: Trained, denoiser: Trained, name: str) -> None:
    kinds = getattr(model, "prediction", None), getattr(denoiser, "prediction", None)
    if kinds[0] != kinds[1]:
        raise CheckpointError(f"train.init={name} predicts {kinds[0]}, this run {kinds[1]}; set process.prediction.")
    theirs, ours = (getattr(part, "evidence_free", False) for part in (model, denoiser))
    if theirs != ours:
        raise CheckpointError(
            f"train.init={name} was trained with process.evidence_free={str(theirs).lower()}, so its answers mean "
            f"something else than this run's; set process.evidence_free={str(theirs).lower()}."
        )


def _shape(tensors: dict[str, torch.Tensor], key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "missing"

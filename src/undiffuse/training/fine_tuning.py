"""Starting a run from the weights of a model."""

from __future__ import annotations

import torch

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import CheckpointError
from undiffuse.models import load
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.inflation import fill_inflated, has_temporal


@torch.no_grad()
def start_from(denoiser: Denoiser, name: str) -> None:
    """Copy the weights of a model into a new denoiser of the same network and prediction.

    A video network with temporal attention may start from an image model: it is then, at first, that model frame by
    frame.

    Args:
        denoiser: Changed in place.
        name: A model's folder, or a built-in model.

    Raises:
        CheckpointError: There is no such model, or its network is another.
    """
    model = load(name).denoiser
    theirs, ours = getattr(model, "backbone", None), getattr(denoiser, "backbone", None)
    if isinstance(theirs, Backbone) and isinstance(ours, Backbone) and has_temporal(ours) and not has_temporal(theirs):
        try:
            fill_inflated(ours, theirs.options, theirs.state_dict())
        except ValueError as error:
            raise CheckpointError(f"train.init={name} does not fit: {error}") from error
        _check_prediction(model, denoiser, name)
        return
    given, own = model.state_dict(), denoiser.state_dict()
    wrong = [key for key in sorted(own.keys() | given.keys()) if _shape(given, key) != _shape(own, key)]
    if wrong:
        raise CheckpointError(
            f"train.init={name} does not fit: {wrong[0]!r} is {_shape(given, wrong[0])} there and "
            f"{_shape(own, wrong[0])} here ({len(wrong)} such tensors); use the model.* options and data of its recipe."
        )
    _check_prediction(model, denoiser, name)
    denoiser.load_state_dict(given)


def _check_prediction(model: Denoiser, denoiser: Denoiser, name: str) -> None:
    kinds = getattr(model, "prediction", None), getattr(denoiser, "prediction", None)
    if kinds[0] != kinds[1]:
        raise CheckpointError(f"train.init={name} predicts {kinds[0]}, this run {kinds[1]}; set process.prediction.")


def _shape(tensors: dict[str, torch.Tensor], key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "missing"

"""How the blocks of a network run in training: compiled, with activations computed twice."""

from __future__ import annotations

from undiffuse.errors import TrainingError
from undiffuse.networks.backbone import Backbone
from undiffuse.training.objectives import Trained
from undiffuse.training.options import TrainOptions


def prepare_blocks(denoiser: Trained, options: TrainOptions) -> None:
    """Let a denoiser's blocks run as `compile` and `checkpoint_activations` ask; where neither does, change nothing.

    Args:
        denoiser: On its device. Copies made before run as they are.
        options: Nothing else is read.

    Raises:
        TrainingError: The denoiser has no network with named blocks.
    """
    if not (options.compile or options.checkpoint_activations):
        return
    network = getattr(denoiser, "backbone", None)
    if not isinstance(network, Backbone):
        raise TrainingError(
            f"train.compile and train.checkpoint_activations need a network with named blocks, which this "
            f"{type(denoiser).__name__} does not have; leave them off."
        )
    network.recompute(options.checkpoint_activations)
    if options.compile:
        network.compile_network()

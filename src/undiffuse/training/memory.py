"""How many parameters and how much memory a training step needs, found without allocating any of it.

The network is built and run on fake tensors, which have shapes and no data; every tensor that autograd would keep
for the backward pass is counted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from undiffuse.data import Dataset
from undiffuse.data.memory import free_bytes
from undiffuse.errors import TrainingError
from undiffuse.networks.build import build_network
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.pretrained.tunable import tuned_size
from undiffuse.process.options import CategoricalOptions
from undiffuse.spec import DataSpec
from undiffuse.training.degrade import told_spec
from undiffuse.training.recipe import Recipe
from undiffuse.training.stream import block_elements
from undiffuse.words import human_bytes

_BLOCK_BYTES = 64  # per value of a block, at its peak: normals in float64 with their parts, x_0, x_t and the target
_BACKWARD_SHARE = 1.3  # gradients of activations and workspace, beside what forward keeps


@dataclass(frozen=True)
class Footprint:
    """Parameters of the network, and bytes that training it takes beside the data."""

    parameters: int
    bytes: int


def footprint(recipe: Recipe, spec: DataSpec, processes: int = 1, *, told: bool = False) -> Footprint:
    """Return the size of a recipe's network on this data, and its memory in training.

    Weights, gradients and two moments in float32, one copy per average, what a forward pass of one part of a
    batch keeps for the backward pass, and a block of corrupted batches. With `train.shard` each process has a slice of
    the weights and of what belongs to them, and beside it, at worst, the whole network once gathered and once averaged.
    `told` says that `spec` has the conditions that `recipe.data` adds already, as that of latents does.
    """
    if isinstance(recipe.model, PretrainedNetworkOptions):
        return _tuned(recipe, recipe.model, spec if told else told_spec(spec, recipe.data))
    own_rows = max(1, recipe.train.batch_size // processes)
    rows = max(1, own_rows // recipe.train.accumulate)
    spec = spec if told else told_spec(spec, recipe.data)
    with FakeTensorMode():
        variance = getattr(recipe.objective, "learn_variance", False)
        network = build_network(recipe.model, spec, states=_states(recipe, spec), variance=variance).eval()
        network.recompute(recipe.train.checkpoint_activations)
        parameters = sum(p.numel() for p in network.parameters())
        kept = _saved_bytes(network, _inputs(spec, rows), torch.zeros(rows))
    share = 0.5 if recipe.train.precision == "bfloat16" else 1.0
    copies = _copies(recipe)
    if recipe.train.shard and processes > 1:
        copies = copies / processes + 2
    block = _BLOCK_BYTES * block_elements(spec, own_rows)
    return Footprint(parameters, int(4 * parameters * copies + _BACKWARD_SHARE * share * kept) + block)


def _copies(recipe: Recipe) -> float:
    """Return how often training holds a parameter: itself, its gradient, two moments, averages."""
    return 4 + len(recipe.train.ema) + (recipe.train.ema_every > 1) + getattr(recipe.objective, "copies", 0)


def _tuned(recipe: Recipe, options: PretrainedNetworkOptions, spec: DataSpec) -> Footprint:
    """Return the footprint of a pipeline's network, without what a forward pass keeps."""
    trained, others = tuned_size(str(recipe.train.init), spec, options)
    return Footprint(trained, int(4 * trained * _copies(recipe)) + others)


def require_training_memory(need: Footprint, device: torch.device) -> None:
    """Refuse a run that would not fit.

    Raises:
        TrainingError: The footprint exceeds what is free on the device.
    """
    free = free_on(device)
    if free is not None and need.bytes > free:
        raise TrainingError(
            f"training needs about {human_bytes(need.bytes)} but {human_bytes(free)} are free; lower train.batch_size, "
            f"raise train.accumulate, or make the network smaller (model.channels, model.width; of a "
            f"pipeline model.dtype=bfloat16)."
        )


def place_data(dataset: Dataset, need: Footprint, device: torch.device) -> Dataset:
    """Return the data set on the device if it fits there beside the training, else where it is."""
    free = free_on(device)
    return dataset.to(device) if free is None or need.bytes + data_bytes(dataset) <= free else dataset


def data_bytes(dataset: Dataset) -> int:
    """Return the bytes of the tensors that a data set holds."""
    values = vars(dataset).values()
    held = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    return sum(value.nbytes for value in held if isinstance(value, Tensor))


def free_on(device: torch.device) -> int | None:
    """Return the free bytes of a device, or None where the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()


def _saved_bytes(network: nn.Module, x: Tensor, level: Tensor) -> int:
    sizes: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    alive: list[Tensor] = []  # keeps storages alive, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(x, level, None)
    return sum(sizes.values())


def _inputs(spec: DataSpec, rows: int) -> Tensor:
    dtype = torch.int64 if spec.is_discrete else torch.float32
    return torch.zeros(rows, *spec.shape, dtype=dtype)


def _states(recipe: Recipe, spec: DataSpec) -> int | None:
    if not isinstance(recipe.process, CategoricalOptions):
        return None
    return spec.categories + (recipe.process.corruption != "uniform")

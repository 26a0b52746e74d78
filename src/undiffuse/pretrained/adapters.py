"""What is done to a pipeline after it was read: other weights, LoRA, slices, devices. diffusers and peft do it."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from undiffuse.errors import CheckpointError
from undiffuse.models.folder import fill, read_tensors
from undiffuse.pretrained.options import PretrainedOptions

_ADAPTER_CONFIG = "adapter_config.json"
LORA_FILE, NETWORK_FILE = "pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"  # of diffusers
_USUAL = (LORA_FILE, "adapter_model.safetensors")  # the second is what peft calls it
_PEFT = "base_model.model."  # before the names of a network in peft's own files


def check_offload(options: PretrainedOptions) -> None:
    """Refuse to offload where there is nothing to offload from.

    Raises:
        ValueError: There is no accelerator.
    """
    if options.offload != "none" and not torch.accelerator.is_available():
        raise ValueError(
            f"offload={options.offload} keeps on the accelerator only what runs, and this machine has none; leave it "
            f"out: the whole model is on the CPU."
        )


def check_plain(options: PretrainedOptions, what: str) -> None:
    """Refuse what only pipelines know.

    Raises:
        ValueError: An adapter, offloading or slices, for a network alone.
    """
    for name in ("network", "lora", "offload", "slicing"):
        if getattr(options, name) != getattr(PretrainedOptions(), name):
            raise ValueError(f"{name} is an option of whole pipelines; {what} is a network alone. Leave it out.")


def adapt(pipe: Any, part: str, options: PretrainedOptions) -> None:
    """Put other weights into a pipeline, and pass on what diffusers does to it: adapters, slicing, devices.

    Args:
        pipe: The pipeline, changed in place.
        part: Name of its network.
        options: What is asked for.

    Raises:
        CheckpointError: The weights cannot be read, or do not fit the pipeline.
    """
    if options.network:
        replace_network(getattr(pipe, part), options.network)
    if options.lora:
        add_lora(pipe, part, options.lora, options.lora_scale)
    if options.slicing:
        pipe.enable_attention_slicing()
        if getattr(pipe, "vae", None) is not None:
            pipe.vae.enable_slicing()
    if options.offload != "none":
        device = {} if options.device is None else {"device": options.device}
        offload = pipe.enable_model_cpu_offload if options.offload == "model" else pipe.enable_sequential_cpu_offload
        offload(**device)
    elif options.device is not None:
        pipe.to(options.device)


def replace_network(network: Any, name: str) -> None:
    """Put other weights into a network.

    Args:
        network: Changed in place.
        name: A safetensors file, or the folder of one, as diffusers writes it.

    Raises:
        CheckpointError: There is no such file, or it is of another network.
    """
    path = Path(name).expanduser()
    path = path / NETWORK_FILE if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise CheckpointError(
            f"network={name} is no safetensors file, nor a folder with {NETWORK_FILE} whole; pickles are refused."
        )
    fill(network, path)


def add_lora(pipe: Any, part: str, lora: str, scale: float) -> None:
    """Add `scale` times LoRA weights to those of a pipeline; nothing of them is kept beside.

    Args:
        pipe: Changed in place.
        part: Name of its network.
        lora: A file as diffusers writes it (network, text encoders), or the folder of one; or a folder that peft
            wrote of the network.
        scale: How much.

    Raises:
        CheckpointError: peft is not there, the file is none, or most of it does not fit.

    Warns:
        UserWarning: Some of it does not fit.
    """
    if importlib.util.find_spec("peft") is None:
        raise CheckpointError(f"lora={lora} needs peft: pip install peft.")
    if not hasattr(pipe, "load_lora_weights"):
        raise CheckpointError(f"lora={lora}: a {type(pipe).__name__} takes no LoRA weights; leave lora out.")
    path = _lora_file(lora)
    tensors = read_tensors(path)
    given = [name for name in tensors if "lora" in name.lower() and not name.endswith("alpha")]
    if not given:
        raise CheckpointError(f"lora={lora} holds {len(tensors)} tensors and none of LoRA; give a file of an adapter.")
    try:
        with _quiet():  # what they say about names that do not fit is said below
            if any(name.startswith(_PEFT) for name in tensors):
                _load_of_peft(getattr(pipe, part), path, tensors)
            else:
                pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
        taken = _count_loaded(pipe)
    except (OSError, KeyError, ValueError, AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
        raise _unfitting(lora, pipe, " ".join(str(error).split())[:160]) from error
    if 2 * taken < len(given):
        raise _unfitting(lora, pipe, f"{taken} of its {len(given)} tensors have a layer there")
    if taken < len(given):
        warnings.warn(
            f"lora={lora}: {len(given) - taken} of its {len(given)} tensors fit nothing in this {type(pipe).__name__} "
            f"and are left out.",
            stacklevel=2,
        )
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()  # the layers are those of the pipeline again, with the sum as their weights


def _unfitting(lora: str, pipe: Any, reason: str) -> CheckpointError:
    return CheckpointError(
        f"lora={lora} does not fit this {type(pipe).__name__} ({reason}); give one that was trained on this model."
    )


def _lora_file(lora: str) -> Path:
    path = Path(lora).expanduser()
    if not path.exists():
        raise CheckpointError(f"lora={lora} does not exist; give a folder or a safetensors file.")
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        chosen = [file for file in found if file.name in _USUAL] or found
        if len(chosen) != 1:
            what = f"{len(chosen)} safetensors files" if chosen else "no safetensors file"
            raise CheckpointError(f"lora={lora} is a folder with {what}; name the file. Pickles are refused.")
        return chosen[0]
    if path.suffix != ".safetensors":
        raise CheckpointError(f"lora={lora} is no safetensors file; pickles are refused.")
    return path


def _load_of_peft(network: Any, path: Path, tensors: dict[str, Any]) -> None:
    """Load what `PeftModel.save_pretrained` wrote of a network."""
    config = path.parent / _ADAPTER_CONFIG
    if not config.is_file():
        raise ValueError(f"{_ADAPTER_CONFIG} is missing beside it")
    settings = json.loads(config.read_text(encoding="utf-8"))
    names = {name.removeprefix(_PEFT): tensor for name, tensor in tensors.items()}
    network.load_lora_adapter(names, prefix=None, metadata=settings)


@contextmanager
def _quiet() -> Iterator[None]:
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _count_loaded(pipe: Any) -> int:
    """Return how many tensors of adapters the pipeline has."""
    parts = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum("lora_" in name for part in parts for name, _ in part.named_parameters())

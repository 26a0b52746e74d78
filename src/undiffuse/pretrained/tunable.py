"""What of a pipeline can be tuned on given data, and how large that is. Its files say so, before anything is loaded."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

from undiffuse.errors import CheckpointError, ConfigError
from undiffuse.networks.options import LABEL_WORD, PretrainedNetworkOptions
from undiffuse.pretrained.files import read_json
from undiffuse.pretrained.loading import INDEX, configs_of, local_folder, part_of, prompted_family
from undiffuse.pretrained.readers import LABEL
from undiffuse.spec import DataSpec

_Shapes = dict[str, tuple[int, ...]]


def tuned_size(name: str, spec: DataSpec, options: PretrainedNetworkOptions) -> tuple[int, int]:
    """Return how many numbers of a pipeline are trained, and the bytes of all others.

    Args:
        name: Its folder, or its name on the hub.
        spec: Of the latents, with the conditions of the data.
        options: What is trained.

    Raises:
        CheckpointError: It cannot be read, reads no prompts, was distilled, or takes no such LoRA.
        ConfigError: The data have conditions that a prompt cannot say, or sides that its patches do not divide, or
            nothing says what they show.
    """
    folder = local_folder(name)
    check_prompted(folder)
    caption_of(spec, options.prompt)
    _check_sides(folder, spec)
    inside, parts = part_of(folder), _shapes(folder)
    counts = {part: sum(math.prod(shape) for shape in shapes.values()) for part, shapes in parts.items()}
    trained = counts[inside]
    if options.rank:
        _check_lora(folder, parts[inside], options)
        layers = [shape for key, shape in parts[inside].items() if _is_meant(key, shape, options.targets)]
        trained = sum(options.rank * (shape[0] + math.prod(shape[1:])) for shape in layers)
    others = sum(counts.values()) - (0 if options.rank else trained)
    return trained, others * (2 if options.dtype == "bfloat16" else 4)


def check_prompted(folder: Path) -> None:
    """Refuse what is no pipeline with prompts.

    Raises:
        CheckpointError: It is not, or it was distilled for few steps.
    """
    if prompted_family(str(folder)) is None:
        raise CheckpointError(
            f"train.init={folder} reads no prompts, so model=pretrained does not go with it; leave model out."
        )
    network, _, _ = configs_of(str(folder))
    if network.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            f"train.init={folder} was distilled for few steps, which training as a denoiser would undo; tune the model "
            f"that it was made from."
        )


def caption_of(spec: DataSpec, prompt: str) -> str | None:
    """Return the name of the condition that holds captions; None where classes or one prompt for all take its place.

    Raises:
        ConfigError: There are other conditions, or nothing says what the pictures show.
    """
    texts = [name for name, part in spec.conditions.items() if part.kind == "text"]
    others = sorted(name for name in spec.conditions if name != LABEL and name not in texts)
    if others or len(texts) > 1:
        raise ConfigError(
            f"model=pretrained reads one caption and nothing else, but these data have {', '.join(others or texts)}; "
            f"name the column of captions (data.cond=caption, or caption:text where it never varies)."
        )
    if not texts and not spec.classes and (LABEL_WORD in prompt or not prompt):
        raise ConfigError(
            "nothing says what the pictures show: put photo.txt beside photo.jpg, name the column of captions "
            "(data.cond=caption), use a folder for each class, or give one prompt for all "
            '(model.prompt="a photo of ...").'
        )
    return texts[0] if texts else None


def codec_factor(folder: Path) -> int:
    """Return how many pixels of a side one number of a pipeline's latents stands for."""
    return 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)


def _check_sides(folder: Path, spec: DataSpec) -> None:
    """Refuse pictures that do not split into the network's patches."""
    network, _, _ = configs_of(str(folder))
    packed = network.get("_class_name") == "FluxTransformer2DModel"
    patch = 2 if packed else int(network.get("patch_size") or 1)
    if any(side % patch for sides in (spec.shape[1:], *spec.sizes) for side in sides):
        factor = codec_factor(folder)
        sizes = " x ".join(str(side * factor) for side in spec.shape[1:])
        raise ConfigError(
            f"the network of {folder} works on squares of {patch * factor} pixels, into which pictures of {sizes} do "
            f"not split; set data.size to a multiple of {patch * factor}."
        )


def _check_lora(folder: Path, shapes: _Shapes, options: PretrainedNetworkOptions) -> None:
    """Refuse a LoRA where there can be none, and targets that name no layer."""
    import diffusers

    kind = read_json(folder / INDEX)["_class_name"]
    if importlib.util.find_spec("peft") is None:
        raise CheckpointError(f"model.rank={options.rank} needs peft: pip install peft; or set model.rank=0.")
    if not hasattr(getattr(diffusers, kind), "load_lora_weights"):
        raise CheckpointError(
            f"a {kind} of diffusers takes no LoRA; set model.rank=0 to train all weights, with train.lr=1e-5 or so."
        )
    missing = [name for name in options.targets if not any(_is_meant(key, at, (name,)) for key, at in shapes.items())]
    if missing:
        layers = sorted({_short(key) for key, shape in shapes.items() if _is_meant(key, shape, ("",))})
        raise CheckpointError(
            f"model.targets: no layer of this network ends in {missing[0]!r}; its layers end in {', '.join(layers)}."
        )


def _is_meant(key: str, shape: tuple[int, ...], targets: tuple[str, ...]) -> bool:
    """Whether a tensor is the matrix of a layer whose name ends in one of `targets`."""
    ends = tuple(f".{target}.weight" if target else ".weight" for target in targets)
    return len(shape) > 1 and key.endswith(ends)


def _short(key: str) -> str:
    """Return the end of a layer's name, with what numbers alone would leave out."""
    names = key.split(".")[:-1]
    return ".".join(names[-2:] if names[-1].isdigit() else names[-1:])


def _shapes(folder: Path) -> dict[str, _Shapes]:
    """Return the shapes of all tensors, by part of the pipeline, variants such as .fp16 left out."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, _Shapes] = {}
    try:
        for path in sorted(folder.glob("*/*.safetensors")):
            if "." in path.stem:
                continue
            with safe_open(path, framework="pt") as file:
                tensors: Any = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            found.setdefault(path.parent.name, {}).update(tensors)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}); copy it again.") from error
    if part_of(folder) not in found:
        raise CheckpointError(f"{folder / part_of(folder)} holds no safetensors; pickles and variants are not read.")
    return found

"""Folders and hub ids of diffusers become models."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.codecs.options import PretrainedCodecOptions
from undiffuse.errors import CheckpointError, PlanError
from undiffuse.models.scheduled import SCHEDULER
from undiffuse.networks.diffusers_network import DiffusersNetwork
from undiffuse.pretrained.adapters import adapt, check_offload, check_plain
from undiffuse.pretrained.consistency import ConsistencyMap, read_consistency
from undiffuse.pretrained.denoiser import DiffusersDenoiser
from undiffuse.pretrained.families import BARE, DISTILLED, FAMILIES, Family, classes_of, labels_of
from undiffuse.pretrained.files import read_beside, read_json
from undiffuse.pretrained.options import PretrainedOptions
from undiffuse.pretrained.readers import Reader
from undiffuse.pretrained.refusals import check_code, check_known, check_pickles
from undiffuse.pretrained.vq_diffusion import load_vq_diffusion
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from undiffuse.codecs.pretrained import PretrainedCodec
    from undiffuse.models.model import Model

INDEX = "model_index.json"
_CONFIG, _SCHEDULE = "config.json", "scheduler_config.json"
_VQ_DIFFUSION = "VQDiffusionPipeline"
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_HUB = re.compile(r"(hf://?)?([\w.-]+/[\w.-]+)")  # one slash where it went through a Path
_PATH = re.compile(r"[.~/].*|.*\.[A-Za-z][A-Za-z0-9]*|runs/.*")  # a hub's name may end in .5 or .1-dev, not in .json


def hub_id(name: str) -> str | None:
    """Return the hub's owner/name where `name` means one: with hf:// before it, or owner/name that looks like no path.

    A path begins with . or / or ~ or runs/, ends in a suffix such as .safetensors, has several slashes, or lies in a
    folder that exists.
    """
    found = _HUB.fullmatch(name)
    if found is None:
        return None
    return found[2] if found[1] or not (_PATH.fullmatch(name) or Path(name).parent.exists()) else None


def is_bare(folder: Path) -> bool:
    """Whether a folder holds a network of diffusers without a pipeline."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "_diffusers_version" in config


def is_diffusers(name: str) -> bool:
    """Whether a name means a pipeline or network of diffusers: a folder of one, or a hub id."""
    folder = Path(name).expanduser()
    return is_diffusers_folder(folder) or (not folder.exists() and hub_id(name) is not None)


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder holds a pipeline or network of diffusers."""
    return (folder / INDEX).is_file() or is_bare(folder)


@lru_cache(maxsize=16)
def fetch(name: str) -> Path:
    """Return the folder of a pipeline of the hub, fetched with its safetensors only, or as it was fetched before.

    Raises:
        CheckpointError: The hub cannot be reached, or has no such pipeline.
    """
    diffusers = _diffusers(name)
    try:
        return Path(diffusers.DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # the hub's client raises a dozen kinds, of several libraries
        reason = _first_line(error).split(" (")[0][:120]
        raise CheckpointError(
            f"there is no folder {name!r}, and no pipeline of that name could be fetched from the hub ({reason}). "
            f"Without a network, copy the pipeline's folder here and give its path: undiffuse.load('FOLDER')."
        ) from error


def local_folder(name: str) -> Path:
    """Return a folder, or where a model of the hub was fetched to.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    folder = Path(name).expanduser()
    on_hub = None if folder.exists() else hub_id(name)
    return folder if on_hub is None else fetch(on_hub)


def configs_of(name: str) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Return the configurations of a model's network and scheduler, and the pipeline's folder where it has a codec.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        CheckpointError: It cannot be read, or its class is unknown.
    """
    folder = local_folder(name)
    if not (folder / INDEX).is_file():
        places = (folder / _SCHEDULE, folder.parent / "scheduler" / _SCHEDULE)
        return read_json(folder / _CONFIG), _scheduler_config(folder, PretrainedOptions(), *places), None
    kind = read_json(folder / INDEX).get("_class_name")
    check_known(folder, "pipeline", kind, FAMILIES)
    family = FAMILIES[str(kind)]
    scheduler = read_json(folder / "scheduler" / _SCHEDULE)
    return read_json(folder / family.part / _CONFIG), scheduler, folder if family.latent else None


def prompted_family(name: str) -> Family | None:
    """Return the family of a pipeline of diffusers that reads prompts; None where a name means something else."""
    index = local_folder(name) / INDEX
    family = FAMILIES.get(str(read_json(index).get("_class_name"))) if index.is_file() else None
    return None if family is None or family.reader is None else family


def usual_guidance(name: str, family: Family) -> float:
    """Return the scale of classifier-free guidance that a pipeline takes by default."""
    pipeline = getattr(_diffusers(name), read_json(local_folder(name) / INDEX)["_class_name"])
    return float(inspect.signature(pipeline.__call__).parameters[family.scale].default)


def part_of(folder: Path) -> str:
    """Return the name of the network in the folder of a known pipeline."""
    return FAMILIES[str(read_json(folder / INDEX)["_class_name"])].part


def load_diffusers(folder: Path, options: PretrainedOptions) -> Model:
    """Load the folder of a pipeline, or of a single network.

    Raises:
        CheckpointError: An unknown class, a missing part, a pickle, foreign code, or diffusers or peft is not there.
    """
    if (folder / INDEX).is_file():
        return _load_pipeline(folder, read_json(folder / INDEX), options)
    return _load_bare(folder, options)


def _load_pipeline(folder: Path, index: dict[str, Any], options: PretrainedOptions) -> Model:
    name = index.get("_class_name")
    check_code(folder, index)
    check_known(folder, "pipeline", name, [*FAMILIES, _VQ_DIFFUSION])
    if name == _VQ_DIFFUSION:
        if options != PretrainedOptions():
            raise ValueError(f"{folder} is a {name}, which takes no options; leave them out.")
        with _explained(folder):
            return load_vq_diffusion(folder)
    family = FAMILIES[str(name)]
    check_offload(options)
    parts = [part for part, what in index.items() if isinstance(what, list) and what[0] is not None]
    check_pickles(folder, [part for part in parts if part not in _UNUSED])
    with _explained(folder):
        pipe = _read_pipeline(folder, str(name), index, options)
        adapt(pipe, family.part, options)
        return _compiled(_model(folder, pipe, family, str(name), index, options), options)


def _read_pipeline(folder: Path, name: str, index: dict[str, Any], options: PretrainedOptions) -> Any:
    diffusers = _diffusers(str(folder))
    without: dict[str, Any] = {part: None for part in _UNUSED if part in index}
    if "safety_checker" in without:
        without["requires_safety_checker"] = False
    dtype = getattr(torch, str(options.dtype).removeprefix("torch."))
    pipe = getattr(diffusers, name).from_pretrained(
        str(folder), use_safetensors=True, dtype=dtype, local_files_only=True, **without
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _model(
    folder: Path, pipe: Any, family: Family, name: str, index: dict[str, Any], options: PretrainedOptions
) -> Model:
    network = getattr(pipe, family.part)
    config = _scheduler_config(folder, options, folder / "scheduler" / _SCHEDULE)
    size = (options.size,) * 2 if options.size else image_size(pipe, network, family)
    beside = read_beside(folder)
    reader = labels_of(network, beside.get("null")) if family.reader is None else family.reader(pipe, size)
    classes = classes_of(network, index.get("id2label"), beside)
    channels = pipe.vae.config.in_channels if family.latent else network.config.in_channels
    cond = getattr(reader, "conditions", {})
    span = DataSpec.from_json(beside["data"]).range if "data" in beside else (0.0, 255.0)
    spec = DataSpec(kind="image", shape=(channels, *size), range=span, classes=classes, cond=cond)
    codec = _codec(folder, pipe, spec) if family.latent else None
    asked = inspect.signature(type(pipe).__call__).parameters
    defaults: dict[str, Any] = {"steps": asked["num_inference_steps"].default}
    if family.scale and (DISTILLED not in cond or family.scale != "guidance_scale"):
        defaults["guidance"] = float(asked[family.scale].default)
    return _assemble(
        pipe,
        DiffusersNetwork(network.requires_grad_(False), family.ask, (codec.latent if codec else spec).channels),
        reader,
        config,
        spec,
        codec,
        defaults=defaults,
        info={"pipeline": name, "source": str(folder), "load": _said(options)},
        family=family,
    )


def _load_bare(folder: Path, options: PretrainedOptions) -> Model:
    diffusers = _diffusers(str(folder))
    name = read_json(folder / _CONFIG).get("_class_name")
    check_known(folder, "network", name, BARE)
    check_plain(options, str(folder))
    check_pickles(folder, [""])
    config = _scheduler_config(folder, options, folder / _SCHEDULE, folder.parent / "scheduler" / _SCHEDULE)
    with _explained(folder):
        dtype = getattr(torch, str(options.dtype).removeprefix("torch."))
        network = getattr(diffusers, str(name)).from_pretrained(str(folder), use_safetensors=True, dtype=dtype)
        network = network.to(options.device) if options.device is not None else network
        beside = read_beside(folder)
        spec = _spec_alone(network, str(name), _sides(options.size or network.config.sample_size), beside)
        consistent = config.get("_class_name") == "CMStochasticIterativeScheduler"
        family = FAMILIES["ConsistencyModelPipeline" if consistent else "DDPMPipeline"]
        model = _assemble(
            network,
            DiffusersNetwork(network.requires_grad_(False), BARE[str(name)], spec.channels),
            labels_of(network, beside.get("null")),
            config,
            spec,
            None,
            defaults={} if not consistent else {"steps": 1},
            info={"pipeline": str(name), "source": str(folder), "load": _said(options)},
            family=family,
        )
        return _compiled(model, options)


def _spec_alone(network: Any, name: str, sides: tuple[int, int], beside: dict[str, Any]) -> DataSpec:
    """Return what the states of a network without a pipeline are."""
    shape = (network.config.in_channels, *sides)
    if beside:
        return replace(DataSpec.from_json(beside["spec"]), shape=shape)
    span = (0.0, 255.0) if name == "UNet2DModel" else None  # others make latents of an unknown codec
    return DataSpec(kind="image", shape=shape, range=span, classes=classes_of(network))


def _compiled(model: Model, options: PretrainedOptions) -> Model:
    return model.compile() if options.compile else model


def _assemble(
    held: Any,
    network: DiffusersNetwork,
    reader: Reader,
    config: dict[str, Any],
    spec: DataSpec,
    codec: PretrainedCodec | None,
    *,
    defaults: dict[str, Any],
    info: dict[str, Any],
    family: Family,
) -> Model:
    """Put network, process and codec together."""
    from undiffuse.models.model import Model
    from undiffuse.sampling.diffusers_setup import from_diffusers

    state = codec.latent if codec else spec
    if family.kind == "consistency":
        process, data_std = read_consistency(config)
        jump = ConsistencyMap(network, process, reader, spec=state, data_std=data_std, held=held)
        return Model(jump.eval(), spec, defaults, info, codec)
    try:
        setup = from_diffusers(config, mu=0.0)
    except PlanError as error:
        raise CheckpointError(
            f"{info['source']}: {error} Give the config of another scheduler on the same noise levels: "
            f"load(folder, scheduler='scheduler_config.json')."
        ) from error
    denoiser = DiffusersDenoiser(
        network,
        setup.process,
        setup.prediction,
        reader,
        spec=state,
        data_std=setup.data_std,
        total=int(config.get("num_train_timesteps", 1000)),
        held=held,
    )
    plain = {key: value for key, value in config.items() if key in ("_class_name",) or not key.startswith("_")}
    defaults[SCHEDULER] = {"config": plain, "per_step": family.per_step, "patch": network.patch}
    return Model(denoiser.eval(), spec, defaults, info, codec)


def _said(options: PretrainedOptions) -> dict[str, Any]:
    """Return the options that change what a model says, as plain JSON types; not those of where and how it runs."""
    plain = PretrainedOptions()
    names = ("dtype", "network", "lora", "lora_scale", "scheduler", "size")
    said = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(plain, name)}
    return {name: str(value) if isinstance(value, Path | torch.dtype) else value for name, value in said.items()}


def _codec(folder: Path, pipe: Any, spec: DataSpec) -> PretrainedCodec:
    from undiffuse.codecs.pretrained import PretrainedCodec

    return PretrainedCodec(spec, PretrainedCodecOptions(path=str(folder)), pipe.vae)


def image_size(pipe: Any, network: Any, family: Family) -> tuple[int, int]:
    """Return height and width of a pipeline's images in pixels."""
    height, width = _sides(getattr(pipe, "default_sample_size", None) or network.config.get("sample_size"))
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1) if family.latent else 1
    return height * factor, width * factor


def _sides(size: Any) -> tuple[int, int]:
    """Return height and width of a `sample_size`, which is one number or two."""
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    if not isinstance(size, int):
        raise ValueError(f"sample_size is {size}; say the size in pixels: load(folder, size=512)")
    return size, size


def _scheduler_config(folder: Path, options: PretrainedOptions, *places: Path) -> dict[str, Any]:
    given = options.scheduler
    if isinstance(given, dict):
        return given
    if given is not None:
        path = Path(given).expanduser()
        return read_json(path / _SCHEDULE if path.is_dir() else path)
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        raise CheckpointError(
            f"{folder} says nothing about its noise levels; give the scheduler it was trained for: load(folder, "
            f"scheduler='scheduler_config.json')."
        )
    return read_json(place)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Name the folder in what goes wrong, and keep the libraries from drawing bars."""
    try:
        with _without_bars():
            yield
    except ImportError as error:
        raise CheckpointError(f"{folder} needs a library that is not here ({_first_line(error)}).") from error
    except (OSError, KeyError, ValueError, AttributeError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded ({_first_line(error)}); every part must be there, whole and as safetensors."
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    shown = [library for library in (ours, theirs) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _diffusers(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError(f"{name} needs diffusers: pip install 'undiffuse[pretrained]' ({error}).") from error
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_news)
    return diffusers


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message is about more than processors of pictures, which pipelines name and nothing here uses."""
    return "ImageProcessor" not in record.getMessage()

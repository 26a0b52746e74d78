"""A model on disk: a folder with model.safetensors, config.json and README.md. Never pickle, never code.

Where the model has a codec, `codec.safetensors` lies beside them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.codecs.build import codec_from_json, codec_to_json
from undiffuse.codecs.codec import Codec
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.errors import CheckpointError
from undiffuse.models.description import denoiser_from_json, denoiser_to_json
from undiffuse.models.folder import CODEC, CONFIG, SCHEMA, WEIGHTS, fill, read_config, write_config, write_folder
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.models.model import Model


BUILTIN = ("digits", "cifar10")
"""Models shipped with the package, in its `builtin` folder."""


def load(name: str | Path, *, check: bool = False, **options: Any) -> Model:
    """Load a model: a built-in name, a folder that `Model.save` or a training run wrote, or a pipeline of diffusers.

    Args:
        name: The name, the folder, or owner/name of a pipeline on the hub of Hugging Face (hf:// may stand before it).
        check: Ask the network about noised data, and refuse it where its answers are those of another prediction type
            than its configuration says; see `undiffuse.models.checks`.
        options: Of pipelines and networks of diffusers: see `undiffuse.pretrained.PretrainedOptions`.

    Raises:
        CheckpointError: Nothing there, damaged, a pickle, of a newer schema, or tensors of another shape; or the check
            found another prediction type.
        ValueError: Options for a model that takes none.
    """
    model = _load(name, options)
    if check:
        from undiffuse.models.checks import check_model

        check_model(model)
    return model


def _load(name: str | Path, options: dict[str, Any]) -> Model:
    from undiffuse.models.model import Model
    from undiffuse.pretrained.loading import fetch, hub_id, is_diffusers_folder, load_diffusers
    from undiffuse.pretrained.options import PretrainedOptions

    if str(name) in BUILTIN and not (Path(name) / CONFIG).is_file():  # a model folder of that name goes first
        _refuse_options(options, name)
        with resources.as_file(resources.files("undiffuse") / "builtin" / str(name)) as folder:
            return _load(folder, options)
    folder = Path(name).expanduser()
    if not folder.exists() and (on_hub := hub_id(str(name))) is not None:
        folder = fetch(on_hub)
    if is_diffusers_folder(folder):
        return load_diffusers(folder, PretrainedOptions.of(**options))
    _refuse_options(options, name)
    _check_folder(folder)
    config = read_config(folder / CONFIG)
    if config.get("kind") == "pretrained":
        return _load_reference(config, folder)
    if config.get("kind") == "codec":
        raise CheckpointError(
            f"{folder} is a codec without a denoiser; train one on its latents: undiffuse train DATA recipe=vq-image "
            f"codec.kind=pretrained codec.path={folder}."
        )
    try:
        spec = DataSpec.from_json(config["spec"])
        codec = codec_from_json(config["codec"], spec) if config.get("codec") else None
        _check_codes(config, codec)
        denoiser = denoiser_from_json(config, codec.latent if codec else spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} does not describe a model ({error}); restore it or train again."
        ) from error
    fill(denoiser, folder / WEIGHTS)
    if codec is not None:
        fill_codec(codec, folder)
    return Model(denoiser.eval(), spec, config.get("defaults"), config.get("info"), codec)


def _load_reference(config: dict[str, Any], folder: Path) -> Model:
    """Load the pipeline that a saved model refers to, with the defaults that were saved and what was trained since."""
    from undiffuse.pretrained.reference import referred

    source, options = referred(config, folder)
    model = _load(source, options)
    found = {"source": str(source), "load": options}  # as absolute paths, for the reference may lie anywhere
    model.defaults, model.info = dict(config["defaults"]), {**config["info"], **found}
    return model


def save_model(model: Model, folder: Path) -> Path:
    """Write the three files, each whole or not at all; the weights first.

    Of a pipeline of diffusers only a reference is written, by path and hash, and beside it what was trained since.

    Raises:
        TypeError: The denoiser is wrapped or its network was built by hand.
        CheckpointError: The folder cannot be written.
    """
    from undiffuse.pretrained.reference import reference_to_json

    refers, tuned = "pipeline" in model.info and "source" in model.info, getattr(model.module, "tuned", {})
    facts = {
        "spec": model.spec.to_json(),
        **(reference_to_json(model.info, tuned) if refers else denoiser_to_json(model.module)),
        "defaults": model.defaults,
        "info": model.info,
        "codec": codec_to_json(model.codec) if model.codec and not refers else None,
    }
    modules = {WEIGHTS: model.module, CODEC: model.codec}
    parts = {name: part.state_dict() for name, part in modules.items() if part is not None}
    kind = "flow-map" if isinstance(model.module, FlowMap) else "denoiser"
    write_folder(folder, kind, facts, tuned if refers else parts, _card(model))
    return folder


def fill_codec(codec: Codec, folder: Path) -> None:
    """Fill a codec from the file in `folder`.

    Raises:
        CheckpointError: It is missing or damaged, of another codec, or has another codebook than the config says.
    """
    fill(codec, folder / CODEC)
    if isinstance(codec, TokenCodec):
        codec.check_seal()


def save_defaults(folder: Path, changes: dict[str, Any]) -> None:
    """Change how the model in `folder` samples by default, and nothing else about it.

    Raises:
        CheckpointError: There is no model, or it cannot be written.
    """
    _check_folder(folder)
    config = read_config(folder / CONFIG)
    changed = {"schema": SCHEMA, "defaults": (config.get("defaults") or {}) | changes}
    try:
        write_config(folder, config | changed)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder / CONFIG}: {error.strerror or error}.") from error


def _refuse_options(options: dict[str, Any], name: str | Path) -> None:
    for option in options:
        raise ValueError(f"{option} is an option of pretrained pipelines; {name} is none. Leave it out.")


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise CheckpointError(
            f"there is no model {str(folder)!r}; give a run's folder or a built-in model ({', '.join(BUILTIN)})."
            f"{did_you_mean(str(folder), BUILTIN)}"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder that holds {WEIGHTS} and {CONFIG}.")
    if (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is a diffusers pipeline, which is loaded as it is; nothing in it is changed.")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}; a training run writes it with its first checkpoint.")


def _check_codes(config: dict[str, Any], codec: Codec | None) -> None:
    """Refuse a codec with another number of code vectors than the denoiser's tokens have."""
    classes = config["process"].get("classes")
    if isinstance(codec, TokenCodec) and codec.latent.categories != classes:
        raise CheckpointError(
            f"the codec has {codec.latent.categories} code vectors, the denoiser was trained on tokens of {classes}; "
            f"put its own codec back, or train a denoiser on the new one."
        )


def _card(model: Model) -> list[str]:
    spec = model.spec
    return [
        "# A diffusion model",
        "",
        f"- data: {spec.kind} of shape {spec.shape}" + (f", {len(spec.classes)} classes" if spec.classes else ""),
        f"- network: {model.parameters / 1e6:.2f} million parameters",
        *(f"- {key}: {value}" for key, value in model.info.items() if isinstance(value, (str, int, float))),
        "",
        "Made with undiffuse. Load it with `undiffuse.load(folder)` or `undiffuse sample FOLDER`.",
        "",
    ]

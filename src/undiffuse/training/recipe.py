"""`Recipe`: everything a run depends on, as one tree of options; and choosing a shipped one. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.codecs.options import (
    AutoencoderOptions,
    NoCodecOptions,
    PCAOptions,
    PretrainedCodecOptions,
    VQOptions,
)
from undiffuse.config import load_yaml, resolve, to_dict
from undiffuse.data.options import DataOptions
from undiffuse.distillation.mmd_options import MMDOptions
from undiffuse.distillation.options import (
    ConsistencyOptions,
    CTMOptions,
    DMDOptions,
    FlowMapOptions,
    MeanFlowOptions,
    ProgressiveOptions,
    ReflowOptions,
    SCMOptions,
    ShortcutOptions,
)
from undiffuse.errors import ConfigError
from undiffuse.networks.options import (
    DiffusersDiTOptions,
    DiffusersUNetOptions,
    DiTOptions,
    MLPOptions,
    PretrainedNetworkOptions,
    TransformerOptions,
    UNetOptions,
)
from undiffuse.process.options import CategoricalOptions, GaussianOptions
from undiffuse.sampling.options import SampleOptions
from undiffuse.training.options import (
    RUNTIME_KEYS,
    AutoregressiveOptions,
    CategoricalELBOOptions,
    DenoisingOptions,
    MaskedELBOOptions,
    TrainOptions,
)
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.spec import DataSpec

RECIPES = (
    "digits",
    "cifar10",
    "image",
    "latent",
    "restoration",
    "video",
    "video-digits",
    "signals",
    "vector",
    "text",
    "table",
    "vq-image",
    "vq-ddm",
    "vq-diffusion",
)
"""Names of the recipes shipped in the package's `recipes` folder."""

_PATHS = frozenset({"data.source", "data.pair", "data.tokenizer", "train.init", "codec.path", "objective.teacher"})


_CONTINUOUS = (
    UNetOptions,
    DiTOptions,
    MLPOptions,
    DiffusersUNetOptions,
    DiffusersDiTOptions,
    PretrainedNetworkOptions,
)
"""Networks of numbers."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, network, process, objective, training and sampling of one run."""

    data: DataOptions = field(default_factory=DataOptions, metadata={"help": "what to train on"})
    codec: NoCodecOptions | PCAOptions | AutoencoderOptions | VQOptions | PretrainedCodecOptions = field(
        default_factory=NoCodecOptions, metadata={"help": "what turns data into the latents to train on"}
    )
    model: (
        UNetOptions
        | DiTOptions
        | MLPOptions
        | TransformerOptions
        | DiffusersUNetOptions
        | DiffusersDiTOptions
        | PretrainedNetworkOptions
    ) = field(default_factory=UNetOptions, metadata={"help": "the network"})
    process: GaussianOptions | CategoricalOptions = field(
        default_factory=GaussianOptions, metadata={"help": "how data turns into noise"}
    )
    objective: (
        DenoisingOptions
        | MaskedELBOOptions
        | CategoricalELBOOptions
        | AutoregressiveOptions
        | MMDOptions
        | ProgressiveOptions
        | ConsistencyOptions
        | SCMOptions
        | MeanFlowOptions
        | ShortcutOptions
        | CTMOptions
        | DMDOptions
        | ReflowOptions
    ) = field(default_factory=DenoisingOptions, metadata={"help": "the loss"})
    train: TrainOptions = field(default_factory=TrainOptions, metadata={"help": "how long and how"})
    sample: SampleOptions = field(default_factory=SampleOptions, metadata={"help": "how the model samples by default"})

    def __post_init__(self) -> None:
        tokens = isinstance(self.process, CategoricalOptions)
        if not isinstance(self.model, (TransformerOptions, UNetOptions) if tokens else _CONTINUOUS):
            raise ValueError(
                f"model={self.model.kind} does not go with process={self.process.kind}; token data take "
                f"model=transformer or unet with process=categorical, all other data model=unet, dit or mlp with "
                f"process=gaussian."
            )
        if tokens != isinstance(self.objective, (MaskedELBOOptions, CategoricalELBOOptions, AutoregressiveOptions)):
            fitting = "masked-elbo, categorical-elbo or autoregressive" if tokens else "denoising"
            raise ValueError(
                f"objective={self.objective.kind} does not go with process={self.process.kind}; use {fitting}."
            )
        self._check_causal()
        self._check_time()
        if isinstance(self.objective, FlowMapOptions) and self.train.shard:
            raise ValueError(f"objective={self.objective.kind} copies the network, which train.shard cuts; unset it.")
        self._check_tuning()
        self._check_pretrained()
        if self.codec.kind in (("pca", "autoencoder") if tokens else ("vq",)):
            raise ValueError(
                f"codec={self.codec.kind} makes {'numbers' if tokens else 'tokens'}, on which "
                f"process={self.process.kind} does not work; use "
                f"{'codec=vq' if tokens else 'process=categorical with model=transformer (recipe=vq-image)'}."
            )
        if not tokens and self.sample.truncation is not None:
            raise ValueError("sample.truncation rules out classes of tokens; leave it at none for continuous data.")
        if tokens and self.sample.guidance_rescale:
            raise ValueError("sample.guidance_rescale works on continuous data; leave it at 0 for tokens.")
        if self.sample.threshold and (tokens or self.codec.kind != "none"):
            raise ValueError("sample.threshold bounds data, not tokens or latents; leave it at none.")

    def _check_tuning(self) -> None:
        """MMD tunes what was trained before, through a sampler that must be named."""
        if not isinstance(self.objective, MMDOptions):
            return
        missing = [f"sample.{name}" for name in ("solver", "steps", "grid") if getattr(self.sample, name) is None]
        if missing or not self.train.init:
            wanted = ", ".join([*([] if self.train.init else ["train.init"]), *missing])
            raise ValueError(
                f"objective=mmd tunes a trained model for one sampler and needs {wanted} too; undiffuse accelerate "
                f"MODEL --steps 5 sets all of them."
            )
        if self.codec.kind != "none":
            raise ValueError("objective=mmd takes the codec of the model it tunes; use undiffuse accelerate MODEL.")

    def _check_pretrained(self) -> None:
        """The network of a pipeline is trained as the denoiser that it is, in its own latents."""
        if not isinstance(self.model, PretrainedNetworkOptions):
            return
        if not self.train.init or self.codec.kind != "pretrained":
            raise ValueError(
                "model=pretrained tunes a pipeline of diffusers with prompts, in its latents; name its folder or its "
                "name on the hub (train.init=FOLDER), and the rest follows."
            )
        if self.train.shard:
            raise ValueError("train.shard=true was not made to work with model=pretrained; leave it out.")
        if self.train.snapshot_every:
            raise ValueError("train.snapshot_every is not made for model=pretrained; train.ema=0.1 is a wider average.")
        if self.model.rank and self.train.optimizer == "muon":
            raise ValueError("train.optimizer=muon is for square matrices, and those of a LoRA are narrow; use adamw.")
        if not isinstance(self.objective, DenoisingOptions) or self.objective.coupling != "independent":
            raise ValueError(
                f"objective={self.objective.kind} does not train model=pretrained; tune it by objective=denoising, "
                f"objective.coupling=independent."
            )

    def _check_causal(self) -> None:
        """A causal network is trained by its likelihood and by nothing else."""
        causal = getattr(self.model, "causal", False)
        if causal != isinstance(self.objective, AutoregressiveOptions):
            raise ValueError(
                f"model.causal={str(causal).lower()} does not go with objective={self.objective.kind}; networks that "
                f"read from left to right take model.causal=true with objective=autoregressive."
            )
        if causal and getattr(self.process, "corruption", "") != "absorbing":
            raise ValueError("model.causal=true needs process.corruption=absorbing, whose mask stands before the text.")

    def _check_time(self) -> None:
        corruption = getattr(self.process, "corruption", "absorbing")
        if corruption != "absorbing" and not getattr(self.model, "time_dependent", True):
            raise ValueError(
                f"process.corruption={corruption} needs model.time_dependent=true: its noise looks like data."
            )


def recipe_layer(recipe: str | Path) -> dict[str, Any]:
    """Return a shipped recipe, or a YAML file, as a layer for `resolve`.

    Raises:
        ConfigError: Neither a recipe's name nor a file.
    """
    name = str(recipe)
    if name in RECIPES:
        with resources.as_file(resources.files("undiffuse") / "recipes" / f"{name}.yaml") as path:
            return load_yaml(path)
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return load_yaml(name)
    raise ConfigError(
        f"recipe {name!r} is neither a YAML file nor one of {', '.join(RECIPES)}.{did_you_mean(name, RECIPES)}"
    )


_OF_KIND = {"tokens": "text", "vector": "vector", "signal": "signals", "video": "video"}


def choose_recipe(spec: DataSpec, source: str = "") -> str:
    """Return the name of the shipped recipe that is made for built-in data `source`, or that fits what data are."""
    if source in RECIPES:
        return source
    return "table" if spec.columns else _OF_KIND.get(spec.kind, "image")


def override_layers(overrides: Sequence[str] = (), **options: Any) -> list[dict[str, Any] | list[str]]:
    """Return layers for `resolve` from "group.key=value" texts and keyword options.

    A keyword is a group (`train={"steps": 10}`, `model="unet"`), or the bare name of an option of `train`
    (`steps=10`); anything else is left to `resolve`, whose error names the nearest key. A codec may be named by its
    folder (`codec=runs/photos-codec`).
    """
    training = set(TrainOptions.__dataclass_fields__)
    groups = set(Recipe.__dataclass_fields__)
    keyed = {f"train.{key}" if key in training and key not in groups else key: value for key, value in options.items()}
    if _is_folder(keyed.get("codec")):
        keyed["codec"] = {"kind": "pretrained", "path": str(keyed["codec"])}
    return [layer for layer in (keyed, [word for text in overrides for word in _spelled_out(text)]) if layer]


def _spelled_out(text: str) -> tuple[str, ...]:
    """Return the keys that a codec named by its folder stands for; all else as it is."""
    key, _, value = text.partition("=")
    if key != "codec" or not _is_folder(value):
        return (text,)
    return ("codec.kind=pretrained", f"codec.path={value}")


def _is_folder(value: Any) -> bool:
    return isinstance(value, (str, Path)) and (Path(value).expanduser() / "config.json").is_file()


def changed_keys(old: dict[str, Any], new: Recipe) -> list[str]:
    """Return "key: old -> new" for what differs between a run's recipe and another, runtime keys aside."""
    before, after = _flat(to_dict(resolve(Recipe, old))), _flat(to_dict(new))
    keys = sorted((before.keys() | after.keys()) - RUNTIME_KEYS)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in keys
        if not _same(key, before.get(key), after.get(key))
    ]


def _same(key: str, before: Any, after: Any) -> bool:
    """Whether two values mean the same; a path may be spelled in several ways."""
    if key not in _PATHS or before is None or after is None:
        return bool(before == after)
    return bool(before == after) or _place(before) == _place(after)


def _place(name: str) -> str | Path:
    """Return the absolute path that a name means; a name that is no path, such as that of built-in data, itself."""
    from undiffuse.data.embedded import EMBEDDED

    return name if name in EMBEDDED else Path(name).expanduser().resolve()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

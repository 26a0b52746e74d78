"""The network of a pipeline in training: by a LoRA, which peft puts into it, or whole. All else stays as it is.

What is trained is all that is kept. A LoRA is written as diffusers writes one, so other programs read it too.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undiffuse.errors import CheckpointError, ConfigError
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.pretrained.adapters import LORA_FILE, NETWORK_FILE
from undiffuse.pretrained.denoiser import DiffusersDenoiser
from undiffuse.pretrained.files import read_json
from undiffuse.pretrained.loading import configs_of, local_folder, part_of, reads_prompts
from undiffuse.pretrained.readers import LABEL, PROMPT, Prompts
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from undiffuse.models.model import Model

_ADAPTER = "default"  # as diffusers names the only one
_LABEL = "{label}"


class TunedDenoiser(DiffusersDenoiser):
    """A pipeline's denoiser while it is trained; its prompts are captions, or the names of classes.

    Its state is what is trained. Copies share everything else.

    Args:
        pipeline: As it was loaded; it loses its codec.
        process, prediction: Of the run.
        spec: What the data are, with the names of their conditions.
        options: What is trained.
        seed: Of the LoRA's first weights.

    Raises:
        ConfigError: The data have conditions that a prompt cannot say, or nothing says what the pictures show.
        CheckpointError: The pipeline takes no LoRA, or no layer of it is meant.
    """

    reader: Prompts
    prompts: Tensor
    spec: DataSpec

    def __init__(
        self,
        pipeline: Model,
        process: GaussianProcess,
        prediction: Prediction,
        *,
        spec: DataSpec,
        options: PretrainedNetworkOptions,
        seed: int = 0,
    ) -> None:
        theirs = pipeline.module
        assert isinstance(theirs, DiffusersDenoiser) and isinstance(theirs.reader, Prompts)
        super().__init__(
            theirs.backbone, process, prediction, theirs.reader, spec=spec, total=theirs.total, held=theirs.held[0]
        )
        self.pipeline, self.latent = pipeline, pipeline.state_spec
        pipeline.codec = None  # the run has one of its own
        theirs.held[0].register_modules(vae=None)
        self.caption = _caption(spec, options.prompt)
        texts = [options.prompt.replace(_LABEL, name) for name in spec.classes or ("",)]
        self.register_buffer("prompts", _as_bytes(texts), persistent=False)
        network = self.backbone.network.requires_grad_(not options.rank)
        if options.rank:
            _add_lora(theirs.held[0], network, options, seed)
        self.trained = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        self.register_state_dict_post_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_forgive_frozen)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Read captions, or the prompts of classes; `drop` leaves out those that it names."""
        source = self.caption or LABEL
        left_out = {PROMPT: drop[source]} if drop and source in drop else None
        return self.reader.embed(self.prompted(cond or {}, batch), batch, left_out)

    def prompted(self, cond: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        """Return the conditions of the pipeline for a batch of data with conditions `cond`."""
        source = self.caption or (LABEL if self.spec.classes else None)
        if source is None:
            return {PROMPT: self.prompts.expand(batch, -1)}
        if source not in cond:
            return {}
        return {PROMPT: cond[source] if self.caption else self.prompts[cond[source]]}

    def weights(self) -> tuple[str, dict[str, Tensor]]:
        """Return what was trained: the name of its file, and tensors as diffusers names them."""
        start = len("backbone.network.")
        tensors: dict[str, Tensor] = {name[start:]: p for name, p in self.named_parameters() if name in self.trained}
        if any(f".lora_A.{_ADAPTER}." in name for name in tensors):
            part = part_of(Path(self.pipeline.info["source"]))
            named = {f"{part}.{name}".replace(f".{_ADAPTER}.", "."): p for name, p in tensors.items()}
            return LORA_FILE, named
        return NETWORK_FILE, tensors

    def as_loaded(self) -> DiffusersDenoiser:
        """Return the denoiser of the pipeline with these weights: it reads prompts."""
        file, tensors = self.weights()
        loaded = DiffusersDenoiser(
            self.backbone,
            self.process,
            self.prediction,
            self.reader,
            spec=self.latent,
            total=self.total,
            held=self.held[0],
        )
        loaded.tuned = {file: tensors}
        return loaded

    def __deepcopy__(self, memo: dict[int, Any]) -> TunedDenoiser:
        shared: list[Any] = [self.reader, self.pipeline, self.held, *self.parameters()]
        memo |= {id(part): part for part in shared if not getattr(part, "requires_grad", False)}
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made


def tuned_denoiser(
    name: str,
    process: GaussianProcess,
    prediction: Prediction,
    *,
    spec: DataSpec,
    options: PretrainedNetworkOptions,
    seed: int = 0,
) -> TunedDenoiser:
    """Load a pipeline and make its network ready for training.

    Args:
        name: Its folder, or its name on the hub.
        process, prediction, spec, options, seed: See `TunedDenoiser`.

    Raises:
        ConfigError, CheckpointError: See `TunedDenoiser`; or it cannot be loaded, or reads no prompts.
    """
    from undiffuse.models import load

    folder = local_folder(name)
    check_prompted(folder)
    sides = {"size": spec.shape[1] * _factor(folder)} if spec.shape[1] == spec.shape[2] else {}
    pipeline = load(folder, dtype=options.dtype, **sides)
    return TunedDenoiser(pipeline, process, prediction, spec=spec, options=options, seed=seed)


def tuned_size(name: str, options: PretrainedNetworkOptions) -> tuple[int, int]:
    """Return how many numbers of a pipeline are trained, and the bytes of all others, from its files alone.

    Args:
        name: Its folder, or its name on the hub.
        options: What is trained.

    Raises:
        CheckpointError: It cannot be read, or reads no prompts.
    """
    from safetensors import SafetensorError, safe_open

    folder = local_folder(name)
    check_prompted(folder)
    inside, trained, others = part_of(folder), 0, 0
    try:
        for path in sorted(folder.glob("*/*.safetensors")):
            if "." in path.stem:
                continue  # a variant, such as .fp16
            with safe_open(path, framework="pt") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            count = sum(math.prod(shape) for shape in shapes.values())
            tuned = path.parent.name == inside
            trained += _lora_size(shapes, options) if tuned and options.rank else count * tuned
            others += count * (not tuned or bool(options.rank))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}); copy it again.") from error
    return trained, others * (2 if options.dtype == "bfloat16" else 4)


def _lora_size(shapes: dict[str, list[int]], options: PretrainedNetworkOptions) -> int:
    ends = tuple(f".{target}.weight" for target in options.targets)
    return sum(options.rank * (shape[0] + math.prod(shape[1:])) for key, shape in shapes.items() if key.endswith(ends))


def check_prompted(folder: Path) -> None:
    """Refuse what is no pipeline with prompts.

    Raises:
        CheckpointError: It is not, or it was distilled for few steps.
    """
    if not reads_prompts(str(folder)):
        raise CheckpointError(
            f"train.init={folder} reads no prompts, so model=pretrained does not go with it; leave model out."
        )
    network, _, _ = configs_of(str(folder))
    if network.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            f"train.init={folder} was distilled for few steps, which training as a denoiser would undo; tune the model "
            f"that it was made from."
        )


def _add_lora(pipe: Any, network: Any, options: PretrainedNetworkOptions, seed: int) -> None:
    """Put a LoRA into a network, whose answers do not change yet."""
    if importlib.util.find_spec("peft") is None:
        raise CheckpointError(f"model.rank={options.rank} needs peft: pip install peft; or set model.rank=0.")
    if not hasattr(pipe, "load_lora_weights"):
        raise CheckpointError(
            f"a {type(pipe).__name__} of diffusers takes no LoRA; set model.rank=0 to train all weights, with "
            f"train.lr=1e-5 or so."
        )
    from peft import LoraConfig

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.rank,
        init_lora_weights="gaussian",
        target_modules=list(options.targets),
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network.add_adapter(config, _ADAPTER)
    except ValueError as error:
        layers = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        names = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise CheckpointError(
            f"model.targets={','.join(options.targets)} names no layer of this network; its linear layers end in "
            f"{', '.join(names)}."
        ) from error
    for p in network.parameters():
        if p.requires_grad:
            p.data = p.data.float()  # whatever the others are


def _caption(spec: DataSpec, prompt: str) -> str | None:
    """Return the name of the condition that holds captions; None where classes or one prompt for all take its place."""
    texts = [name for name, part in spec.conditions.items() if part.kind == "text"]
    others = sorted(name for name in spec.conditions if name != LABEL and name not in texts)
    if others or len(texts) > 1:
        more = ", ".join(others or texts)
        raise ConfigError(
            f"model=pretrained reads one caption and nothing else, but these data have {more}; name the caption "
            f"(data.cond=caption), or leave the others out."
        )
    if not texts and not spec.classes and (_LABEL in prompt or not prompt):
        raise ConfigError(
            "nothing says what the pictures show: put photo.txt beside photo.jpg, use a folder for each class, or give "
            'one prompt for all: model.prompt="a photo of ...".'
        )
    return texts[0] if texts else None


def _as_bytes(texts: list[str]) -> Tensor:
    """Return texts as a batch of the condition "text": int64 (n, L), UTF-8 bytes, -1 fills up."""
    rows = [torch.tensor([*text.encode()], dtype=torch.int64) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _factor(folder: Path) -> int:
    """Return how many pixels of a side one number of the latents stands for."""
    return 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, TunedDenoiser)
    for name in [name for name in state if name.startswith(prefix) and name[len(prefix) :] not in module.trained]:
        del state[name]


def _forgive_frozen(module: nn.Module, found: Any) -> None:
    assert isinstance(module, TunedDenoiser)
    found.missing_keys[:] = [name for name in found.missing_keys if name in module.trained]

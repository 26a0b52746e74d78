"""The network of a pipeline in training: by a LoRA, which peft puts into it, or whole. All else stays as it is.

What is trained is all that is kept. A LoRA is written as diffusers writes one, so other programs read it too.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undiffuse.errors import ConfigError
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.options import LABEL_WORD, PretrainedNetworkOptions
from undiffuse.pretrained.adapters import LORA_FILE, NETWORK_FILE
from undiffuse.pretrained.denoiser import DiffusersDenoiser
from undiffuse.pretrained.loading import local_folder, part_of
from undiffuse.pretrained.readers import LABEL, PROMPT, Prompts
from undiffuse.pretrained.tunable import caption_of, codec_factor, tuned_size
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from undiffuse.models.model import Model

_ADAPTER = "default"  # as diffusers names the only one


class TunedDenoiser(DiffusersDenoiser):
    """A pipeline's denoiser while it is trained; its prompts are captions, or the names of classes.

    Its state is what is trained. Copies share everything else.

    Args:
        pipeline: As it was loaded; it loses its codec.
        spec: What the data are, with the names of their conditions.
        options: What is trained.
        seed: Of the LoRA's first weights.

    Raises:
        ConfigError: See `undiffuse.pretrained.tunable.caption_of`.
    """

    reader: Prompts
    prompts: Tensor
    spec: DataSpec

    def __init__(
        self,
        pipeline: Model,
        *,
        spec: DataSpec,
        options: PretrainedNetworkOptions,
        seed: int = 0,
    ) -> None:
        theirs = pipeline.module
        assert isinstance(theirs, DiffusersDenoiser) and isinstance(theirs.reader, Prompts)
        super().__init__(
            theirs.backbone,
            theirs.process,
            theirs.prediction,
            theirs.reader,
            spec=spec,
            total=theirs.total,
            held=theirs.held[0],
        )
        self.pipeline, self.latent = pipeline, pipeline.state_spec
        pipeline.codec = None  # the run has one of its own
        theirs.held[0].register_modules(vae=None)
        self.caption = caption_of(spec, options.prompt)
        texts = [options.prompt.replace(LABEL_WORD, name) for name in spec.classes or ("",)]
        self.register_buffer("prompts", _as_bytes(texts), persistent=False)
        network = self.backbone.network.requires_grad_(not options.rank)
        if options.rank:
            _add_lora(network, options, seed)
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
        process, prediction: Of the run; they must be the pipeline's.
        spec, options, seed: See `TunedDenoiser`.

    Raises:
        ConfigError, CheckpointError: See `undiffuse.pretrained.tunable.tuned_size`; it cannot be loaded, or has another
            process.
    """
    from undiffuse.models import load

    folder = local_folder(name)
    tuned_size(name, spec, options)  # what it refuses
    sides = {"size": spec.shape[1] * codec_factor(folder)} if spec.shape[1] == spec.shape[2] else {}
    pipeline = load(folder, dtype=options.dtype, **sides)
    pipeline.info["load"].pop(
        "dtype", None
    )  # of the frozen weights: added to such, much of a LoRA would be rounded away
    _check_process(name, pipeline.module, process, prediction)
    return TunedDenoiser(pipeline, spec=spec, options=options, seed=seed)


def _check_process(name: str, module: Any, process: GaussianProcess, prediction: Prediction) -> None:
    """Refuse another process than the pipeline's, with which its weights are loaded again."""
    times = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    ours, theirs = (one.schedule.half_logsnr(times) for one in (process, module.process))
    if prediction != module.prediction or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise ConfigError(
            f"this process ({process.schedule.name}, predicts {prediction}) is not that of {name}, with which the "
            f"result is loaded; leave process out."
        )


def _add_lora(network: Any, options: PretrainedNetworkOptions, seed: int) -> None:
    """Put a LoRA into a network, whose answers do not change yet."""
    from peft import LoraConfig

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.rank,
        init_lora_weights="gaussian",
        target_modules=list(options.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network.add_adapter(config, _ADAPTER)
    for p in network.parameters():
        if p.requires_grad:
            p.data = p.data.float()  # whatever the others are


def _as_bytes(texts: list[str]) -> Tensor:
    """Return texts as a batch of the condition "text": int64 (n, L), UTF-8 bytes, -1 fills up."""
    rows = [torch.tensor([*text.encode()], dtype=torch.int64) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, TunedDenoiser)
    for name in [name for name in state if name.startswith(prefix) and name[len(prefix) :] not in module.trained]:
        del state[name]


def _forgive_frozen(module: nn.Module, found: Any) -> None:
    assert isinstance(module, TunedDenoiser)
    found.missing_keys[:] = [name for name in found.missing_keys if name in module.trained]

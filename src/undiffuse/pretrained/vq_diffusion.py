"""`VQDiffusionPipeline` of diffusers as a model of tokens. Its networks are wrapped, not rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.codecs.options import PretrainedCodecOptions
from undiffuse.pretrained.files import read_json
from undiffuse.spec import ConditionSpec, DataSpec

if TYPE_CHECKING:
    from undiffuse.denoisers.prompted_tokens import PromptReader
    from undiffuse.models.model import Model
    from undiffuse.process.categorical import CategoricalProcess

_BYTES = 1024  # of a prompt; the tokenizer reads some 77 words of it
_NULLS = "learned_classifier_free_sampling_embeddings"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_vq_diffusion(folder: Path) -> Model:
    """Load a folder of `VQDiffusionPipeline`: images by tokens of its VQModel, with the condition "prompt".

    Raises:
        ImportError, OSError, KeyError, ValueError: diffusers is not there, or a part is missing or does not fit.
    """
    import diffusers

    from undiffuse.codecs.pretrained import load_pretrained
    from undiffuse.denoisers.prompted_tokens import PROMPT, PromptedTokens
    from undiffuse.models.model import Model
    from undiffuse.networks.diffusers_network import named_blocks

    transformer = diffusers.Transformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True)
    vq = read_json(folder / "vqvae" / "config.json")
    side = transformer.config.sample_size * 2 ** (len(vq["block_out_channels"]) - 1)
    spec = DataSpec(
        kind="image",
        shape=(int(vq["out_channels"]), side, side),
        range=(0, 255),
        cond={PROMPT: ConditionSpec(kind="text", length=_BYTES)},
    )
    codec = load_pretrained(PretrainedCodecOptions(path=str(folder)), spec)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    process = _process(schedule, codec.latent.categories)
    transformer.blocks = named_blocks(transformer)  # for hooks
    denoiser = PromptedTokens(transformer.eval(), process, _reader(folder), codec.latent)
    if denoiser.levels != schedule["num_train_timesteps"]:
        raise ValueError(
            f"the transformer knows {denoiser.levels} times and the scheduler {schedule['num_train_timesteps']}"
        )
    defaults = {"solver": "ancestral", "steps": denoiser.levels, "guidance": 5.0}  # as in the pipeline
    info = {"pipeline": "VQDiffusionPipeline", "source": str(folder)}
    return Model(denoiser.eval(), spec, defaults, info, codec)


def _process(config: dict[str, Any], classes: int) -> CategoricalProcess:
    """Return the process of a `VQDiffusionScheduler`."""
    from undiffuse.process.categorical import CategoricalProcess
    from undiffuse.process.keep import VQDiffusionKeep

    if config["num_vec_classes"] != classes + 1:
        raise ValueError(f"the scheduler has {config['num_vec_classes']} classes and the codec {classes} and a mask")
    keep = VQDiffusionKeep(
        int(config["num_train_timesteps"]),
        config["alpha_cum_start"],
        config["alpha_cum_end"],
        config["gamma_cum_start"],
        config["gamma_cum_end"],
    )
    return CategoricalProcess("mask-replace", classes, keep)


def _reader(folder: Path) -> PromptReader:
    from transformers import CLIPTextModel, CLIPTokenizer

    from undiffuse.denoisers.prompted_tokens import PromptReader
    from undiffuse.models.folder import read_tensors

    null = None
    if read_json(folder / _NULLS / "config.json")["learnable"]:
        null = read_tensors(folder / _NULLS / _WEIGHTS)["embeddings"]
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
    return PromptReader(encoder, CLIPTokenizer.from_pretrained(folder / "tokenizer"), null)

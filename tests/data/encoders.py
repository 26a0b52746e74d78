"""Tiny text encoders with random weights, written as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "green", "blue", "square", "circle", "of", "photo")


def write_encoder(folder: Path, kind: str = "clip", *, seed: int = 0, marks: bool = True, **saving: Any) -> Path:
    """Write an encoder of 16 features; `marks` says whether its tokenizer puts marks of begin and end."""
    import transformers

    write_tokenizer(folder, marks=marks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network(transformers, kind).save_pretrained(folder, **saving)
    return folder


def write_tokenizer(folder: Path, *, marks: bool = True) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[pad]", "[unk]", "[begin]", "[end]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[begin] $A [end]", special_tokens=[("[begin]", 2), ("[end]", 3)]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unk]", bos_token="[begin]", eos_token="[end]"
    )
    wrapped.save_pretrained(folder)


def network(transformers: Any, kind: str) -> Any:
    small = {"vocab_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "clip":
        config = transformers.CLIPTextConfig(hidden_size=16, max_position_embeddings=10, eos_token_id=3, **small)
        return transformers.CLIPTextModel(config).eval()
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(hidden_size=16, **small)).eval()  # has no pooler
    if kind == "roberta":
        config = transformers.RobertaConfig(hidden_size=16, max_position_embeddings=12, pad_token_id=0, **small)
        return transformers.RobertaModel(config).eval()
    if kind == "bart":
        sides = {f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
        return transformers.BartModel(transformers.BartConfig(vocab_size=12, d_model=16, pad_token_id=0, **sides))
    if kind == "vit":
        small.pop("vocab_size")
        return transformers.ViTModel(transformers.ViTConfig(hidden_size=16, image_size=8, patch_size=4, **small))
    config = transformers.T5Config(vocab_size=12, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config).eval()

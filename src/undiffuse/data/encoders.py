"""Frozen text encoders: captions become the encoder's last hidden states, which are a condition of kind "embedding".

An encoder is a network of transformers that encodes text (the text part of CLIP, the encoder of T5, BERT and the like)
with its tokenizer: a folder, or hf://owner/name. Weights are read from safetensors only, and code of others is never
run. Its identity is a hash of its files, so that a model which was trained on one encoder never sees another.

A caption gives one row per token; positions without a token are rows of zeros. Values are rounded to float16, in
training and in sampling alike: half the memory, and the same caption means the same numbers in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.cache import cache_folder, content_hash, load_or_make
from undiffuse.data.encoder_files import EncoderFiles
from undiffuse.data.memory import require_memory
from undiffuse.errors import CheckpointError

_VERSION = 1  # of what is computed here: part of the name of cached embeddings
_BATCH = 64


@dataclass(frozen=True)
class Encoded:
    """What an encoder says about N captions.

    Args:
        outputs: float16 (N, L, W), zeros where a caption has no token; L is the longest of them.
        cut: How many were longer than allowed and lost their end.
    """

    outputs: Tensor
    cut: int


class TextEncoder:
    """A frozen text encoder with its tokenizer; nothing is loaded before it is used.

    Args:
        name: A folder as transformers saves it, the folder of a pipeline of diffusers (its `text_encoder`), or
            hf://owner/name.
        device: Where it runs.

    Raises:
        CheckpointError: There is no such encoder, or it has no safetensors.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self.files = EncoderFiles.find(name)

    @cached_property
    def identity(self) -> str:
        """A hash of weights, configuration and tokenizer, 40 hexadecimal digits."""
        return self.files.identity()

    @cached_property
    def network(self) -> nn.Module:
        """The network, frozen."""
        return self.files.load_network().to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.files.load_tokenizer()

    @property
    def longest(self) -> int:
        """Most tokens that it can read."""
        config: Any = self.network.config
        known = int(self.tokenizer.model_max_length)  # a very large number where the tokenizer does not know
        places = getattr(config, "max_position_embeddings", None)
        return max(1, min(known, int(places) - _unused_places(self.network)) if places else known)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption, marks of begin and end included."""
        return [len(ids) for ids in self._tokens(captions, None)]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], most: int) -> Encoded:
        """Encode captions; of longer ones than `most` tokens, or than the encoder can read, the first are kept.

        Raises:
            CheckpointError: The tokenizer does not fit the network, or an output is beyond float16.
        """
        most = min(most, self.longest)
        cut = sum(length > most for length in self.lengths(captions))
        tokens = self._tokens(captions, most)
        by_length = sorted(range(len(tokens)), key=lambda at: len(tokens[at]))
        longest = max(1, *(len(ids) for ids in tokens), 1)
        outputs: Tensor | None = None
        for start in range(0, len(by_length), _BATCH):
            rows = by_length[start : start + _BATCH]
            part = self._forward([tokens[at] for at in rows])
            if outputs is None:
                outputs = torch.zeros(len(tokens), longest, part.shape[2], dtype=torch.float16)
            outputs[rows, : part.shape[1]] = part
        return Encoded(torch.zeros(0, 1, 1, dtype=torch.float16) if outputs is None else outputs, cut)

    def _tokens(self, captions: Sequence[str], most: int | None) -> list[list[int]]:
        """Return token ids of each caption; the tokenizer itself cuts, so that the mark of the end stays."""
        if not captions:
            return []
        cut = {"truncation": True, "max_length": most} if most else {"truncation": False}
        found = self.tokenizer(list(captions), padding=False, verbose=False, **cut)
        return found["input_ids"]

    def _forward(self, tokens: list[list[int]]) -> Tensor:
        """Return the last hidden states (B, longest of these, W) in float16, zeros where there is no token."""
        width = max(1, *(len(ids) for ids in tokens), 1)
        fill = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in tokens])
        mask = torch.arange(width) < torch.tensor([len(row) for row in tokens])[:, None]
        known = self.network.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if int(ids.max()) >= known:
            raise CheckpointError(
                f"the tokenizer of {self.name} has the token {int(ids.max())} but its network knows {known}; give the "
                "tokenizer that belongs to it."
            )
        answer = self.network(input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device))
        hidden = getattr(answer, "last_hidden_state", None)
        if hidden is None:
            raise CheckpointError(f"{self.name} has no last hidden states; give an encoder of text.")
        rounded = torch.where(mask[..., None], hidden.cpu(), 0.0).half()
        if not bool(rounded.isfinite().all()):
            raise CheckpointError(f"{self.name} has outputs beyond float16 (65504) or NaN; give another encoder.")
        return rounded


def encode_captions(name: str, captions: Sequence[str], most: int, expected: str = "") -> tuple[Encoded, str]:
    """Encode the captions of a data set, each distinct one once, and keep the outputs in the cache.

    Args:
        name: See `TextEncoder`.
        captions: One per item, N of them.
        most: Most tokens of a caption.
        expected: Identity that the encoder must have; empty for any.

    Returns:
        Outputs (N, L, W), and the encoder's identity.

    Raises:
        CheckpointError: See `TextEncoder` and `get_encoder`.
        DataError: The outputs do not fit in memory.
    """
    encoder = TextEncoder(name, _accelerator())
    _check(encoder, expected)
    distinct = list(dict.fromkeys(captions))
    key = {"captions": distinct, "encoder": encoder.identity, "most": most, "version": _VERSION}
    path = cache_folder() / "embeddings" / f"{content_hash({}, key)}.safetensors"

    def make() -> dict[str, Tensor]:
        hidden = _width(encoder.network)
        longest = min(most, encoder.longest, max(encoder.lengths(distinct), default=1))
        _require(len(distinct) + len(captions), longest, hidden)
        found = encoder.encode(distinct, most)
        return {"outputs": found.outputs, "cut": torch.tensor(found.cut)}

    found = load_or_make(path, make)
    outputs = found["outputs"]
    if len(distinct) < len(captions):
        _require(len(captions), *outputs.shape[1:])
        place = {caption: at for at, caption in enumerate(distinct)}
        outputs = outputs[torch.tensor([place[caption] for caption in captions])]
    return Encoded(outputs, int(found["cut"])), encoder.identity


@lru_cache(maxsize=2)
def get_encoder(name: str, expected: str, device: torch.device) -> TextEncoder:
    """Return an encoder that stays loaded, for sampling.

    Raises:
        CheckpointError: It is gone, or is not the one with the identity `expected`.
    """
    encoder = TextEncoder(name, device)
    _check(encoder, expected)
    return encoder


def _check(encoder: TextEncoder, expected: str) -> None:
    if expected and encoder.identity != expected:
        raise CheckpointError(
            f"the encoder {encoder.name} has changed: its hash is {encoder.identity[:12]}... and the model was trained "
            f"with {expected[:12]}...; put the former files back, or give its outputs as tensors."
        )


def _require(rows: int, length: int, width: int) -> None:
    require_memory(
        2 * rows * length * width,
        f"keeping the encoder's outputs for {rows} captions of up to {length} tokens and {width} features",
        "lower data.caption_length or data.limit",
    )


def _width(network: nn.Module) -> int:
    config: Any = network.config
    return int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 1))


def _unused_places(network: nn.Module) -> int:
    """Return how many positions come before the first token: RoBERTa and its kin count from their padding."""
    tables = (part for name, part in network.named_modules() if name.endswith("position_embeddings"))
    padding = getattr(next(tables, None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def _accelerator() -> torch.device:
    """Return the GPU of this process where there is one."""
    from undiffuse.models.world import local_rank

    count = torch.cuda.device_count()
    return torch.device("cuda", local_rank() % count) if count else torch.device("cpu")

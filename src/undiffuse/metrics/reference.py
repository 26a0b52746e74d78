"""Models that judge texts of another: networks that read from left to right, so that their likelihood is exact.

What a reference finds likely is rewarded by a low temperature too, so `judge_generated` always gives the entropy of the
samples beside it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.data.encoder_files import HUB
from undiffuse.data.text import decode_text, encode_text
from undiffuse.denoisers.elbo import token_bounds
from undiffuse.errors import CheckpointError
from undiffuse.noise import KeyedNoise
from undiffuse.spec import DataSpec

_ROWS = 64  # of texts at once
_READ = 1024  # tokens of a reference at once where its config does not say


class Scores(NamedTuple):
    """Nats of texts under a reference, and the reference's own tokens that these are of, each (n,)."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """exp(nats per token of the reference) over all texts."""
        return math.exp(self.nats.sum() / max(self.tokens.sum(), 1))


class Reference(Protocol):
    """A model that knows how likely texts are."""

    name: str

    def score(self, x: NDArray[Any], spec: DataSpec) -> Scores:
        """Return how likely the items `x` (n, L) of token ids are, which `spec` describes."""
        ...


class CausalReference:
    """A model of ours that reads from left to right (`objective=autoregressive`).

    Items of its own vocabulary are read as they are, others as text. Longer ones are read in pieces.

    Args:
        model: The model.
        name: For people.

    Raises:
        ValueError: Another kind of model, whose bound would be no likelihood.
    """

    def __init__(self, model: Any, name: str = "the model") -> None:
        if not getattr(model.module, "causal", False):
            raise ValueError(
                f"{name} does not read from left to right, and a bound is no perplexity; give a model trained with "
                "model.causal=true objective=autoregressive, or a causal language model of Hugging Face."
            )
        model.denoiser.eval()
        self.model, self.name = model, name

    def score(self, x: NDArray[Any], spec: DataSpec) -> Scores:
        """Return the exact likelihood of each item.

        Raises:
            DataError: A text has characters that the model does not know.
        """
        own, ids = self.model.spec, torch.as_tensor(x)
        if own.vocabulary == spec.vocabulary:
            batches = list(ids.split(_ROWS))
        else:
            batches = [encode_text(decode_text(row, spec), own)[None] for row in ids]
        nats = torch.cat([self._nats(batch) for batch in batches])
        return Scores(nats.cpu().numpy(), np.concatenate([np.full(len(batch), batch.shape[1]) for batch in batches]))

    def _nats(self, rows: torch.Tensor) -> torch.Tensor:
        """Return -log p of each row (n, L), float64."""
        pieces = rows.to(self.model.device).split(self.model.spec.shape[0], dim=1)
        # A causal model draws nothing for its likelihood.
        found = (token_bounds(self.model.denoiser, part, KeyedNoise(0, range(len(part)))) for part in pieces)
        return torch.stack([nats[0].double() * part.shape[1] for nats, part in zip(found, pieces, strict=True)]).sum(0)


class PretrainedReference:
    """A causal language model of Hugging Face. The first token of each text is given, as is usual.

    Args:
        folder: Folder with its config, safetensors and tokenizer, or hf://owner/name.
        device: Where it runs.

    Raises:
        CheckpointError: transformers is not installed, or the model cannot be loaded.
    """

    def __init__(self, folder: str, device: torch.device | str = "cpu") -> None:
        if not folder.startswith(HUB) and not (Path(folder) / "config.json").is_file():
            raise CheckpointError(
                f"{folder} is no causal language model: it has no config.json; give a run's folder, a folder that "
                f"transformers saved, or {HUB}owner/name."
            )
        folder = folder.removeprefix(HUB)
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise CheckpointError(f"{folder} needs transformers: pip install undiffuse[pretrained].") from error
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            # No pickles and no code of others, whatever the folder holds.
            network: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{folder} is no causal language model that can be loaded: {first}") from error
        self.network, self.name, self.device = network.to(device).eval(), folder, device

    @torch.no_grad()
    def score(self, x: NDArray[Any], spec: DataSpec) -> Scores:
        """Return the likelihood of the text of each item, read in pieces where it is too long."""
        most = int(getattr(self.network.config, "max_position_embeddings", None) or _READ)
        nats, tokens = [], []
        for row in x:
            ids = torch.tensor(self.tokenizer(decode_text(torch.as_tensor(row), spec))["input_ids"], dtype=torch.int64)
            found = [self._nats(piece) for piece in ids.split(most) if len(piece) > 1]
            nats.append(sum(value for value, _ in found))
            tokens.append(sum(count for _, count in found))
        return Scores(np.array(nats, dtype=np.float64), np.array(tokens, dtype=np.int64))

    def _nats(self, piece: torch.Tensor) -> tuple[float, int]:
        ids = piece[None].to(self.device)
        logits = self.network(ids).logits[0, :-1].double()
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")), len(piece) - 1


def open_reference(name: str | os.PathLike[str], device: torch.device | str = "cpu") -> Reference:
    """Return the reference in a folder: one of our runs, or a causal language model of Hugging Face (or of its hub).

    Raises:
        CheckpointError: It cannot be loaded.
        ValueError: A model of ours that does not read from left to right.
    """
    from undiffuse.models.bundle import load

    config = Path(name) / "config.json"
    if config.is_file() and '"format": "undiffuse"' in config.read_text(encoding="utf-8")[:200]:
        return CausalReference(load(Path(name)).to(device), str(name))
    return PretrainedReference(str(name), device)

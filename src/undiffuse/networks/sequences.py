"""Conditioners of sequences: captions, and outputs of frozen encoders. Both give tokens to be attended to.

Their first token is always readable: a learned one, which is all that there is to read where the condition is null, so
that attention never has nothing to read. A summary of the sequence goes into the vector, for networks that do not
attend (Podell et al. 2023, "SDXL", section 2.1, arXiv:2307.01952, adds a pooled text embedding in the same place).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from undiffuse.networks.attention import Rotary
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.transformer_block import TransformerBlock

Null = Literal["learned", "zero"]
_BYTES = 256
_HEAD = 64  # features per attention head of the text encoder, at most
_DEPTH = 2


class SequenceConditioner(nn.Module):
    """Base: from sequence and summary to `Embedded`, with nulls.

    Args:
        dim: Size D of tokens and vector.
        length: Most positions L of a sequence.
        tokens: Whether the network attends to tokens; if not, only the summary is given.
        null: "learned", or "zero": the null is the empty sequence.
    """

    def __init__(self, dim: int, length: int, *, tokens: bool, null: Null) -> None:
        super().__init__()
        self.length = length
        self.null_token = nn.Parameter(torch.randn(dim)) if tokens else None
        self.null_vector = nn.Parameter(torch.randn(dim)) if null == "learned" else None

    def null(self, batch: int) -> Embedded:
        """Return the null for every row."""
        if self.null_vector is None:
            return self(self.empty(batch))
        vector = self.null_vector.expand(batch, -1)
        if self.null_token is None:
            return Embedded(vector=vector)
        tokens = torch.cat([self.null_token[None], self.null_token.new_zeros(self.length, len(self.null_token))])
        mask = torch.arange(self.length + 1, device=vector.device) == 0
        return Embedded(vector=vector, tokens=tokens.expand(batch, -1, -1), mask=mask.expand(batch, -1))

    def empty(self, batch: int) -> Tensor:
        """Return rows that hold nothing."""
        raise NotImplementedError

    def _embedded(self, sequence: Tensor | None, readable: Tensor, summary: Tensor, drop: Tensor | None) -> Embedded:
        """Put the null token in front, zeros where nothing is readable, and the null where `drop` (B,) is True."""
        if self.null_vector is not None:  # also where nothing is dropped: data parallelism needs a gradient for it
            dropped = torch.zeros_like(readable[:, 0]) if drop is None else drop
            summary = torch.where(dropped[:, None], self.null_vector, summary)
        if self.null_token is None or sequence is None:
            return Embedded(vector=summary)
        first = self.null_token.expand(len(summary), 1, -1)
        tokens = torch.cat([first, torch.where(readable[..., None], sequence, 0.0)], dim=1)
        return Embedded(vector=summary, tokens=tokens, mask=torch.cat([torch.ones_like(readable[:, :1]), readable], 1))

    def _check_length(self, values: Tensor, layout: str) -> None:
        if values.shape[1] > self.length:
            raise ValueError(
                f"the condition is {values.shape[1]} long, {tuple(values.shape)}; expected {layout} of at most "
                f"{self.length}."
            )


class TextConditioner(SequenceConditioner):
    """A small bidirectional transformer over the bytes of a caption; learned with the network.

    Its summary is what it says at a learned token before the first byte.

    Args:
        length: Most bytes L of a caption.
        dim, tokens, null: See `SequenceConditioner`.
    """

    def __init__(self, length: int, dim: int, *, tokens: bool = True, null: Null = "learned") -> None:
        super().__init__(dim, length, tokens=tokens, null=null)
        heads = max(1, dim // _HEAD)
        width = -(-dim // (2 * heads)) * 2 * heads  # the next that splits into heads of even size
        self.head_dim = width // heads
        self.table = nn.Embedding(_BYTES + 1, width)  # the last row is the token before the first byte
        self.body = nn.ModuleList(TransformerBlock(width, heads, None) for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dim) if tokens else None
        self.summary = nn.Linear(width, dim)

    def forward(self, text: Tensor, drop: Tensor | None = None) -> Embedded:
        """Embed bytes `text`, int64 (B, up to L), filled up with -1; rows where `drop` (B,) is True get the null.

        Raises:
            ValueError: Longer than L, or no bytes.
        """
        if text.ndim != 2 or text.dtype != torch.int64:
            raise ValueError(f"the text is {text.dtype} {tuple(text.shape)}; expected int64 bytes (B, {self.length}).")
        self._check_length(text, "(B, bytes)")
        if text.device.type == "cpu" and text.numel() and int(text.max()) >= _BYTES:  # elsewhere it would synchronise
            raise ValueError(f"the text holds {int(text.max())}; expected bytes 0 to 255, and -1 to fill up.")
        text = nn.functional.pad(text, (0, self.length - text.shape[1]), value=-1)
        readable = text >= 0 if drop is None else (text >= 0) & ~drop[:, None]
        longest = self._longest(text)
        hidden = self._encode(text[:, :longest].clamp(min=0), readable[:, :longest])
        sequence = None
        if self.leave is not None:
            sequence = nn.functional.pad(self.leave(hidden[:, 1:]), (0, 0, 0, self.length - longest))
        return self._embedded(sequence, readable, self.summary(hidden[:, 0]), drop)

    def empty(self, batch: int) -> Tensor:
        """Return empty captions."""
        return torch.full((batch, self.length), -1, device=self.table.weight.device)

    def _longest(self, text: Tensor) -> int:
        """Return how many positions are worth encoding: on an accelerator all, since looking would wait for it."""
        if text.device.type != "cpu":
            return self.length
        used = (text >= 0).any(0).nonzero()
        return int(used[-1]) + 1 if len(used) else 0

    def _encode(self, text: Tensor, readable: Tensor) -> Tensor:
        """Map bytes (B, L) to (B, 1 + L, width)."""
        mask = nn.functional.pad(readable, (1, 0), value=True)
        hidden = self.table(nn.functional.pad(text, (1, 0), value=_BYTES))
        rotary = Rotary.make(hidden.shape[1], self.head_dim, like=hidden)
        for block in self.body:
            hidden = block(hidden, None, rotary, mask=mask)
        return self.norm(hidden)


class EmbeddingConditioner(SequenceConditioner):
    """Outputs of a frozen encoder, projected and normalised; rows of zeros are not read.

    Its summary is a linear map of the mean of the rows.

    Args:
        width: Features W of the encoder's outputs.
        length: Most positions L.
        dim, tokens, null: See `SequenceConditioner`.
    """

    def __init__(self, width: int, length: int, dim: int, *, tokens: bool = True, null: Null = "learned") -> None:
        super().__init__(dim, length, tokens=tokens, null=null)
        self.width = width
        self.project = nn.Sequential(nn.Linear(width, dim), nn.LayerNorm(dim)) if tokens else None
        self.summary = nn.Linear(width, dim)

    def forward(self, outputs: Tensor, drop: Tensor | None = None) -> Embedded:
        """Embed `outputs`, float (B, up to L, W), filled up with zeros; rows where `drop` (B,) is True get the null.

        Raises:
            ValueError: Another width, or longer than L.
        """
        if outputs.ndim != 3 or outputs.shape[2] != self.width or not outputs.is_floating_point():
            raise ValueError(
                f"the condition is {outputs.dtype} {tuple(outputs.shape)}; expected floats (B, {self.length}, "
                f"{self.width})."
            )
        self._check_length(outputs, f"(B, positions, {self.width})")
        outputs = nn.functional.pad(outputs, (0, 0, 0, self.length - outputs.shape[1])).to(self.summary.weight.dtype)
        readable = (outputs != 0).any(-1)
        readable = readable if drop is None else readable & ~drop[:, None]
        sequence = None if self.project is None else self.project(outputs)
        count = readable.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(readable[..., None], outputs, 0.0).sum(1) / count
        return self._embedded(sequence, readable, self.summary(mean), drop)

    def empty(self, batch: int) -> Tensor:
        """Return rows that hold nothing."""
        return self.summary.weight.new_zeros(batch, self.length, self.width)

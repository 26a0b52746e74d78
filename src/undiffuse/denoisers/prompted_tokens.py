"""The transformer of diffusers' `VQDiffusionPipeline` as a denoiser, with the frozen text encoder that it reads.

What is asked differs from the pipeline in one thing: its table of times is asked at the true time. Level i of T lies at
t = (i + 1) / T. The pipeline with N < T steps says i = N - 1 while everything is masked, which the network has never
seen; here N steps are strides through all T levels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec

PROMPT = "prompt"
"""Name of the condition: text, which is missing for the learned null."""
_ROUNDING = 1e-3  # of a float32 time, in levels


class PromptReader(nn.Module):
    """Turns prompts into what cross-attention reads: one vector of unit length for each of the encoder's positions.

    Args:
        encoder: The text part of CLIP, frozen.
        tokenizer: Its tokenizer, whose `model_max_length` L is the number of positions; all are read, as in training.
        null: Learned vectors (L, D) that stand for no prompt; None: what the empty prompt gives.
    """

    null: Tensor

    def __init__(self, encoder: nn.Module, tokenizer: Any, null: Tensor | None) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer
        self.register_buffer("null", self([""])[0] if null is None else null)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, L, D). What is beyond L tokens is cut, with a warning, as diffusers does."""
        most = int(self.tokenizer.model_max_length)
        long = next((text for text in prompts if len(self.tokenizer(text, verbose=False)["input_ids"]) > most), None)
        if long is not None:
            warnings.warn(f"the prompt {long[:40]!r}... is over {most} tokens long; its end is not read.", stacklevel=2)
        found = self.tokenizer(
            list(prompts), padding="max_length", max_length=most, truncation=True, return_tensors="pt"
        )
        device = next(self.encoder.parameters()).device
        hidden = self.encoder(found["input_ids"].to(device))[0].float()
        return hidden / hidden.norm(dim=-1, keepdim=True)


class PromptedTokens(Denoiser):
    """p(x_0 | x_t, prompt) by a `Transformer2DModel` with vector-quantised input, whose output is log p over K classes.

    Times are snapped to the nearest of the T levels that its table knows, with a warning. Rows of different times are
    asked apart; times per token are refused.

    Args:
        transformer: The network; `num_vector_embeds` is K + 1.
        process: Of K classes.
        reader: Reads prompts.
        spec: The tokens on their grid, with the condition "prompt" of kind "text".

    Raises:
        ValueError: The network is of other classes, or of another grid.
    """

    process: CategoricalProcess
    spec: DataSpec

    def __init__(
        self, transformer: nn.Module, process: CategoricalProcess, reader: PromptReader, spec: DataSpec
    ) -> None:
        super().__init__()
        config: Any = transformer.config
        if config.num_vector_embeds != process.states:
            raise ValueError(
                f"the transformer has {config.num_vector_embeds} states, masks among them, and the codec "
                f"{process.classes} code vectors; there must be one state more than vectors."
            )
        side = config.sample_size
        if spec.grid != (side, side):
            raise ValueError(f"the transformer works on {side} x {side} tokens, the codec makes {spec.grid}.")
        self.transformer, self.process, self.reader, self.spec = transformer, process, reader, spec
        self.levels = int(config.num_embeds_ada_norm)

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        """Ask the network once for every level among the times."""
        self.process.check_tokens(x)
        read = self._null(len(x)) if cond is None or cond.tokens is None else cond.tokens
        read = read.to(next(self.transformer.parameters()).dtype)
        if not isinstance(t, Tensor):
            return CategoricalPosterior(self._ask(x, self._level(torch.tensor(t)), read))
        if t.ndim > 1:
            raise ValueError(f"times of shape {tuple(t.shape)}: this network has one time for all tokens of an item.")
        level = self._level(t.cpu()).to(x.device)
        logits = torch.empty(0)
        for one in level.unique():
            rows = level == one
            part = self._ask(x[rows], one, read[rows])
            logits = part.new_empty(*x.shape, self.process.classes) if not len(logits) else logits
            logits[rows] = part
        return CategoricalPosterior(logits)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Read each distinct prompt once; rows without one, or dropped, get the null.

        Raises:
            ValueError: Another condition than "prompt".
        """
        unknown = sorted({*(cond or {}), *(drop or {})} - {PROMPT})
        if unknown:
            raise ValueError(f"condition {unknown[0]!r} is unknown to this model; it reads {PROMPT!r}.")
        tokens = self._null(batch)
        if cond and PROMPT in cond:
            texts = [bytes(row[row >= 0].tolist()).decode("utf-8", "replace") for row in cond[PROMPT].cpu()]
            distinct = list(dict.fromkeys(texts))
            tokens = self.reader(distinct)[[distinct.index(text) for text in texts]].expand(batch, -1, -1)
        dropped = (drop or {}).get(PROMPT)
        if dropped is not None:
            tokens = torch.where(dropped[:, None, None], self.reader.null, tokens)
        return Embedded(tokens=tokens)

    def _null(self, batch: int) -> Tensor:
        return self.reader.null.expand(batch, -1, -1)

    def _level(self, t: Tensor) -> Tensor:
        exact = t.double() * self.levels
        if bool(((exact - exact.round()).abs() > _ROUNDING).any()):
            warnings.warn(
                f"the network knows {self.levels} times; between them it is asked at the nearest. Steps that divide "
                f"{self.levels} meet its times.",
                stacklevel=2,
            )
        return (exact.round().long() - 1).clamp(0, self.levels - 1)

    def _ask(self, x: Tensor, level: Tensor, read: Tensor) -> Tensor:
        """Return log p (B, L, K) in float32 at one level."""
        answer: Any = self.transformer(x, encoder_hidden_states=read, timestep=level.to(x.device))
        return answer.sample.mT.float()

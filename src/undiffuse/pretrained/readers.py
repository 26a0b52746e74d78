"""Conditions of pipelines: labels, prompts through the pipeline's own text encoders, and numbers told beside them."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from undiffuse.networks.diffusers_build import ClassNumbers
from undiffuse.networks.embedded import Embedded
from undiffuse.spec import ConditionSpec

PROMPT, LABEL = "prompt", "label"
PROMPT_BYTES = 4096  # of a prompt; encoders read 77 to 512 tokens of it
_KEPT = 256  # prompts whose embeddings are kept
Conditions = dict[str, Tensor] | None


class Reader(nn.Module, ABC):
    """Turns conditions into what a network of diffusers reads.

    Attributes:
        conditions: Its conditions beside the class label, for `DataSpec.cond`.
    """

    conditions: dict[str, ConditionSpec]

    def embed(self, cond: Conditions, batch: int, drop: Conditions) -> Embedded | None:
        """Embed the conditions of a batch; see `Denoiser.embed`.

        Raises:
            ValueError: A condition that the model does not know.
        """
        unknown = sorted({*(cond or {}), *(drop or {})} - self.names)
        if unknown:
            what = f"it reads {', '.join(sorted(self.names))}" if self.names else "it has none"
            raise ValueError(f"condition {unknown[0]!r} is unknown to this model; {what}.")
        return self.read(cond or {}, batch, drop or {})

    @property
    def names(self) -> set[str]:
        """Names of its conditions."""
        return set(self.conditions)

    @abstractmethod
    def read(self, cond: dict[str, Tensor], batch: int, drop: dict[str, Tensor]) -> Embedded | None:
        """Embed known conditions."""


class NoConditions(Reader):
    """Of unconditional networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions = {}

    def read(self, cond: dict[str, Tensor], batch: int, drop: dict[str, Tensor]) -> None:
        """Return nothing."""
        return None


class Labels(Reader):
    """Class numbers; row `null` of the network's table stands for no label.

    Args:
        null: That row; None where the network was trained without one, so that every item needs a label.
    """

    def __init__(self, null: int | None) -> None:
        super().__init__()
        self.conditions, self.numbers = {}, ClassNumbers(null)

    @property
    def names(self) -> set[str]:
        """The label."""
        return {LABEL}

    def read(self, cond: dict[str, Tensor], batch: int, drop: dict[str, Tensor]) -> Embedded:
        """Return the numbers as an integer vector (B, 1)."""
        if LABEL not in cond:
            return self.numbers.null(batch)
        embedded: Embedded = self.numbers(cond[LABEL].expand(batch), drop.get(LABEL))
        return embedded


class Texts(NamedTuple):
    """What the encoders say about a prompt: (1, L, D), (1, L) where positions are to be left out, (1, P)."""

    tokens: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Told:
    """Numbers that are told beside the prompt, with a value for where they are not given.

    Args:
        values: That value.
    """

    values: tuple[float, ...]

    def spec(self) -> ConditionSpec:
        """Describe them: their null is a value like others, which guidance keeps."""
        return ConditionSpec(kind="vector", width=len(self.values), mean=self.values, null="zero")


class Prompts(Reader):
    """Prompts, by the text encoders of a pipeline. What they say is kept, by prompt.

    Args:
        pipe: The pipeline.
        encode: Its way to read a prompt; None stands for no prompt.
        told: Numbers told beside it, in order, by name.
    """

    def __init__(self, pipe: Any, encode: Callable[[Any, str | None], Texts], told: dict[str, Told]) -> None:
        super().__init__()
        parts = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
        self.encoders = nn.ModuleList([part.eval().requires_grad_(False) for part in parts if part is not None])
        self.pipe, self.encode, self.told = pipe, encode, told
        self._kept: OrderedDict[str | None, Texts] = OrderedDict()
        text = {PROMPT: ConditionSpec(kind="text", length=PROMPT_BYTES)}
        self.conditions = text | {name: numbers.spec() for name, numbers in told.items()}

    def read(self, cond: dict[str, Tensor], batch: int, drop: dict[str, Tensor]) -> Embedded:
        """Return the encoders' outputs, of each distinct prompt once."""
        prompts = self._prompts(cond.get(PROMPT), batch, drop.get(PROMPT))
        distinct = list(dict.fromkeys(prompts))
        found = [self.texts(prompt) for prompt in distinct]
        rows = [distinct.index(prompt) for prompt in prompts]
        vectors = [] if found[0].pooled is None else [_stacked([one.pooled for one in found], rows)]
        for name, numbers in self.told.items():
            own = torch.tensor(numbers.values, device=found[0].tokens.device).expand(batch, -1)
            given = cond.get(name)
            vectors.append(own if given is None else own + given.to(own.device).expand(batch, -1))
        return Embedded(
            tokens=_stacked([one.tokens for one in found], rows),
            mask=None if found[0].mask is None else _stacked([one.mask for one in found], rows),
            vector=torch.cat(vectors, dim=1) if vectors else None,
        )

    @torch.no_grad()
    def texts(self, prompt: str | None) -> Texts:
        """Return what the encoders say about a prompt, from memory where it was asked before.

        A prompt that is too long for an encoder is cut, with a warning that says by how much.
        """
        if prompt not in self._kept:
            if prompt is not None:
                _warn_if_cut(self.pipe, prompt)
            self._kept[prompt] = self.encode(self.pipe, prompt)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[prompt]

    def train(self, mode: bool = True) -> Prompts:
        """Set no mode: encoders are never trained, and what they say is kept."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Prompts:
        """Forget what was read: another device or dtype says something else."""
        self._kept.clear()
        return super()._apply(fn, recurse)

    def _prompts(self, rows: Tensor | None, batch: int, drop: Tensor | None) -> list[str | None]:
        texts: list[str | None] = [None] * batch
        if rows is not None:
            texts = [bytes(row[row >= 0].tolist()).decode("utf-8", "replace") for row in rows.cpu().expand(batch, -1)]
        dropped = [False] * batch if drop is None else drop.tolist()
        return [None if gone else text for text, gone in zip(texts, dropped, strict=True)]


def _stacked(parts: list[Any], rows: list[int]) -> Tensor:
    return torch.cat(parts)[torch.tensor(rows, device=parts[0].device)]


def _warn_if_cut(pipe: Any, prompt: str) -> None:
    longest = inspect.signature(pipe.encode_prompt).parameters.get("max_sequence_length")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipe, name, None)
        if tokenizer is None:
            continue
        is_t5 = type(tokenizer).__name__.startswith("T5")
        most = longest.default if is_t5 and longest is not None else int(tokenizer.model_max_length)
        over = len(tokenizer(prompt, verbose=False)["input_ids"]) - most
        if over > 0:
            warnings.warn(
                f"the prompt {prompt[:40]!r}... is {over} tokens too long for {name} ({type(tokenizer).__name__}), "
                f"which reads {most}; its end is not read there.",
                stacklevel=2,
            )


# -- how the pipelines read a prompt ----------------------------------------------------------------------


def encode_sd(pipe: Any, prompt: str | None) -> Texts:
    """Stable Diffusion 1 and 2."""
    return Texts(pipe.encode_prompt(prompt or "", pipe._execution_device, 1, False)[0])


def encode_sdxl(pipe: Any, prompt: str | None) -> Texts:
    """Stable Diffusion XL: no prompt is zeros where its configuration says so."""
    tokens, _, pooled, _ = pipe.encode_prompt(
        prompt or "", device=pipe._execution_device, do_classifier_free_guidance=False
    )
    if prompt is None and pipe.config.force_zeros_for_empty_prompt:
        tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    return Texts(tokens, pooled=pooled)


def encode_sd3(pipe: Any, prompt: str | None) -> Texts:
    """Stable Diffusion 3."""
    tokens, _, pooled, _ = pipe.encode_prompt(
        prompt or "", None, None, device=pipe._execution_device, do_classifier_free_guidance=False
    )
    return Texts(tokens, pooled=pooled)


def encode_flux(pipe: Any, prompt: str | None) -> Texts:
    """Flux."""
    tokens, pooled, _ = pipe.encode_prompt(prompt or "", None, device=pipe._execution_device)
    return Texts(tokens, pooled=pooled)


def encode_pixart(pipe: Any, prompt: str | None) -> Texts:
    """PixArt."""
    tokens, mask, _, _ = pipe.encode_prompt(
        prompt or "", do_classifier_free_guidance=False, device=pipe._execution_device
    )
    return Texts(tokens, mask)

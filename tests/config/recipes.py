"""An option tree with every kind of field, for the tests of `undiffuse.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class UNet:
    kind: Literal["unet"] = "unet"
    channels: int = field(default=32, metadata={"help": "Width of the first level."})
    multipliers: tuple[int, ...] = (1, 2)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels={self.channels} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Transformer:
    kind: Literal["transformer"] = "transformer"
    channels: int = 128
    heads: int = 4

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise ValueError(f"channels={self.channels} is not a multiple of heads={self.heads}.")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    scale: float = 2.0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    source: str = "digits"
    kind: Literal["image", "text"] = "image"  # an ordinary option: the group has one class only
    folder: Path | None = None
    names: tuple[str, ...] = ()
    widths: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int = 1000
    lr: float = 1e-3
    seed: int | None = None
    decay: Literal["cosine", "none", "linear"] = "cosine"
    resume: bool = False
    max_norm: float | Literal["off"] = 1.0
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every kind of field: plain groups, a tagged group, an optional group."""

    name: str = "run"
    model: UNet | Transformer = field(default_factory=lambda: UNet(channels=48), metadata={"help": "The network."})
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    guidance: Guidance | None = None
    student: UNet | Transformer | None = None


@dataclass(frozen=True, kw_only=True)
class Required:
    source: str
    train: Train  # no default, but all of its options have one
    model: UNet | Transformer

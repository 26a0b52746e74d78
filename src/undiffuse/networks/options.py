"""Options of the networks: torch-free, so that `--help` and recipes need no torch.

`kind` is the tag by which a recipe chooses a network (`model=unet model.channels=64`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from undiffuse.limits import at_least_one, not_negative, share_below_one
from undiffuse.words import option


@dataclass(frozen=True, kw_only=True)
class MLPOptions:
    """Residual network for vectors (B, D)."""

    kind: Literal["mlp"] = option("mlp", "the network's kind")
    width: int = option(256, "features of the hidden layers")
    depth: int = option(4, "number of residual blocks")
    self_condition: bool = option(False, "let the network see its own last estimate of the clean data")

    def __post_init__(self) -> None:
        at_least_one(self, "width", "depth")


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Convolutional U-Net for signals, images, volumes, and video frame by frame."""

    kind: Literal["unet"] = option("unet", "the network's kind")
    channels: int = option(64, "channels of the first level")
    multipliers: tuple[int, ...] = option(
        (1, 2, 2), "channels of each level over those of the first; one entry a level"
    )
    blocks: int = option(2, "residual blocks per level, on the way down and on the way up")
    attention: tuple[int, ...] = option((-1,), "levels with self-attention; 0 is full size, -1 the coarsest")
    heads: int = option(4, "attention heads")
    temporal: bool = option(False, "video: let frames attend to each other at every level")
    token_input: Literal["embedding", "scaled"] = option(
        "embedding",
        "tokens: read a learned vector of each, or its number in [-1, 1], and add it to its own logit (VQ-DDM)",
    )
    dropout: float = option(0.0, "share of features dropped in training, in [0, 1)")
    self_condition: bool = option(False, "let the network see its own last estimate of the clean data")

    def __post_init__(self) -> None:
        at_least_one(self, "channels", "blocks", "heads")
        share_below_one(self, "dropout")
        levels = len(self.multipliers)
        if levels < 1 or min(self.multipliers) < 1:
            raise ValueError(f"multipliers={self.multipliers}; expected at least one level, each entry at least 1.")
        unknown = [level for level in self.attention if not -levels <= level < levels]
        if unknown:
            raise ValueError(
                f"attention level {unknown[0]} does not exist; the levels are 0 to {levels - 1}, or -1 for the last."
            )
        for width in self.attending_widths:
            if width % self.heads or (self.temporal and width // self.heads % 2):
                even = " of even size (temporal attention turns pairs of features)" if self.temporal else ""
                raise ValueError(
                    f"{width} channels do not split into heads={self.heads} heads{even}; change heads or channels."
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full size first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def attention_levels(self) -> frozenset[int]:
        """Levels with self-attention, counted from 0."""
        return frozenset(level % len(self.multipliers) for level in self.attention)

    @property
    def attending_widths(self) -> frozenset[int]:
        """Channel counts that some attention works on."""
        levels = range(len(self.multipliers)) if self.temporal else self.attention_levels
        return frozenset(self.widths[level] for level in levels)


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """Transformer for tokens (B, L)."""

    kind: Literal["transformer"] = option("transformer", "the network's kind")
    width: int = option(128, "features per token")
    depth: int = option(4, "number of blocks")
    heads: int = option(4, "attention heads")
    time_dependent: bool = option(False, "tell the network the noise level; masked diffusion does without")
    dropout: float = option(0.0, "share of features dropped in training, in [0, 1)")
    neighbours: int = option(0, "tokens on each side that blocks mix by convolution before attention; 0 for none")
    causal: bool = option(False, "let tokens see those before them only, for objective=autoregressive")
    conv_mlp: bool = option(False, "convolutions over 3 tokens per axis in place of the feed-forward layers")
    gated: bool = option(False, "begin with closed blocks also without time and condition: small networks learn faster")
    counts_masks: bool = option(
        False, "without time: tell the blocks how many of a row's tokens are masks; small networks learn faster"
    )
    positions: Literal["rope", "learned"] = option(
        "rope", "how tokens know their place: rotary, or learned (by row and column on a grid; the training size only)"
    )

    def __post_init__(self) -> None:
        at_least_one(self, "width", "depth", "heads")
        share_below_one(self, "dropout")
        if self.neighbours < 0:
            raise ValueError(f"neighbours={self.neighbours} must not be negative.")
        if self.causal and self.time_dependent:
            raise ValueError("causal networks read clean tokens, which have no time; set time_dependent=false.")
        if self.causal and self.conv_mlp:
            raise ValueError("conv_mlp sees the tokens on both sides of each; set conv_mlp=false where causal=true.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} does not split into heads={self.heads} heads of even size "
                f"(rotary positions turn pairs of features); use a multiple of {2 * self.heads}."
            )


@dataclass(frozen=True, kw_only=True)
class DiTOptions:
    """Transformer over patches, for signals, images, volumes and video."""

    kind: Literal["dit"] = option("dit", "the network's kind")
    width: int = option(256, "features per token")
    depth: int = option(8, "number of blocks")
    heads: int = option(4, "attention heads")
    patch: int = option(2, "side of the patches that become tokens, in pixels (samples, voxels)")
    ratio: float = option(4.0, "features between the two layers of a feed-forward part, over width")
    positions: Literal["rope", "learned"] = option(
        "rope", "how tokens know their place: rotary (any size of input) or learned (the training size only)"
    )
    qk_norm: bool = option(False, "normalise queries and keys, which keeps long trainings in bfloat16 stable")
    temporal: bool | None = option(
        None, "let the frames of a video attend to each other after every block; none: where the data are video"
    )
    dropout: float = option(0.0, "share of features dropped in training, in [0, 1)")
    route: float = option(0.0, "share of tokens that skip the middle blocks in training, in [0, 1); 0.5 saves most")
    route_first: int = option(2, "first block that routed tokens skip, counted from 0; negative from the end")
    route_last: int = option(-3, "last block that routed tokens skip, likewise")
    self_condition: bool = option(False, "let the network see its own last estimate of the clean data")

    def __post_init__(self) -> None:
        at_least_one(self, "width", "depth", "heads", "patch")
        share_below_one(self, "dropout", "route")
        if not self.ratio * self.width >= 1:
            raise ValueError(f"ratio={self.ratio} leaves the feed-forward parts without features; 4 is usual.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} does not split into heads={self.heads} heads of even size "
                f"(rotary positions turn pairs of features); use a multiple of {2 * self.heads}."
            )
        if self.route and not self.routed_blocks:
            raise ValueError(
                f"route={self.route} skips blocks {self.route_first} to {self.route_last}, which are none of "
                f"depth={self.depth}; set route_first and route_last, for example 1 and -2."
            )

    @property
    def routed_blocks(self) -> range:
        """Blocks that routed tokens skip; empty where the bounds leave none."""
        first, last = (at + self.depth if at < 0 else at for at in (self.route_first, self.route_last))
        return range(first, last + 1) if first >= 0 and last < self.depth else range(0)


@dataclass(frozen=True, kw_only=True)
class DiffusersUNetOptions:
    """UNet2DModel of diffusers, for images; what is trained with it can be written as a folder that diffusers reads."""

    kind: Literal["diffusers-unet"] = option("diffusers-unet", "the network's kind")
    channels: int = option(64, "channels of the first level, a multiple of groups")
    multipliers: tuple[int, ...] = option(
        (1, 2, 2), "channels of each level over those of the first; one entry a level"
    )
    blocks: int = option(2, "residual blocks per level, on the way down and on the way up")
    attention: tuple[int, ...] = option((-1,), "levels with self-attention; 0 is full size, -1 the coarsest")
    head: int = option(8, "features of an attention head")
    groups: int = option(32, "groups of channels that are normalised together")
    settings: str = option("", "further settings of UNet2DModel, as JSON; they go before those above")

    def __post_init__(self) -> None:
        at_least_one(self, "channels", "blocks", "head", "groups")
        levels = len(self.multipliers)
        if levels < 1 or min(self.multipliers) < 1:
            raise ValueError(f"multipliers={self.multipliers}; expected at least one level, each entry at least 1.")
        unknown = [level for level in self.attention if not -levels <= level < levels]
        if unknown:
            raise ValueError(
                f"attention level {unknown[0]} does not exist; the levels are 0 to {levels - 1}, or -1 for the last."
            )
        if self.channels % self.groups:
            raise ValueError(f"channels={self.channels} do not split into groups={self.groups}; change one of them.")
        check_settings(self.settings)

    @property
    def patch(self) -> int:
        """Of which the sides of a picture are multiples."""
        return 1 << (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class DiffusersDiTOptions:
    """DiTTransformer2DModel of diffusers, for square images; likewise."""

    kind: Literal["diffusers-dit"] = option("diffusers-dit", "the network's kind")
    width: int = option(256, "features per token")
    depth: int = option(8, "number of blocks")
    heads: int = option(4, "attention heads")
    patch: int = option(2, "side of the patches that become tokens, in pixels")
    settings: str = option("", "further settings of DiTTransformer2DModel, as JSON; they go before those above")

    def __post_init__(self) -> None:
        at_least_one(self, "width", "depth", "heads", "patch")
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width={self.width} does not split into heads={self.heads} heads of a multiple of 4 features; use a "
                f"multiple of {4 * self.heads}."
            )
        check_settings(self.settings)


LABEL_WORD = "{label}"
"""In a prompt: the name of the class."""


@dataclass(frozen=True, kw_only=True)
class PretrainedNetworkOptions:
    """The network of a pipeline of diffusers that reads prompts, which train.init names; tuned by a LoRA or whole."""

    kind: Literal["pretrained"] = option("pretrained", "the network's kind")
    rank: int = option(16, "of the LoRA; 0 trains all weights instead")
    targets: tuple[str, ...] = option(
        ("to_q", "to_k", "to_v", "to_out.0"), "LoRA: layers that get one, by the end of their names"
    )
    dtype: Literal["float32", "bfloat16"] = option("float32", "LoRA: of all weights that stay as they are")
    prompt: str = option(
        "a photo of {label}", "prompt where the data have no captions; {label} is the name of the class"
    )

    def __post_init__(self) -> None:
        not_negative(self, "rank")
        if self.rank and not self.targets:
            raise ValueError(f"rank={self.rank} but targets is empty; name layers, such as to_q, or set rank=0.")
        if not self.rank and self.dtype != "float32":
            raise ValueError(f"rank=0 trains all weights, and in {self.dtype} small changes are lost; use float32.")
        if set("{}") & set(self.prompt.replace(LABEL_WORD, "")):
            raise ValueError(f"prompt={self.prompt!r}: {LABEL_WORD} is the only word in braces that is known.")


def check_settings(text: str) -> dict[str, Any]:
    """Return further settings of a network of diffusers.

    Raises:
        ValueError: They are no JSON object.
    """
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f'settings={text!r} is no JSON ({error}); write it like {{"act_fn": "gelu"}}.') from None
    if not isinstance(found, dict):
        raise ValueError(f'settings={text!r} is no JSON object; write it like {{"act_fn": "gelu"}}.')
    return found


NetworkOptions = MLPOptions | UNetOptions | TransformerOptions | DiTOptions | DiffusersUNetOptions | DiffusersDiTOptions

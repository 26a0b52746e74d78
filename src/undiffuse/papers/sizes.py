"""What `undiffuse papers NAME` and `--large` mean for the studies of discrete diffusion, in one place.

`small` is for two processor cores and minutes, and is what the figures of the documentation are of. `large` is nearer
to the papers' own sizes; it is meant for a GPU, and runs on a processor too, slowly. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from undiffuse.codecs.options import VQOptions
from undiffuse.networks.options import TransformerOptions, UNetOptions

Size = Literal["small", "large"]
_Of = TypeVar("_Of")


def of_size(table: dict[Size, _Of], large: bool) -> _Of:
    """Return what a table has for the small version, or for the large one."""
    return table["large" if large else "small"]


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """Of `masked-diffusion`: two networks of one size on a text.

    Args:
        keys: Changes to the recipe `text`.
        length: Characters of an item.
        seconds: Of training of each network on this machine; None: `steps`.
        steps: Optimizer steps of each network.
        rows, compared: Samples; fewer where ancestral sampling calls the network a thousand times.
    """

    keys: tuple[str, ...] = ()
    length: int = 128
    seconds: float | None = 300.0
    steps: int = 0
    rows: int = 48
    compared: int = 24


TEXTS: dict[Size, TextSize] = {
    "small": TextSize(),
    "large": TextSize(
        keys=(
            "model.width=384",
            "model.depth=8",
            "model.heads=6",
            "model.dropout=0.1",
            "train.batch_size=128",
            "train.lr=6e-4",
        ),
        length=256,
        seconds=None,
        steps=20_000,
        rows=256,
        compared=128,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PictureSize:
    """Of `vq-diffusion`: a codec and a transformer on its tokens, conditioned on classes.

    Args:
        codec, network: Changes to the recipes `vq-diffusion` and `vq-image`.
        steps, batch_size: Of the training of a network.
        samples: Judged per sampler.
        side, width, depth: Of the untrained networks whose speed is measured: tokens along a side, features, blocks.
    """

    codec: tuple[str, ...] = ("codec.codes=32", "codec.channels=8", "codec.width=16", "codec.steps=1500")
    network: tuple[str, ...] = ("model.width=96", "model.depth=4", "model.heads=4", "model.neighbours=0")
    steps: int = 3000
    batch_size: int = 64
    samples: int = 1000
    side: int = 32
    width: int = 192
    depth: int = 6


PICTURES: dict[Size, PictureSize] = {
    "small": PictureSize(),
    "large": PictureSize(
        codec=("codec.codes=256", "codec.channels=16", "codec.width=64", "codec.steps=10_000"),
        network=("model.width=256", "model.depth=8", "model.heads=8", "model.neighbours=0"),
        steps=30_000,
        batch_size=128,
        samples=5000,
        width=1024,
        depth=19,
    ),
}


@dataclass(frozen=True, kw_only=True)
class CodebookSize:
    """Of the codebooks of `vq-ddm`.

    Args:
        codec: The codec; its `steps` are those before the rebuild.
        more: Steps after it.
        rebuilt, drawn: Code vectors of the rebuilt codebooks, and of those drawn from N(mean, std).
        items: Pictures that crops are cut from, where pictures are given.
        side: Of those crops, in pixels.
    """

    codec: VQOptions
    more: int
    rebuilt: tuple[int, ...]
    drawn: tuple[int, ...]
    items: int = 0
    side: int = 16


DIGITS = VQOptions(
    codes=128, channels=8, halvings=1, width=16, codebook="gradient", restart=0, steps=1500, batch_size=64, lr=2e-3
)
"""The codec of the experiment on digits: 8 x 8 pixels to 4 x 4 tokens."""

CODEBOOKS: dict[Size, CodebookSize] = {
    "small": CodebookSize(codec=DIGITS, more=600, rebuilt=(128, 64, 32, 16), drawn=(128, 64, 32)),
    "large": CodebookSize(
        codec=VQOptions(
            codes=128,
            channels=8,
            halvings=1,
            width=64,
            blocks=2,
            codebook="gradient",
            restart=0,
            steps=6000,
            batch_size=64,
            lr=1e-3,
        ),
        more=2400,
        rebuilt=(128, 64, 32, 16),
        drawn=(128, 64, 32),
    ),
}

CROPS: dict[Size, CodebookSize] = {
    "small": CodebookSize(
        codec=VQOptions(
            codes=256,
            channels=8,
            halvings=2,
            width=16,
            codebook="gradient",
            restart=0,
            steps=600,
            batch_size=32,
            lr=2e-3,
        ),
        more=250,
        rebuilt=(256,),
        drawn=(),
        items=1500,
    ),
    "large": CodebookSize(
        codec=VQOptions(
            codes=512,
            channels=16,
            halvings=2,
            width=64,
            blocks=2,
            codebook="gradient",
            restart=0,
            steps=10_000,
            batch_size=64,
            lr=1e-3,
        ),
        more=4000,
        rebuilt=(512, 256),
        drawn=(512,),
        items=20_000,
    ),
}
"""Where pictures are given; they are cut into crops."""


@dataclass(frozen=True, kw_only=True)
class CompletionSize:
    """Of the completed digits of `vq-ddm`.

    Args:
        codec_steps, steps: Optimizer steps of the codec, and of each network.
        items: Held-out digits that are completed.
        completions: How often each.
        calls: Sampling steps.
        epochs: Of the classifier.
        unet, transformer: The networks.
    """

    codec_steps: int = 1500
    steps: int = 4000
    items: int = 180
    completions: int = 2
    calls: int = 32
    epochs: int = 12
    unet: UNetOptions
    transformer: TransformerOptions


COMPLETIONS: dict[Size, CompletionSize] = {
    "small": CompletionSize(
        unet=UNetOptions(channels=48, multipliers=(1, 2), blocks=1),
        transformer=TransformerOptions(width=96, depth=4, heads=4),
    ),
    "large": CompletionSize(
        codec_steps=6000,
        steps=20_000,
        completions=8,
        calls=100,
        unet=UNetOptions(channels=128, multipliers=(1, 2), blocks=2),
        transformer=TransformerOptions(width=256, depth=8, heads=8),
    ),
}

"""What a recipe says about its data. Free of torch, so that the command's help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from undiffuse.errors import DataError

ColumnKind = Literal["text", "vector", "label"]
Augmentation = Literal["xflip", "yflip", "turn", "scale", "rotate", "stretch", "translate"]
_COUNTS = ("caption_length", "shuffle")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to find and read the data. An option that the kind of data found has no use for is refused.

    Raises:
        ValueError: A number is out of its range.
    """

    source: str = field(
        default="",
        metadata={
            "help": "digits, moons, mixture3, prose, or a path: a folder or .zip of pictures (class folders become "
            "labels), one picture, a .npy, .npz or .csv array, a .parquet table, a folder saved by datasets, .tar "
            "shards (name-{000..009}.tar), a text file; or hf://owner/name:config@split"
        },
    )
    size: int | None = field(
        default=None,
        metadata={"help": "pictures: side in pixels to bring them to; none: look at the data, 64 at most"},
    )
    channels: Literal["auto", "grey", "rgb", "rgba"] = field(
        default="auto", metadata={"help": "pictures: colour channels; auto: grey if all are grey, else rgb"}
    )
    resize: Literal["crop", "pad", "stretch"] = field(
        default="crop", metadata={"help": "pictures: how other proportions are brought to the size"}
    )
    flip: bool = field(default=False, metadata={"help": "images: add a mirrored copy of each training image"})
    holdout: float | None = field(
        default=None,
        metadata={"help": "share (below 1) or number of items held out; none: 0.1, and 400 of the digits"},
    )
    max_bad: float = field(default=0.05, metadata={"help": "pictures: share of unreadable files tolerated"})
    limit: int | None = field(
        default=None, metadata={"help": "read this many items at most (text: characters); a fixed random choice"}
    )
    units: Literal["auto", "bytes", "characters"] = field(
        default="auto", metadata={"help": "text: what a token is; auto: characters where the text is UTF-8"}
    )
    tokenizer: str = field(
        default="",
        metadata={"help": "text: a tokenizer of Hugging Face: tokenizer.json, a folder with it, or hf://owner/name"},
    )
    length: int = field(default=128, metadata={"help": "text: tokens in one item"})
    layout: Literal["auto", "vector", "signal", "image", "video", "volume", "categories", "tokens"] = field(
        default="auto",
        metadata={
            "help": "arrays: what the axes mean; auto: by the shape; categories: a table with kinds in columns; "
            "tokens: ids of one vocabulary"
        },
    )
    bins: int = field(default=16, metadata={"help": "tables of categories: values that a column of numbers is cut to"})
    key: str | None = field(
        default=None, metadata={"help": ".npz array, column of a table, or suffix in shards that holds the data"}
    )
    label: str | None = field(default=None, metadata={"help": "column or .npz array that holds the class of each item"})
    cond: str = field(
        default="auto",
        metadata={
            "help": "conditions from columns, such as caption:text,age:vector,kind:label; auto: those beside pictures; "
            "none: no conditions"
        },
    )
    caption_length: int = field(
        default=128, metadata={"help": "captions: bytes (tokens where data.encoder is set) kept of each at most"}
    )
    encoder: str = field(
        default="",
        metadata={
            "help": "captions: a frozen text encoder of transformers (CLIP, T5, BERT, ...) that reads them once, a "
            "folder or hf://owner/name; its outputs are cached"
        },
    )
    pair: str = field(
        default="auto",
        metadata={
            "help": "pictures: folder (or column) of the degraded or earlier picture of each, matched by name; auto: "
            "folders named input and target; none: no pairs"
        },
    )
    degrade: str = field(
        default="",
        metadata={
            "help": "numbers: spoil each item while training and give the network the result, such as "
            "downsample:2|noise:gaussian,0.05; several, parted by ;, take turns (`undiffuse degrade --list`); a level "
            "from a range, noise:gaussian,0..0.2, is told to the network"
        },
    )
    lazy: bool | None = field(
        default=None, metadata={"help": "pictures: read from disk while training; none: if they do not fit in memory"}
    )
    split: str | None = field(default=None, metadata={"help": "tables: which split; none: train, or the only one"})
    stream: bool = field(
        default=False, metadata={"help": "tables, shards: read in order while training, without knowing their length"}
    )
    shuffle: int = field(default=1024, metadata={"help": "streams: items among which the order is shuffled"})
    buckets: bool = field(
        default=False,
        metadata={"help": "pictures: keep their proportions, in buckets of equal shape with an area near size x size"},
    )
    bucket_step: int = field(default=8, metadata={"help": "buckets: sides are multiples of this many pixels"})
    frames: int = field(default=16, metadata={"help": "video: frames in one clip"})
    stride: int = field(default=1, metadata={"help": "video: take every so manieth frame"})
    overlap: int = field(default=0, metadata={"help": "video, signals: frames or points that neighbours share"})
    samples: int | None = field(
        default=None, metadata={"help": "signals: points in one item; none: the shortest file, 4096 at most"}
    )
    rate: float | None = field(
        default=None, metadata={"help": "signals: resample to so many points per second; none: refuse mixed rates"}
    )
    window: tuple[float, ...] = field(
        default=(), metadata={"help": "volumes: LOW,HIGH; clip values to these and take them for black and white"}
    )
    percentiles: tuple[float, ...] = field(
        default=(), metadata={"help": "volumes: LOW,HIGH; the window as percentiles of all values, such as 0.5,99.5"}
    )
    augment: float = field(
        default=0.0,
        metadata={"help": "images, video: probability of each transformation, told to the network (EDM: 0.12)"},
    )
    augmentations: tuple[Augmentation, ...] = field(
        default=("xflip", "scale", "rotate", "stretch", "translate"),
        metadata={"help": "which: xflip, yflip, turn (by 90 degrees), scale, rotate, stretch, translate"},
    )

    def __post_init__(self) -> None:
        for name in ("size", "limit", "length", "bucket_step", "bins", "frames", "stride", "samples", *_COUNTS):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} is out of range; give 1 or more.")
        self._check_ranges()
        self.columns()
        if self.tokenizer and self.units != "auto":
            raise ValueError(f"data.units={self.units} and data.tokenizer both say what a token is; leave one out.")
        if not 0.0 <= self.max_bad <= 1.0:
            raise ValueError(f"data.max_bad={self.max_bad} is out of range; give a share from 0 to 1.")
        if self.holdout is not None and (self.holdout < 0 or (self.holdout >= 1 and self.holdout % 1)):
            raise ValueError(f"data.holdout={self.holdout} is out of range; give a share below 1 or a whole number.")

    def _check_ranges(self) -> None:
        if self.overlap < 0 or (self.rate is not None and not self.rate > 0):
            raise ValueError(f"data.overlap={self.overlap}, data.rate={self.rate}; give 0 or more, and more than 0.")
        for name in ("window", "percentiles"):
            pair = getattr(self, name)
            if pair and not (len(pair) == 2 and pair[0] < pair[1]):
                raise ValueError(f"data.{name}={list(pair)} is no range; give LOW,HIGH with LOW < HIGH.")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"data.percentiles={list(self.percentiles)} are out of range; give two from 0 to 100.")
        if self.window and self.percentiles:
            raise ValueError("data.window and data.percentiles both choose the range of values; leave one out.")
        if not 0.0 <= self.augment <= 1.0:
            raise ValueError(f"data.augment={self.augment} is out of range; give a probability from 0 to 1.")
        if self.augment and not self.augmentations:
            raise ValueError("data.augmentations is empty; name at least one, or set data.augment=0.")

    def columns(self) -> dict[str, ColumnKind | Literal["auto"]] | None:
        """Return the kind of each column that `cond` names; None for "auto" and "none".

        Raises:
            ValueError: It cannot be read.
        """
        if self.cond in ("auto", "none", ""):
            return None
        named: dict[str, ColumnKind | Literal["auto"]] = {}
        for part in self.cond.split(","):
            name, _, kind = (word.strip() for word in part.partition(":"))
            if not name or name == "source" or kind not in ("", "auto", *get_args(ColumnKind)):
                raise ValueError(
                    f"data.cond has the part {part!r}; expected NAME, NAME:text, NAME:vector or NAME:label, separated "
                    f"by commas (the name 'source' is taken by pairs)."
                )
            named[name] = kind or "auto"  # type: ignore[assignment]
        return named

    def refuse_others(self, what: str, used: tuple[str, ...]) -> None:
        """Raise `DataError` where an option outside `used` was changed: nothing asked for is ignored.

        `what` names the data in the message. `source`, `holdout`, `max_bad` and `limit` suit all data.
        """
        common = ("source", "holdout", "max_bad", "limit", "augment", "augmentations", "degrade")
        changed = [
            f"data.{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in (*common, *used) and getattr(self, f.name) != f.default
        ]
        if changed:
            usable = ", ".join(f"data.{name}" for name in (*used, *common[1:4]))
            raise DataError(f"{', '.join(changed)} has no use for {what}; leave it out. What applies here: {usable}.")

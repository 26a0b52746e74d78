"""What a recipe says about its data. Free of torch, so that the command's help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from undiffuse.errors import DataError


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
            "labels), one picture, a .npy, .npz or .csv array, a text file"
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
    length: int = field(default=128, metadata={"help": "text: tokens in one item"})
    layout: Literal["auto", "vector", "signal", "image", "video", "volume"] = field(
        default="auto", metadata={"help": "arrays: what the axes mean; auto: by the shape"}
    )
    key: str | None = field(default=None, metadata={"help": ".npz: name of the data array"})
    label: str | None = field(
        default=None, metadata={"help": ".csv column or .npz array that holds the class of each row"}
    )

    def __post_init__(self) -> None:
        for name in ("size", "limit", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} is out of range; give 1 or more.")
        if not 0.0 <= self.max_bad <= 1.0:
            raise ValueError(f"data.max_bad={self.max_bad} is out of range; give a share from 0 to 1.")
        if self.holdout is not None and (self.holdout < 0 or (self.holdout >= 1 and self.holdout % 1)):
            raise ValueError(f"data.holdout={self.holdout} is out of range; give a share below 1 or a whole number.")

    def refuse_others(self, what: str, used: tuple[str, ...]) -> None:
        """Raise `DataError` where an option outside `used` was changed: nothing asked for is ignored.

        `what` names the data in the message. `source`, `holdout`, `max_bad` and `limit` suit all data.
        """
        common = ("source", "holdout", "max_bad", "limit")
        changed = [
            f"data.{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in (*common, *used) and getattr(self, f.name) != f.default
        ]
        if changed:
            usable = ", ".join(f"data.{name}" for name in (*used, *common[1:]))
            raise DataError(f"{', '.join(changed)} has no use for {what}; leave it out. What applies here: {usable}.")

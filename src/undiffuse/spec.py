"""`DataSpec`: what one item of data is, in which units. It travels with data sets and models.

Files hold data in *data units* (bytes 0..255, centimetres, token ids); networks want *model units*
(about [-1, 1], or zero mean and unit variance). `to_model` and `from_model` are the only border.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["image", "video", "volume", "signal", "vector", "tokens"]
_AXES: dict[str, str] = {
    "image": "(C, H, W)",
    "video": "(F, C, H, W)",
    "volume": "(C, D, H, W)",
    "signal": "(C, N)",
    "vector": "(D,)",
    "tokens": "(L,)",
}


ConditionKind = Literal["label", "vector", "text", "embedding", "map"]


@dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """What one condition of an item is, and how a batch of B of them travels in `cond`.

    | kind | tensor | needs |
    | --- | --- | --- |
    | label | int64 (B,), numbers of `classes` | `classes` |
    | vector | float (B, width) | `width` |
    | text | int64 (B, length), UTF-8 bytes; -1 fills up | `length` |
    | embedding | float (B, length, width), outputs of a frozen encoder; rows of zeros fill up | `length`, `width` |
    | map | float (B, width, ...), in model units, on the data's spatial axes | `width`, its channels |

    Args:
        kind: See the table.
        classes: Names of the labels, in order of their number.
        width: Numbers, features or channels.
        length: Most positions of a sequence.
        mean: Vectors: mean of each number in the data, in the units that people write; empty for 0.
        std: Vectors: standard deviation of each number; empty for 1. Batches hold (number - mean) / std.
        null: What stands for a condition that is not given: a learned null, which classifier-free guidance trains by
            dropping rows, or zeros, which is a value like others and is never dropped in (augmentation).
        encoder: Embeddings: the frozen text encoder that made them, a folder or hf://owner/name, so that captions can
            be given as words; empty where there are only tensors.
        encoder_hash: Identity of the encoder; another one in its place is refused.

    Raises:
        ValueError: A field that the kind needs is missing, or one is given that belongs to another kind.
    """

    kind: ConditionKind
    classes: tuple[str, ...] = ()
    width: int = 0
    length: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    null: Literal["learned", "zero"] = "learned"
    encoder: str = ""
    encoder_hash: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConditionKind):
            raise ValueError(f"condition kind={self.kind!r} is unknown; choose {', '.join(get_args(ConditionKind))}.")
        needed = {"label": "classes", "vector": "width", "text": "length", "embedding": "length width", "map": "width"}
        for name in needed[self.kind].split():
            value = getattr(self, name)
            if not value or (name != "classes" and value < 1):
                raise ValueError(f"a condition of kind {self.kind!r} needs {name}; got {value!r}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and (self.kind != "vector" or len(values) != self.width):
                raise ValueError(f"{name} has {len(values)} values; only vectors have {name}, one a number.")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std={self.std} must be positive; use 1 for a number that does not vary.")
        if (self.encoder or self.encoder_hash) and self.kind != "embedding":
            raise ValueError(f"encoder={self.encoder!r} of a condition of kind {self.kind}; only embeddings have one.")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ConditionSpec:
        """Rebuild one from its fields as plain JSON types."""
        return cls(**_tuples(fields))


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Kind, shape and units of one data item.

    Args:
        kind: What the axes mean.
        shape: Shape of one item: (C, H, W), (F, C, H, W), (C, D, H, W), (C, N), (D,) or (L,).
        range: Bounds of the data at the border, mapped linearly to [-1, 1]; None where unbounded.
        classes: Names of the labels, in order of their number.
        vocabulary: For tokens: what each id stands for.
        columns: For a table, tokens of kind (L,): name -> number of values of each column, whose ids follow each other.
        tokenizer: For tokens of text by a tokenizer of Hugging Face: its JSON; empty for characters and bytes.
        mean: Per-feature mean of unbounded data, over the channel axis (or the vector's axis); empty for 0.
        std: Per-feature standard deviation, likewise; empty for 1.
        cond: Conditions beside the class label, by name.
        rate: Points of a signal, or frames of a video, per second; 0 where unknown or without meaning.
        sizes: Images in buckets: the sizes (H, W) that the data have; `shape` is then the size to take by default.
        grid: Tokens that lie on a grid: its size, (H, W) for a picture; they follow each other row by row.
        codebook: Tokens of a codec: the name of the codebook whose numbers they are; empty while it is trained.

    Raises:
        ValueError: The shape does not fit the kind, a range is empty, a standard deviation is not positive, or rate,
            sizes or grid belong to another kind.
    """

    kind: Kind
    shape: tuple[int, ...]
    range: tuple[float, float] | None = None
    classes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    cond: dict[str, ConditionSpec] = field(default_factory=dict)
    rate: float = 0.0
    sizes: tuple[tuple[int, int], ...] = ()
    columns: dict[str, int] = field(default_factory=dict)
    grid: tuple[int, ...] = ()
    codebook: str = ""
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {', '.join(get_args(Kind))}.")
        axes = _AXES[self.kind]
        if len(self.shape) != axes.count(",") + (not axes.endswith(",)")):
            raise ValueError(
                f"shape={self.shape} does not fit kind {self.kind!r}; expected {axes} of one item, without the batch."
            )
        if any(size < 1 for size in self.shape):
            raise ValueError(f"shape={self.shape} has an empty axis; every size must be at least 1.")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range={self.range} is empty; give (low, high) with low < high.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values but the data has {self.channels} channels.")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std={self.std} must be positive; use 1 for a feature that does not vary.")
        if "label" in self.cond:
            raise ValueError("a condition is called 'label', which is the name of the class label; rename it.")
        if self.rate < 0 or (self.rate and self.kind not in ("signal", "video")):
            raise ValueError(f"rate={self.rate} of {self.kind} data; only signals and video have a rate, above 0.")
        if self.sizes and (self.kind != "image" or any(len(size) != 2 or min(size) < 1 for size in self.sizes)):
            raise ValueError(f"sizes={self.sizes} of {self.kind} data; only images have sizes, (height, width) each.")
        if self.grid and (self.kind != "tokens" or min(self.grid) < 1 or prod(self.grid) != self.shape[0]):
            raise ValueError(
                f"grid={self.grid} of {self.kind} data of shape {self.shape}; only tokens have a grid, whose sizes "
                f"multiply to their number."
            )
        if self.tokenizer and (self.kind != "tokens" or self.columns or self.grid):
            raise ValueError(f"a tokenizer was given for {self.kind} data that are no text; leave it out.")
        if self.codebook and self.kind != "tokens":
            raise ValueError(f"codebook={self.codebook!r} of {self.kind} data; only tokens are numbers of a codebook.")
        self._check_columns()

    def _check_columns(self) -> None:
        if not self.columns:
            return
        if self.shape != (len(self.columns),) or sum(self.columns.values()) != len(self.vocabulary):
            raise ValueError(
                f"{len(self.columns)} columns with {sum(self.columns.values())} values in all do not fit shape "
                f"{self.shape} and a vocabulary of {len(self.vocabulary)}."
            )

    @property
    def conditions(self) -> dict[str, ConditionSpec]:
        """All conditions by name: "label" where there are classes, then `cond`."""
        label = {"label": ConditionSpec(kind="label", classes=self.classes)} if self.classes else {}
        return {**label, **self.cond}

    @property
    def kept_conditions(self) -> frozenset[str]:
        """Names of the conditions that are never dropped, for their null is a value like others."""
        return frozenset(name for name, part in self.conditions.items() if part.null == "zero")

    @property
    def is_discrete(self) -> bool:
        """Whether items are token ids."""
        return self.kind == "tokens"

    @property
    def noun(self) -> str:
        """What items are, in words: "tokens", "image data" and so on."""
        return self.kind if self.is_discrete else f"{self.kind} data"

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in one item: 1 for video, else 0."""
        return 1 if self.kind == "video" else 0

    @property
    def channels(self) -> int:
        """Number of channels (of features, for a vector)."""
        return self.shape[self.channel_axis]

    @property
    def categories(self) -> int:
        """Number of token classes K; 0 for continuous data."""
        return len(self.vocabulary)

    def to_model(self, x: Tensor) -> Tensor:
        """Convert data units to model units; token ids pass. `x` is (B, *shape)."""
        if self.is_discrete:
            return x
        x = x.float() if not x.is_floating_point() else x
        if self.range is not None:
            low, high = self.range
            return (x - low) * (2.0 / (high - low)) - 1.0
        mean, std = self._scaling(x)
        return (x - mean) / std

    def from_model(self, x: Tensor) -> Tensor:
        """Convert model units to data units, clipped to `range` where there is one. `x` is (B, *shape)."""
        if self.is_discrete:
            return x
        if self.range is not None:
            low, high = self.range
            return ((x + 1.0) * (0.5 * (high - low)) + low).clamp(low, high)
        mean, std = self._scaling(x)
        return x * std + mean

    def _scaling(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layout = [1] * x.ndim
        layout[self.channel_axis + 1] = -1
        mean = x.new_tensor(self.mean or (0.0,)).view(layout)
        std = x.new_tensor(self.std or (1.0,)).view(layout)
        return mean, std

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DataSpec:
        """Rebuild a spec from `to_json`."""
        cond = {name: ConditionSpec.from_json(part) for name, part in fields.get("cond", {}).items()}
        return cls(**{**_tuples(fields), "cond": cond})


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value

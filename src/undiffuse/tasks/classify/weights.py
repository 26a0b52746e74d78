"""What the error of each time counts: fixed rules by name, and weights that were learned, kept on half log-SNR."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.files import write_whole

_BEYOND = 1.0  # of half log-SNR: how far outside its nodes a weight is still read off their nearest end


@dataclass(frozen=True, kw_only=True)
class TimeWeights:
    """Weights of times, as nodes on half log-SNR with straight lines between, so that they fit any grid and schedule.

    Args:
        half_logsnr: Nodes, rising.
        values: Weights there, finite.
        target: What the errors were measured in; other errors are refused. Empty: any.
        loss: Likewise.

    Raises:
        ValueError: Nodes that do not rise, other than one value for each, or numbers that are not finite.
    """

    half_logsnr: tuple[float, ...]
    values: tuple[float, ...]
    target: str = ""
    loss: str = ""

    def __post_init__(self) -> None:
        nodes, values = self.half_logsnr, self.values
        if not nodes or len(nodes) != len(values):
            raise ValueError(f"{len(nodes)} nodes and {len(values)} values; time weights need one value for each node.")
        if not all(math.isfinite(number) for number in (*nodes, *values)):
            raise ValueError("time weights hold numbers that are not finite; nodes are half log-SNR, finite.")
        if any(low >= high for low, high in pairwise(nodes)):
            raise ValueError("the nodes of time weights must rise in half log-SNR; sort them, and drop repeats.")

    @classmethod
    def of(cls, half_logsnr: Tensor, values: Tensor, *, target: str = "", loss: str = "") -> TimeWeights:
        """Make weights of nodes (n,) in any order and their values (n,)."""
        order = half_logsnr.argsort()
        nodes, sorted_values = half_logsnr[order].double().tolist(), values[order].double().tolist()
        return cls(half_logsnr=tuple(nodes), values=tuple(sorted_values), target=target, loss=loss)

    def at(self, half_logsnr: Tensor) -> Tensor:
        """Return the weights at half log-SNR (n,), float64 (n,).

        Raises:
            ValueError: A place more than 1 outside the nodes.
        """
        low, high = self.half_logsnr[0], self.half_logsnr[-1]
        outside = (half_logsnr < low - _BEYOND) | (half_logsnr > high + _BEYOND)
        if bool(outside.any()):
            place = float(half_logsnr[outside][0])
            raise ValueError(
                f"half log-SNR {place:.2f} lies more than {_BEYOND:g} outside the nodes of these time weights, "
                f"{low:.2f} to {high:.2f}; learn weights on such times, or take times within."
            )
        # Beyond the last nodes, np.interp holds their values.
        return torch.from_numpy(np.interp(half_logsnr.double().cpu().numpy(), self.half_logsnr, self.values))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {
            "half_logsnr": list(self.half_logsnr),
            "values": list(self.values),
            "target": self.target,
            "loss": self.loss,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TimeWeights:
        """Rebuild weights from `to_json`.

        Raises:
            ValueError: Fields are missing or hold something else.
        """
        try:
            nodes, values = fields["half_logsnr"], fields["values"]
            numbers = tuple(map(float, nodes)), tuple(map(float, values))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"time weights are an object with lists half_logsnr and values; {error} in what was given."
            ) from error
        return cls(
            half_logsnr=numbers[0],
            values=numbers[1],
            target=str(fields.get("target", "")),
            loss=str(fields.get("loss", "")),
        )

    def save(self, path: str | Path) -> Path:
        """Write the weights as JSON, whole or not at all, and return the path."""
        text = json.dumps(self.to_json(), indent=1) + "\n"
        write_whole(Path(path), lambda file: file.write_text(text, encoding="utf-8"))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> TimeWeights:
        """Read weights that `save` wrote.

        Raises:
            UndiffuseError: There is no such file, or it holds something else.
        """
        try:
            fields = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no JSON"
            raise UndiffuseError(f"cannot read time weights from {path}: {reason}.") from error
        if not isinstance(fields, dict):
            raise UndiffuseError(f"{path} holds no time weights; expected an object with half_logsnr and values.")
        try:
            return cls.from_json(fields)
        except ValueError as error:
            raise UndiffuseError(f"{path}: {error}") from error

"""What an evaluation returns: rows of figures, each with its error and its floor, and what to draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from undiffuse.errors import DataError
from undiffuse.metrics.floor import FloorRatio
from undiffuse.words import plain_json

Picture = NDArray[np.uint8]
Series = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of an evaluation.

    Args:
        name: What was measured.
        value: The figure.
        error: Standard error or spread, as `note` says; None where there is none.
        floor: The same figure of real data (real v real, or a classifier's own accuracy); None where there is none.
        unit: Unit of the figure; empty for shares and ratios.
        interval: 95% interval of the figure, shown instead of the error; None where there is none.
        better: Which way is better: "higher", "lower", or "floor" for as near to the floor as possible.
        scale: Guidance scale of the samples; None where guidance has no part in it.
        note: How to read it: sizes, what the error means, the judge's own accuracy.
    """

    name: str
    value: float
    error: float | None = None
    floor: float | None = None
    unit: str = ""
    interval: tuple[float, float] | None = None
    better: Literal["higher", "lower", "floor"] = "lower"
    scale: float | None = None
    note: str = ""

    @classmethod
    def of_ratio(cls, name: str, ratio: FloorRatio, *, scale: float | None = None, note: str = "") -> Row:
        """Return the row of a distance as a multiple of its real-v-real floor; the note states both distances."""
        detail = (
            f"{ratio.distance:.4g} ± {ratio.distance_spread:.2g}, "
            f"real v real {ratio.floor:.4g} ± {ratio.floor_spread:.2g}; "
            f"{ratio.repeats} subsets of {ratio.n}, ± is their spread"
        )
        text = f"{detail}; {note}" if note else detail
        return cls(name=name, value=ratio.ratio, error=ratio.ratio_spread, floor=1.0, unit="x", scale=scale, note=text)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`.

    Args:
        kind: Kind of the data, as in `DataSpec`.
        n: Number of samples per guidance scale.
        seed: Seed of samples and subsets.
        rows: The figures.
        series: What to draw: name -> columns of equal length, e.g. "guidance" -> scale, agreement, frechet_ratio.
        texts: Samples of text, for tokens.
        pictures: Sample grids, uint8 (H, W) or (H, W, 3); they are not part of `to_json`.
        settings: How the samples were made (solver, steps, ...), as far as the caller chose it.
        warnings: What to mind when reading the figures.
    """

    kind: str
    n: int
    seed: int
    rows: tuple[Row, ...]
    series: dict[str, Series] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    pictures: dict[str, Picture] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = ("metric", "guidance", "value", "error", "real data", "note")

    def __getitem__(self, name: str) -> Row:
        """Return the first row called `name` (at guidance scale 1 if measured there).

        Raises:
            KeyError: There is none.
        """
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"no row {name!r}; there are {', '.join(dict.fromkeys(row.name for row in self.rows))}.")
        return next((row for row in found if row.scale == 1.0), found[0])

    def table(self) -> list[tuple[str, ...]]:
        """Return one tuple of strings per row, to go under `columns`."""
        return [_cells(row) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the pictures as plain JSON types; non-finite figures become None."""
        fields = {key: value for key, value in vars(self).items() if key != "pictures"}
        fields["rows"] = [asdict(row) for row in self.rows]
        return plain_json(fields)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Evaluation:
        """Rebuild an evaluation, without its pictures, from `to_json`; None figures become NaN.

        Raises:
            DataError: Fields are missing or unknown.
        """
        try:
            rows = tuple(_row(row) for row in fields["rows"])
            lists = {name: tuple(fields.get(name, ())) for name in ("texts", "warnings")}
            return cls(**{**fields, "rows": rows, **lists})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"this is no evaluation written by undiffuse ({error}); run `undiffuse evaluate` again."
            ) from error


def _row(fields: dict[str, Any]) -> Row:
    interval = fields.get("interval")
    ends = None if interval is None else (_number(interval[0]), _number(interval[1]))
    return Row(**{**fields, "value": _number(fields["value"]), "interval": ends})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _cells(row: Row) -> tuple[str, ...]:
    unit = f" {row.unit}" if row.unit and row.unit != "x" else row.unit
    scale = "" if row.scale is None else f"{row.scale:g}"
    error = _figure(row.error) if row.interval is None else f"{row.interval[0]:.3g} to {row.interval[1]:.3g}"
    return (row.name, scale, _figure(row.value) + unit, error, _figure(row.floor), row.note)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

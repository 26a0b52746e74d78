"""What a benchmark found: measured figures, each beside the one asked for. One JSON format for all scripts.

A script of `benchmarks/` describes its options with `script_options`, makes a `Results`, and ends with `publish`, which
prints it as JSON. `undiffuse bench` runs the scripts and reads the files back.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from undiffuse.errors import UndiffuseError
from undiffuse.files import write_whole
from undiffuse.words import plain_json

FORMAT = "undiffuse-benchmark"


@dataclass(frozen=True)
class Measure:
    """One measured figure.

    Args:
        name: What was measured.
        value: The figure; None where it could not be had, and `note` says why.
        unit: "ratio" for a multiple of something else (drawn as a bar), else a unit such as "ms" or "bits".
        asked: What the figure should reach; None where nothing is asked of it.
        better: Whether lower or higher is better.
        error: Standard error of the figure.
        note: How it was measured, or what it is a ratio to.

    Raises:
        ValueError: `better` is another word.
    """

    name: str
    value: float | None
    unit: str = "ratio"
    asked: float | None = None
    better: Literal["lower", "higher"] = "lower"
    error: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better={self.better!r}; expected 'lower' or 'higher'.")

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches what was asked; None where nothing was. No figure, or NaN, reaches nothing."""
        if self.asked is None:
            return None
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value <= self.asked if self.better == "lower" else self.value >= self.asked


@dataclass(frozen=True)
class Results:
    """What one script found.

    Args:
        title: A few words.
        summary: What was measured and how, in a sentence or two.
        measures: The figures.
        settings: What they depend on: see `machine_settings`; rounds, steps, seeds.
        details: Anything more that is worth keeping, as plain JSON.
    """

    title: str
    summary: str
    measures: tuple[Measure, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain JSON; NaN and infinity become None."""
        return plain_json({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, given: Any) -> Results:
        """Read what `to_json` returned.

        Raises:
            UndiffuseError: It is something else.
        """
        try:
            if given["format"] != FORMAT:
                raise ValueError(f"its format is {given['format']!r}")
            known = {entry.name for entry in fields(cls)}
            measures = tuple(Measure(**row) for row in given["measures"])
            return cls(**{key: given[key] for key in known if key in given} | {"measures": measures})
        except (KeyError, TypeError, ValueError) as error:
            raise UndiffuseError(f"these are no results of a benchmark ({error}); expected {FORMAT!r}.") from error


def machine_settings(**more: Any) -> dict[str, Any]:
    """Return what every figure depends on: torch, threads, processors, how busy they were; and `more`."""
    import torch

    settings: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        settings["gpu"] = torch.cuda.get_device_name(0)
    return settings | load_average() | more


def load_average() -> dict[str, float]:
    """Return how many processes wanted a processor over the last minute, where the system tells."""
    try:
        return {"load": round(os.getloadavg()[0], 1)}
    except (AttributeError, OSError):
        return {}


def script_options(doc: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every script, `--out` and `--quick`; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the JSON too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to try it, not for figures to report")
    return parser


def publish(results: Results, out: Path | None = None) -> None:
    """Print results as JSON, and write them to `out` if given."""
    text = json.dumps(results.to_json(), indent=1, allow_nan=False)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def read_results(path: Path) -> Results:
    """Read the file that `publish` wrote.

    Raises:
        UndiffuseError: There is none, or it holds something else.
    """
    try:
        return Results.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UndiffuseError(
            f"no results at {path} ({error}); the script has to call publish(results, out)."
        ) from error


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error; None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))

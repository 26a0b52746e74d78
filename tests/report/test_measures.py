"""The format of benchmark results: what it says of a figure, and that it survives the way through a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from undiffuse.errors import UndiffuseError
from undiffuse.report.measures import Measure, Results, machine_settings, mean_and_error, publish, read_results


def some_results() -> Results:
    measures = (Measure("a", 0.5, asked=1.0, note="of b"), Measure("c", 3.0, "ms", error=0.25), Measure("d", None))
    return Results("Title", "What it is.", measures, {"seed": 0, "rounds": [1, 2]}, {"raw": {"a": [0.4, 0.6]}})


@pytest.mark.parametrize(
    ("value", "better", "met"),
    [(0.9, "lower", True), (1.0, "lower", True), (1.1, "lower", False), (0.9, "higher", False), (1.1, "higher", True)],
)
def test_a_figure_is_met_from_its_better_side(value: float, better: str, met: bool):
    assert Measure("x", value, asked=1.0, better=better).met is met  # type: ignore[arg-type]


def test_nothing_asked_is_neither_met_nor_short():
    assert Measure("x", 2.0).met is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("better", ["lower", "higher"])
def test_no_figure_reaches_nothing(value: float | None, better: str):
    assert Measure("x", value, asked=1.0, better=better).met is False  # type: ignore[arg-type]


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match=r"better='less'.*'lower' or 'higher'"):
        Measure("x", 1.0, better="less")  # type: ignore[arg-type]


def test_results_survive_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = some_results()
    publish(results, tmp_path / "new" / "results.json")
    assert read_results(tmp_path / "new" / "results.json") == results
    assert Results.from_json(json.loads(capsys.readouterr().out)) == results


def test_what_is_not_finite_becomes_null(capsys: pytest.CaptureFixture[str]):
    publish(Results("T", "s", (Measure("x", math.nan), Measure("y", math.inf))))
    assert [row["value"] for row in json.loads(capsys.readouterr().out)["measures"]] == [None, None]


@pytest.mark.parametrize(
    "text", ["{}", "[]", "3", '{"format": "other"}', '{"format": "undiffuse-benchmark"}', "no json"]
)
def test_other_files_are_no_results(text: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(UndiffuseError, match="no results"):
        read_results(tmp_path / "x.json")


def test_a_missing_file_says_what_a_script_has_to_do(tmp_path: Path):
    with pytest.raises(UndiffuseError, match=r"publish\(results, out\)"):
        read_results(tmp_path / "x.json")


def test_mean_and_error():
    assert mean_and_error([2.0]) == (2.0, None)
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(math.sqrt(1 / 3)))  # variance 1 over 3 values


def test_settings_name_what_figures_depend_on():
    settings = machine_settings(seed=3)
    assert {"torch", "threads", "processors", "python", "seed"} <= set(settings)

"""Tables of categories: what is read, how numbers fall into bins, and the way back to rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.data import DataOptions, decode_rows, open_data, split, write_rows
from undiffuse.data.categories import Column
from undiffuse.errors import DataError

ROWS = [
    ("colour", "size", "weight", "label"),
    ("red", "small", "1.0", "fruit"),
    ("green", "large", "2.0", "leaf"),
    ("red", "", "3.0", "fruit"),
    ("blue", "small", "4.0", "leaf"),
    ("green", "large", "10.0", "leaf"),
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return save(tmp_path / "table.csv", ROWS)


def save(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_columns_have_values_of_their_own(table: Path) -> None:
    data = open_data(str(table))
    assert data.spec.columns == {"colour": 3, "size": 3, "weight": 5}
    assert data.spec.vocabulary == ("blue", "green", "red", "", "large", "small", "1.0", "2.0", "3.0", "4.0", "10.0")
    assert data.spec.classes == ("fruit", "leaf")
    batch = data.batch(torch.arange(5))
    assert batch["x"].tolist()[2] == [2, 3, 8] and batch["x"].dtype == torch.int64
    assert batch["cond"]["label"].tolist() == [0, 1, 0, 1, 1]
    assert any("(missing)" in line for line in data.summary())


def test_rows_come_back(table: Path, tmp_path: Path) -> None:
    data = open_data(str(table))
    tokens = data.batch(torch.arange(5))["x"]
    names = ROWS[0][:-1]
    assert [tuple(row[name] for name in names) for row in decode_rows(tokens, data.spec)] == [r[:-1] for r in ROWS[1:]]
    write_rows(tmp_path / "again.csv", tokens, data.spec, [row[-1] for row in ROWS[1:]])
    again = open_data(str(tmp_path / "again.csv"))
    assert again.spec == data.spec and torch.equal(again.batch(torch.arange(5))["x"], tokens)


def test_many_numbers_fall_into_bins_of_nearest_medians(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).exponential(size=400)
    rows = [("kind", "size"), *((("a", "b")[i % 2], f"{number:.6f}") for i, number in enumerate(numbers))]
    data = open_data(str(save(tmp_path / "bins.csv", rows)), DataOptions(bins=8))
    assert data.spec.columns == {"kind": 2, "size": 8}
    medians = np.array([float(name) for name in data.spec.vocabulary[2:]])
    chosen = data.batch(torch.arange(400))["x"][:, 1].numpy() - 2
    assert (np.abs(numbers[:, None] - medians).argmin(1) == chosen).mean() > 0.99  # ties of rounded numbers aside
    assert np.bincount(chosen, minlength=8).min() > 0.5 * 400 / 8


def test_missing_numbers_have_a_value_of_their_own() -> None:
    column = Column("size", ["1", "", "2", "1"])
    values = column.values(bins=8)
    assert values == ("", "1", "2") and column.numbered(values).tolist() == [1, 0, 2, 1]


def test_a_model_keeps_its_values_and_bins(table: Path, tmp_path: Path) -> None:
    spec = open_data(str(table)).spec
    shuffled = [("weight", "label", "colour", "size"), ("2.2", "leaf", "red", "large"), ("99", "fruit", "blue", "")]
    data = open_data(str(save(tmp_path / "new.csv", shuffled)), spec=spec)
    assert data.batch(torch.arange(2))["x"].tolist() == [[2, 4, 7], [0, 3, 10]]


def test_values_that_a_model_does_not_know_are_counted(table: Path, tmp_path: Path) -> None:
    spec = open_data(str(table)).spec
    rows = [ROWS[0], *ROWS[1:] * 10, ("pink", "small", "1.0", "leaf")]
    data = open_data(str(save(tmp_path / "new.csv", rows)), spec=spec)
    assert len(data) == 50 and len(data.problems) == 1 and "pink" in str(data.problems[0])
    with pytest.raises(DataError, match=r"pink.*unknown"):
        open_data(str(tmp_path / "new.csv"), DataOptions(max_bad=0.0), spec)


def test_numbers_alone_stay_vectors_unless_categories_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "numbers.csv", [("a", "b"), *((str(i % 3), str(i)) for i in range(40))])
    assert open_data(str(path)).spec.kind == "vector"
    spec = open_data(str(path), DataOptions(layout="categories", bins=4)).spec
    assert spec.columns == {"a": 3, "b": 4}


def test_a_part_is_held_out(table: Path) -> None:
    training, held_out = split(open_data(str(table)), 2)
    assert len(training) == 3 and len(held_out) == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", "b")], ("no rows",)),
        ([("a", "b"), ("x", "y"), ("x",)], ("1 cells", "line 3")),
        ([("a", "a"), ("x", "y")], ("two columns of one name",)),
        ([("a", "label"), ("x", "y"), ("x", "")], ("no class", "row 2")),
        ([("name",), *((f"person {i}",) for i in range(1001))], ("'name'", "1001", "remove it")),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, rows: list[tuple[str, ...]], words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        open_data(str(save(tmp_path / "bad.csv", rows)), DataOptions(layout="categories"))
    assert all(word in str(caught.value) for word in words)


def test_another_table_does_not_fit_a_model(table: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "other.csv", [("colour", "taste"), ("red", "sweet")])
    with pytest.raises(DataError, match=r"lacks size, weight; it has also taste"):
        open_data(str(path), spec=open_data(str(table)).spec)

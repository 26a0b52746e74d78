"""Conditions of arrays: columns of .csv files and arrays of .npz files that `data.cond` names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.data import DataOptions, open_data
from undiffuse.errors import DataError
from undiffuse.spec import ConditionSpec, DataSpec


def csv(path: Path, rows: int = 20, holes: tuple[int, ...] = ()) -> str:
    lines = ["a,age,shape,b,label"]
    lines += [
        f"{i},{'' if i in holes else 2.5 * i},{('round', 'square')[i % 2]},{-i},{'xyz'[i % 3]}" for i in range(rows)
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_columns_of_a_csv_become_conditions(tmp_path: Path):
    dataset = open_data(csv(tmp_path / "a.csv"), DataOptions(cond="age:vector,shape:label"))
    assert dataset.spec.shape == (2,) and dataset.spec.classes == ("x", "y", "z")
    batch = dataset.batch(torch.arange(20))
    assert dataset.spec.from_model(batch["x"])[7].round(decimals=3).tolist() == [7.0, -7.0]
    assert batch["cond"]["label"].tolist() == [i % 3 for i in range(20)]
    assert batch["cond"]["shape"].tolist() == [i % 2 for i in range(20)]
    age = dataset.spec.cond["age"]
    torch.testing.assert_close(batch["cond"]["age"] * age.std[0] + age.mean[0], 2.5 * torch.arange(20.0)[:, None])


def test_the_limit_keeps_conditions_with_their_rows(tmp_path: Path):
    dataset = open_data(csv(tmp_path / "a.csv"), DataOptions(cond="age:vector,shape:label", limit=8))
    batch = dataset.batch(torch.arange(8))
    first = dataset.spec.from_model(batch["x"])[:, 0].round()
    assert batch["cond"]["shape"].tolist() == (first % 2).long().tolist()


def test_rows_without_a_value_are_left_out_while_they_are_few(tmp_path: Path):
    source = csv(tmp_path / "a.csv", holes=(4,))
    dataset = open_data(source, DataOptions(cond="age:vector,shape"))
    assert len(dataset) == 19 and 4 not in dataset.batch(torch.arange(19))["index"].tolist()
    assert "row 4: its age: it is missing" in [str(problem) for problem in dataset.problems]
    with pytest.raises(DataError, match=r"1 of 20 rows lack a value.*first row 4"):
        open_data(source, DataOptions(cond="age:vector,shape", max_bad=0.0))


def test_arrays_of_an_npz_become_conditions(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(12, 3))
    np.savez(tmp_path / "a.npz", x=x, place=x[:, :2], words=np.array(["up", "down"] * 6), y=np.arange(12) % 2)
    dataset = open_data(str(tmp_path / "a.npz"), DataOptions(cond="place:vector,words:text"))
    place = dataset.spec.cond["place"]
    batch = dataset.batch(torch.arange(12))
    back = batch["cond"]["place"].double().numpy() * np.array(place.std) + np.array(place.mean)
    np.testing.assert_allclose(back, x[:, :2], atol=1e-6)
    assert bytes(batch["cond"]["words"][1].tolist()) == b"down" and dataset.spec.classes == ("0", "1")


def test_conditions_that_are_not_there_are_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), short=np.zeros(3))
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    for name, cond, message in (
        ("a.npz", "age", "no column 'age'"),
        ("a.npz", "short", r"condition 'short' of shape \(3,\)"),
        ("a.npy", "age", "data.cond need a .npz file"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(str(tmp_path / name), DataOptions(cond=cond))
    with pytest.raises(DataError, match="no column 'size'"):
        open_data(csv(tmp_path / "a.csv"), DataOptions(cond="size,shape:label"))


def test_a_model_finds_its_conditions_in_a_table(tmp_path: Path):
    spec = DataSpec(
        kind="vector",
        shape=(2,),
        cond={
            "age": ConditionSpec(kind="vector", width=1, mean=(5.0,), std=(2.5,)),
            "shape": ConditionSpec(kind="label", classes=("square", "round")),
        },
    )
    batch = open_data(csv(tmp_path / "a.csv"), spec=spec).batch(torch.arange(3))
    assert batch["cond"]["age"][:, 0].tolist() == [-2.0, -1.0, 0.0]
    assert batch["cond"]["shape"].tolist() == [1, 0, 1] and "label" not in batch["cond"]

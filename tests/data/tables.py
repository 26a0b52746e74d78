"""Small Hugging Face tables for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.files import encoded, pixels


def library(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Any:
    """Return `datasets` with its cache in a folder of the test; skip the test where it is not installed."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return datasets


def pictures(datasets: Any, count: int = 20, broken: tuple[int, ...] = ()) -> Any:
    """A table of pictures with classes, captions, numbers, addresses, and a second picture."""
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "image": datasets.Image(),
            "kind": datasets.ClassLabel(names=["z", "y", "x"]),
            "caption": datasets.Value("string"),
            "age": datasets.Value("float32"),
            "edges": datasets.Image(),
        }
    )
    rows = {
        "id": list(range(count)),
        "image": [
            {"bytes": b"no picture" if i in broken else encoded(pixels(8, 8, seed=i)), "path": None}
            for i in range(count)
        ],
        "kind": [i % 3 for i in range(count)],
        "caption": [f"picture {i}" for i in range(count)],
        "age": [i / 2 for i in range(count)],
        "edges": [{"bytes": encoded(pixels(8, 8, 1, seed=100 + i)), "path": None} for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)

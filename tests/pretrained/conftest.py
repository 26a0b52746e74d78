"""The tiny pipelines, each built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pretrained import tiny


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Return a function from the name of a family to its pipeline and the folder it lies in."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    home, made = tmp_path_factory.mktemp("pipelines"), {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in made:
            made[name] = tiny.build(name, home / name), home / name
        return made[name]

    return get

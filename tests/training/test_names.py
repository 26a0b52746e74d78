"""The names that recipes accept are those that exist."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from undiffuse.process.grids import GridShape
from undiffuse.process.keep import KEEP_SCHEDULES
from undiffuse.process.options import CategoricalOptions, GaussianOptions
from undiffuse.process.registry import SCHEDULES
from undiffuse.sampling.options import SampleOptions
from undiffuse.sampling.registry import SOLVERS
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.weights import LOG_WEIGHTS

FOR_IMPORTS = {"table"}  # needs a table of numbers, which a recipe cannot hold
OTHER_KEEPS = {"loglinear", "mdlm-cosine", "cosine-squared", "mdlm-linear", "geometric"}  # of models from elsewhere


def choices(options: type, name: str) -> set[str]:
    hint: Any = get_type_hints(options)[name]
    parts = [part for part in get_args(hint) if part is not NoneType]
    return {text for part in parts for text in ([part] if isinstance(part, str) else get_args(part))}


@pytest.mark.parametrize(
    ("options", "name", "exist"),
    [
        (SampleOptions, "solver", set(SOLVERS)),
        (SampleOptions, "grid", set(get_args(GridShape))),
        (GaussianOptions, "schedule", set(SCHEDULES) - FOR_IMPORTS),
        (CategoricalOptions, "keep", set(KEEP_SCHEDULES) - OTHER_KEEPS),
        (DenoisingOptions, "weight", {"own", *LOG_WEIGHTS}),
    ],
)
def test_recipes_offer_what_there_is_and_nothing_else(options, name, exist):
    assert choices(options, name) == exist

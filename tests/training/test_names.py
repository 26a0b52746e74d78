"""The names that recipes accept are those that exist."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from undiffuse.config import resolve
from undiffuse.errors import ConfigError
from undiffuse.process.grid_names import GridShape
from undiffuse.process.keep import KEEP_SCHEDULES
from undiffuse.process.options import CategoricalOptions, GaussianOptions
from undiffuse.process.registry import SCHEDULES
from undiffuse.sampling.options import SampleOptions
from undiffuse.sampling.registry import SOLVERS
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.run import train
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
        (GaussianOptions, "schedule", set(SCHEDULES) - FOR_IMPORTS),
        (CategoricalOptions, "keep", set(KEEP_SCHEDULES) - OTHER_KEEPS),
        (DenoisingOptions, "weight", {"own", *LOG_WEIGHTS}),
    ],
)
def test_recipes_offer_what_there_is_and_nothing_else(options, name, exist):
    assert choices(options, name) == exist


def test_recipes_take_every_solver_and_grid():
    for solver in SOLVERS:
        assert resolve(SampleOptions, [f"solver={solver}"]).solver == solver
    for grid in (*get_args(GridShape), "published", "logsnr:-4:3.5", "logsnr:-4:3:0.2"):
        assert resolve(SampleOptions, [f"grid={grid}"]).grid == grid


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("solver=dpm+2m", r"solver 'dpm\+2m' is unknown; .* Did you mean 'dpm\+\+2m'\?"),
        ("grid=lognsr", "grid 'lognsr' is unknown; choose one of t, .* Did you mean 'logsnr'"),
        ("grid=logsnr:-4", "grid 'logsnr:-4' is not of the form logsnr:LOW:HIGH"),
        ("grid=logsnr:3:-3", "grid 'logsnr:3:-3' needs LOW < HIGH"),
        ("grid=logsnr:-3:3:1", r"BEND in \(-1, 1\)"),
    ],
)
def test_what_is_no_solver_or_grid_is_refused_in_one_line(key, line):
    with pytest.raises(ConfigError, match=line) as refused:
        resolve(SampleOptions, [key])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["sample.grid=logsnr:-40:3"], "sample: grid 'logsnr:-40:3' needs -6.464 <= LOW"),
        (["sample.grid=linspace"], "sample: grid 'linspace' counts entries of a table"),
        (["sample.grid=trailing", "process.schedule=ddpm", "sample.steps=1001"], "steps=1001 but this table has only"),
        (["sample.grid=published", "sample.solver=rk4"], "sample: RK4 was published without a grid"),
    ],
)
def test_a_grid_that_the_schedule_has_not_is_refused_before_training(keys, line, tmp_path):
    with pytest.raises(ConfigError, match=line):
        train("moons", out=tmp_path / "run", overrides=keys)
    assert not list((tmp_path / "run").glob("*.yaml"))


def test_a_run_keeps_a_fitted_grid(tmp_path):
    small = ["train.steps=1", "train.preview_every=0", "model.width=8", "sample.steps=3"]
    run = train("moons", out=tmp_path / "run", overrides=[*small, "sample.grid=logsnr:-3:3:0.2"])
    assert run.model.sample(2).shape == (2, 2) and run.model.defaults["grid"] == "logsnr:-3:3:0.2"

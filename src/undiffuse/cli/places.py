"""Names on the command line: the model, the run or the data that a word means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.errors import CheckpointError, DataError
from undiffuse.models.world import local_rank, world

if TYPE_CHECKING:
    import torch

    from undiffuse.data import Dataset
    from undiffuse.models import Model
    from undiffuse.training.recipe import Recipe

RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """A model and where it came from.

    Args:
        name: What the user wrote.
        model: The model, on the device asked for.
        folder: Its folder; None for a built-in model.
        recipe: The recipe it was trained by; None where none lies beside it.
    """

    name: str
    model: Model
    folder: Path | None
    recipe: Recipe | None

    @property
    def home(self) -> Path:
        """Where results about the model go unless told otherwise."""
        is_here = self.folder is not None and self.folder.is_dir()  # a name on the hub is no folder
        return self.folder if is_here and self.folder is not None else RUNS / safe_name(self.name)


def find_model(
    name: str, device: str = "auto", dtype: torch.dtype | None = None, load: list[str] | None = None
) -> Found:
    """Load the model that a name, a folder or the weights in a folder stand for.

    Args:
        name: The word.
        device: Where it goes.
        dtype: Of the weights; None leaves it.
        load: Words of `--load`.

    Raises:
        CheckpointError: See `undiffuse.load`.
        ValueError: The device is unknown or not available.
    """
    from undiffuse.cli.asking import read_load
    from undiffuse.models.bundle import load as load_model

    target, options = choose_device(device), read_load(load)
    folder = _folder(name)
    offloads = options.get("offload", "none") != "none"
    if offloads:  # the parts move by themselves from then on
        options |= {"device": target} | ({} if dtype is None else {"dtype": dtype})
    try:
        # The word itself where it can be: a path that was taken apart no longer says that it began with "./".
        is_file = folder is not None and Path(name).name == "model.safetensors"
        model = load_model(str(folder) if is_file else name, **options)
        model = model if offloads else model.to(target, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_run_hint(name)}") from error
    return Found(name, model, folder, _recipe_of(name, folder))


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the accelerator there is, else the CPU.

    Apple's mps is not among them: it has no float64, in which the noise is computed.

    Raises:
        ValueError: The name is unknown, or the device is not available here.
    """
    import torch

    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name in ("auto", "cuda") and world()[1] > 1 and len(available) > 1:
        return torch.device(available[1 + local_rank() % (len(available) - 1)])  # one GPU for each process
    if name == "auto":
        return torch.device(next((device for device in available if device != "cpu"), "cpu"))
    if (name if name != "cuda" else "cuda:0") not in available:
        reason = "has no float64, which the noise needs" if name == "mps" else "is not available here"
        raise ValueError(f"device {name!r} {reason}; use auto or one of {', '.join(available)}.")
    return torch.device(name)


def read_run_recipe(folder: Path) -> Recipe | None:
    """Return the recipe in a run's folder, None where there is none."""
    from undiffuse.config import load_yaml, resolve
    from undiffuse.training.recipe import Recipe

    path = folder / "recipe.yaml"
    return resolve(Recipe, load_yaml(path)) if path.is_file() else None


def open_data_of(found: Found, source: str | None) -> tuple[Dataset, float | None]:
    """Open data for a model: `source`, or else what the model was trained on. Return it and the holdout of its recipe.

    Raises:
        DataError: No data are named and none are known; or they do not fit the model.
    """
    from undiffuse.data import open_data

    trained_on = found.recipe.data if found.recipe is not None else None
    if source is None and trained_on is None:
        raise DataError(f"{found.name} has no recipe.yaml that names its data; give the data after the model.")
    if trained_on is not None and source in (None, trained_on.source):
        return open_data(trained_on.source, trained_on, spec=found.model.spec), trained_on.holdout
    assert source is not None
    return open_data(source, spec=found.model.spec), None


def open_held_out(found: Found, source: str | None) -> tuple[Dataset, str]:
    """Return the data set, of what the model was trained on the part that was held out; and words for people.

    Raises:
        DataError: See `open_data_of`.
    """
    from undiffuse.data import split
    from undiffuse.metrics.bench import check_fit

    dataset, holdout = open_data_of(found, source)
    check_fit(found.model.spec, dataset.spec)
    trained = None if found.recipe is None else found.recipe.data.source
    if source not in (None, trained):
        return dataset, ""
    held_out = split(dataset, holdout)[1]
    if len(held_out) == 0:
        return dataset, ", which the model was trained on: none were held out"
    return held_out, " that were held out of training"


def safe_name(text: str) -> str:
    """Return text as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "x"


def builtin_folder(name: str) -> Any:
    """Return the package folder of a built-in model, as a context manager that gives a path."""
    from importlib import resources

    return resources.as_file(resources.files("undiffuse") / "builtin" / name)


def _folder(name: str) -> Path | None:
    """Return the folder that a name means; None for a built-in model."""
    from undiffuse.models import BUILTIN

    path = Path(name)
    if name in BUILTIN and not path.is_dir():
        return None
    return path.parent if path.name == "model.safetensors" else path


def _recipe_of(name: str, folder: Path | None) -> Recipe | None:
    if folder is not None:
        return read_run_recipe(folder)
    with builtin_folder(name) as path:
        return read_run_recipe(path)


def _run_hint(name: str) -> str:
    run = RUNS / Path(name).name
    return f" Did you mean {run}?" if run != Path(name) and (run / "config.json").is_file() else ""

"""What the commands that train have in common: the words they are given, the run, and its report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from undiffuse.cli.output import Output


class AnyRun(Protocol):
    """A run as it ended: of a model or of a codec."""

    @property
    def folder(self) -> Path:
        """Where everything was written."""

    @property
    def finished(self) -> bool:
        """Whether all steps are done; else the same call goes on."""


R = TypeVar("R", bound=AnyRun)


class Target(NamedTuple):
    """What the words of a command line ask to train: data, recipe, folder, and changes to the recipe."""

    source: str | None
    recipe: str | None
    out: Path | None
    overrides: list[str]

    def with_settings(self, **settings: object) -> Target:
        """Return it with values of the recipe's group `train`, those that are not None."""
        given = [f"train.{name}={value}" for name, value in settings.items() if value is not None]
        return self._replace(overrides=self.overrides + given)


def read_words(words: list[str], recipe: str | None, out: Path | None) -> Target:
    """Sort the words of a command line into data or recipe, and changes.

    Raises:
        typer.BadParameter: Nothing to train on is named, or more than one thing.
        ConfigError: The word is neither data nor a recipe, and looks like a recipe's name.
    """
    if any(word.startswith("recipe=") for word in words):
        recipe = next(word.partition("=")[2] for word in words if word.startswith("recipe="))
        words = [word for word in words if not word.startswith("recipe=")]
    named = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise typer.BadParameter(f"one data set or recipe at a time, not {' and '.join(named)}; changes are KEY=VALUE")
    if not named:
        if recipe is None and not any(word.startswith("data.source=") for word in overrides):
            raise typer.BadParameter("nothing to train on; name data or a recipe, for example: undiffuse train digits")
        return Target(None, recipe, out, overrides)
    word = named[0]
    if recipe is None and _is_recipe(word):
        return Target(None, word, out, overrides)
    if recipe is None and _is_run(Path(word)):
        return Target(None, str(Path(word) / "recipe.yaml"), out or Path(word), overrides)
    return Target(word, recipe, out, overrides)


def carry_out(output: Output, command: str, target: Target, train: Callable[..., R], done: Callable[[R], str]) -> R:
    """Train what was asked for, under a progress bar.

    Args:
        output: Where it is told.
        command: The command's name, which a message for those who interrupt it repeats.
        target: What to train.
        train: `undiffuse.train` or `undiffuse.train_codec`.
        done: What an interrupted run leaves, in words.

    Raises:
        Interrupted: The user stopped it.
    """
    from undiffuse.cli.failures import Interrupted

    output.say("Looking at the data ...")
    with output.progress() as listener:
        run = train(target.source, target.recipe, out=target.out, listener=listener, overrides=target.overrides)
    if not run.finished:
        raise Interrupted(f"{done(run)} in {run.folder}; go on with: undiffuse {command} {run.folder}")
    return run


def write_report(command: str, target: Target, run: AnyRun) -> Path | None:
    """Write the report of a run and return its path; None in the processes that do not speak."""
    from undiffuse.models.world import speaks
    from undiffuse.report import run_report

    return run_report(run.folder, command=again(command, target, run.folder)) if speaks() else None


def again(command: str, target: Target, folder: Path) -> str:
    """Return the command that does it again."""
    recipe = ["--recipe", target.recipe] if target.source and target.recipe else [target.recipe]
    words = ["undiffuse", command, target.source, *recipe, *target.overrides, "--out", str(folder)]
    return shlex.join(word for word in words if word)


def _is_recipe(word: str) -> bool:
    """Whether a word names a recipe and no data; a word that nearly does is refused.

    Raises:
        ConfigError: There is no such data, and a recipe has nearly this name.
    """
    from difflib import get_close_matches

    from undiffuse.data.embedded import EMBEDDED
    from undiffuse.errors import ConfigError
    from undiffuse.training.recipe import RECIPES

    if word.endswith((".yaml", ".yml")):
        return True
    if word in EMBEDDED or Path(word).exists():
        return False
    near = get_close_matches(word, [*RECIPES, *EMBEDDED], n=1, cutoff=0.75)
    if near and word not in RECIPES:
        raise ConfigError(f"there is no data set or recipe {word!r}; did you mean {near[0]!r}?")
    return word in RECIPES


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and ((path / "run.json").is_file() or (path / "checkpoints").is_dir())

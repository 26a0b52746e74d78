"""`undiffuse train`: from data to a folder with a model and a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from undiffuse.cli.shared import Json, Out

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.training.run import Run

EPILOG = """\b
Recipes, chosen by the look of the data unless named:
  digits        class-conditional U-Net on 1797 real digits (built in)
  cifar10       natural images of 32 x 32 pixels, for an accelerator (named only)
  image         pictures from a folder or .zip; class folders become labels
  latent        the same on the latents of an autoencoder (named only)
  restoration   a walk from spoilt pictures to clean ones, by pairs or data.degrade (named only)
  video         clips from a folder of GIFs, movies or frames
  video-digits  the digits, moving (built in)
  signals       windows of sound or other signals: a folder of .wav
  vector        points and feature vectors: .npy, .npz, .csv
  text          characters or bytes of a text file, by masked diffusion
  table         a .csv table of categories, by masked diffusion
  vq-image      pictures as tokens of a vector-quantised codec (named only)
  vq-ddm        the same with random tokens for noise and a U-Net (named only)
  vq-diffusion  the same with masks and random tokens for noise (named only)

\b
The most used keys (undiffuse train --keys lists all):
  train.steps=20000         optimizer steps
  train.batch_size=64       items per step
  train.lr=1e-3             peak learning rate
  train.checkpoint_every=500  steps between checkpoints
  data.size=32              pictures: side in pixels
  data.holdout=0.1          share or number of items kept out of training
  data.flip=true            images: add a mirrored copy of each
  model.channels=64         U-Net: base width (mlp, transformer: model.width=128)
  objective.drop=0.1        share of labels dropped, for guidance
  sample.steps=25           default steps of sampling

\b
Ctrl-C writes a checkpoint; the same command goes on from it.
  undiffuse train photos/
  undiffuse train photos/ train.steps=5000 data.size=32 --out runs/small
  undiffuse train my-recipe.yaml
  undiffuse train runs/photos            go on with that run
"""


class Target(NamedTuple):
    """What the words of a command line ask to train: data, recipe, folder, and changes to the recipe."""

    source: str | None
    recipe: str | None
    out: Path | None
    overrides: list[str]


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA|RECIPE|RUN [KEY=VALUE]",
            help="Data (digits, moons, mixture3, prose, a folder, a file), a recipe, or a run to go on with; then "
            "changes to the recipe.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe by name, or a YAML file; default: by the data.", show_default=False)
    ] = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="The same as train.seed=N.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="The same as train.device=...", show_default=False)] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", "--dtype", help="float32 or bfloat16: train.precision=...", show_default=False),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with type, default and help, and exit.")] = False,
    json: Json = False,
) -> None:
    """Train a model on DATA, or by a RECIPE that names its data. Without a recipe the data choose one.

    Pictures, tables of pictures and shards that do not fit in memory are read while training.

    The folder (default runs/NAME) holds the model, its recipe, log, previews, checkpoints and report.html.
    """
    from undiffuse.cli.output import Output

    output = Output(json)
    if keys:
        from undiffuse.cli.keys import show_keys

        return show_keys(output)
    target = read_words(words or [], recipe, out)
    options = {"train.seed": seed, "train.device": device, "train.precision": precision}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    target = target._replace(overrides=target.overrides + given)
    _finish(output, _train(output, target), target)


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
    near = get_close_matches(word, [*RECIPES, *EMBEDDED], n=1, cutoff=0.7)
    if near and word not in RECIPES:
        raise ConfigError(f"there is no data set or recipe {word!r}; did you mean {near[0]!r}?")
    return word in RECIPES


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and ((path / "run.json").is_file() or (path / "checkpoints").is_dir())


def _train(output: Output, target: Target) -> Run:
    from undiffuse.cli.failures import Interrupted
    from undiffuse.training.run import train as train_model

    output.say("Looking at the data ...")
    with output.progress() as listener:
        run = train_model(target.source, target.recipe, out=target.out, listener=listener, overrides=target.overrides)
    if not run.finished:
        raise Interrupted(f"{run.step} steps are in {run.folder}; go on with: undiffuse train {run.folder}")
    return run


def _finish(output: Output, run: Run, target: Target) -> None:
    from undiffuse.models.world import speaks
    from undiffuse.report import run_report

    if not speaks():
        return
    report = run_report(run.folder, command=_command(run, target))
    output.say(f"The report is {report}. Draw samples with: undiffuse sample {shlex.quote(str(run.folder))} -n 64")
    output.finish(f"The model is in {run.folder}", _result(run, report))


def _command(run: Run, target: Target) -> str:
    """Return the command that does it again."""
    recipe = ["--recipe", target.recipe] if target.source and target.recipe else [target.recipe]
    words = ["undiffuse", "train", target.source, *recipe, *target.overrides, "--out", str(run.folder)]
    return shlex.join(word for word in words if word)


def _result(run: Run, report: Path) -> dict[str, Any]:
    return {
        "folder": run.folder,
        "model": run.folder / "model.safetensors",
        "report": report,
        "steps": run.step,
        "finished": run.finished,
        "loss": run.losses[-1] if run.losses else None,
    }

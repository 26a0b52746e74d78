"""`undiffuse train`: from data to a folder with a model and a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.runs import carry_out, read_words, write_report
from undiffuse.cli.shared import Json, Out

if TYPE_CHECKING:
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
  undiffuse train photos/ --recipe latent
  undiffuse train my-recipe.yaml
  undiffuse train runs/photos            go on with that run
"""


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
    target = read_words(words or [], recipe, out).with_settings(seed=seed, device=device, precision=precision)
    from undiffuse.models.folder import WEIGHTS, weights_of  # after words that are refused: it loads torch
    from undiffuse.training.run import train as train_model

    run = carry_out(output, "train", target, train_model, lambda run: f"{run.step} steps are")
    report = write_report("train", target, run)
    if report is None:
        return
    weights = weights_of(run.folder)
    asked = "-n 64" if weights.name == WEIGHTS else '--prompt "..."'
    output.say(f"The report is {report}. Draw samples with: undiffuse sample {shlex.quote(str(run.folder))} {asked}")
    output.finish(f"The model is in {run.folder}", _result(run, weights, report))


def _result(run: Run, weights: Path, report: Path) -> dict[str, Any]:
    return {
        "folder": run.folder,
        "model": weights,
        "report": report,
        "steps": run.step,
        "finished": run.finished,
        "loss": run.losses[-1] if run.losses else None,
    }

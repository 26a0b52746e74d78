"""`undiffuse train-codec`: from data to a folder with a codec and a report."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from undiffuse.cli.shared import Json, Out
from undiffuse.cli.train import read_words

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.cli.train import Target
    from undiffuse.training.codec_run import CodecRun

EPILOG = """\b
The most used keys (undiffuse train --keys lists all):
  codec.kind=vq             vq: tokens; autoencoder, pca: numbers
  codec.codes=256           vq: vectors in the codebook
  codec.channels=16         numbers of a vector
  codec.halvings=2          how often each axis is halved
  codec.steps=4000          optimizer steps
  data.size=32              pictures: side in pixels

\b
Ctrl-C writes a checkpoint; the same command goes on from it.
  undiffuse train-codec photos/ data.size=32 codec.codes=512
  undiffuse codec report runs/photos-codec photos/
  undiffuse train photos/ --recipe vq-image codec.kind=pretrained codec.path=runs/photos-codec
"""


def train_codec(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA|RECIPE|RUN [KEY=VALUE]",
            help="Data (digits, a folder, a file), a recipe, or a run to go on with; then changes to the recipe.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe by name, or a YAML file; default: vq-image.", show_default=False)
    ] = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="The same as train.seed=N.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="The same as train.device=...", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Train a codec on DATA, without a denoiser.

    The folder (default runs/NAME-codec) holds the codec, its recipe, log, pictures of reconstructions, checkpoints and
    report.html. Later runs take it with codec.kind=pretrained codec.path=FOLDER.
    """
    from undiffuse.cli.output import Output

    output = Output(json)
    target = read_words(words or [], recipe, out)
    options = {"train.seed": seed, "train.device": device}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    _finish(output, _train(output, target._replace(overrides=target.overrides + given)), target)


def _train(output: Output, target: Target) -> CodecRun:
    from undiffuse.cli.failures import Interrupted
    from undiffuse.training.codec_run import train_codec as train

    output.say("Looking at the data ...")
    with output.progress() as listener:
        run = train(target.source, target.recipe, out=target.out, listener=listener, overrides=target.overrides)
    if not run.finished:
        raise Interrupted(f"its checkpoint is in {run.folder}; go on with: undiffuse train-codec {run.folder}")
    return run


def _finish(output: Output, run: CodecRun, target: Target) -> None:
    from undiffuse.models.world import speaks
    from undiffuse.report import run_report

    if not speaks():
        return
    words = ["undiffuse", "train-codec", target.source or target.recipe, *target.overrides, "--out", str(run.folder)]
    report = run_report(run.folder, command=shlex.join(word for word in words if word))
    if run.health is not None:
        output.say(f"On held-out items: {run.health}.")
    output.say(f"The report is {report}.")
    health = run.health and run.health.to_json()
    result = {"folder": run.folder, "codec": run.folder / "codec.safetensors", "report": report, "codebook": health}
    output.finish(f"The codec is in {run.folder}", result)

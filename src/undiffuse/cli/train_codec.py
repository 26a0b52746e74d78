"""`undiffuse train-codec`: from data to a folder with a codec and a report."""

from __future__ import annotations

from typing import Annotated

import typer

from undiffuse.cli.runs import carry_out, read_words, write_report
from undiffuse.cli.shared import Json, Out

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
    target = read_words(words or [], recipe, out).with_settings(seed=seed, device=device)
    from undiffuse.training.codec_run import train_codec as train  # after words that are refused: it loads torch

    run = carry_out(output, "train-codec", target, train, lambda _: "its checkpoint is")
    report = write_report("train-codec", target, run)
    if report is None:
        return
    if run.health is not None:
        output.say(f"On held-out items: {run.health}.")
    output.say(f"The report is {report}.")
    health = run.health and run.health.to_json()
    result = {"folder": run.folder, "codec": run.folder / "codec.safetensors", "report": report, "codebook": health}
    output.finish(f"The codec is in {run.folder}", result)

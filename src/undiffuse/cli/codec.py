"""`undiffuse codec report` and `undiffuse codec refit`: the health of a codebook, and a better one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Device, Json, Out, Seed

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.codecs.quantised import TokenCodec
    from undiffuse.data import Dataset

EPILOG = """\b
CODEC is the folder of a codec, of a model that has one, or of a VQModel of diffusers.

\b
Examples:
  undiffuse codec report runs/photos-codec photos/
  undiffuse codec refit runs/photos-codec photos/ --codes 512 --train-steps 4000
  undiffuse codec report vqvae/ photos/ data.size=64 --json
"""

_FIT = ("codes", "train_steps", "lr", "train_batch_size")  # of refit alone


def codec(
    action: Annotated[str, typer.Argument(metavar="report|refit", help="Report its health, or rebuild its codebook.")],
    name: Annotated[str, typer.Argument(metavar="CODEC", help="A codec's folder.")],
    words: Annotated[
        list[str],
        typer.Argument(metavar="DATA [data.KEY=VALUE]", help="Data, and how to read them.", show_default=False),
    ],
    codes: Annotated[
        int | None, typer.Option(help="refit: code vectors; default: as many as before.", show_default=False)
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(help="refit: steps of fine-tuning; default 2000, 0 for none.", show_default=False)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="refit: learning rate; default 1e-3.", show_default=False)] = None,
    train_batch_size: Annotated[
        int | None, typer.Option(help="refit: items per step; default 64.", show_default=False)
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Say which code vectors data use and what reconstructions lose; or rebuild the codebook from the data.

    refit puts a codec with a new codebook into --out (default CODEC-refit). Its encoder stays as it is, bit for bit.
    Tokens change their meaning, so denoisers must be trained again.
    """
    from undiffuse.cli.output import Output

    output = Output(json)
    given = {"codes": codes, "train_steps": train_steps, "lr": lr, "train_batch_size": train_batch_size}
    asked = {key: value for key, value in given.items() if value is not None}
    if action == "report":
        if asked:
            raise typer.BadParameter(f"--{next(iter(asked)).replace('_', '-')} belongs to refit, not to report")
        _report(output, name, words, out, device)
    elif action == "refit":
        _refit(output, name, words, out, seed, device, asked)
    else:
        raise typer.BadParameter(f"{action!r} is unknown; use report or refit")


def _report(output: Output, name: str, words: list[str], out: Path | None, device: str) -> None:
    from undiffuse.cli.places import choose_device
    from undiffuse.metrics.codebook import codebook_health
    from undiffuse.report import Report
    from undiffuse.report.codebook import health_section
    from undiffuse.training.codec_run import reconstructions

    found, data, held_out = _open(name, words)
    target = choose_device(device)
    found = found.to(target)
    seen = held_out if held_out is not None else data
    with output.progress() as listener:
        health = codebook_health(found, seen, device=str(target), listener=listener)
    output.pairs(health.to_json() | {"looked at": _looked_at(held_out)})
    folder = out if out is not None else Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    section = health_section(health, reconstructions(found, _some(seen), seen.spec))
    report = Report(f"Codebook of {name}", str(health), [section]).write(folder / "codebook.html")
    output.finish(f"The report is {report}", health.to_json() | {"codec": name, "report": report})


def _refit(
    output: Output, name: str, words: list[str], out: Path | None, seed: int, device: str, asked: dict[str, Any]
) -> None:
    from undiffuse.cli.failures import Interrupted
    from undiffuse.report import Report
    from undiffuse.report.codebook import refit_section
    from undiffuse.training.codec_run import reconstructions
    from undiffuse.training.options import TrainOptions
    from undiffuse.training.refit import refit_codebook

    found, data, held_out = _open(name, words)
    folder = out if out is not None else Path(f"{name.rstrip('/')}-refit")
    train = TrainOptions(device=device, preview_every=500, validate_every=0)
    with output.progress() as listener:
        made = refit_codebook(
            found, data, held_out=held_out, out=folder, seed=seed, train=train, listener=listener, **asked
        )
    if made.after is None:
        raise Interrupted(f"its checkpoint is in {folder}; the same command goes on.")
    items = _some(held_out if held_out is not None else data)
    before, after = (reconstructions(part, items, data.spec) for part in (found, made.codec))
    section = refit_section(made, before, after)
    report = Report(f"New codebook of {name}", str(made.after), [section]).write(folder / "codebook.html")
    for stage in ("before", "rebuilt", "after"):
        output.say(f"{stage:<8} {getattr(made, stage)}")
    output.say("Tokens of the new codec mean something else than those of the old; train denoisers on it anew.")
    result = made.to_json() | {"folder": folder, "report": report, "looked_at": _looked_at(held_out)}
    output.finish(f"The codec is in {folder}", result)


def _open(name: str, words: list[str]) -> tuple[TokenCodec, Dataset, Dataset | None]:
    """Return the codec, the data, and of the codec's own training data the part that was held out."""
    from undiffuse.cli.info import data_options
    from undiffuse.cli.places import read_run_recipe
    from undiffuse.codecs.options import PretrainedCodecOptions
    from undiffuse.codecs.pretrained import load_pretrained
    from undiffuse.data import open_data
    from undiffuse.metrics.codebook import require_codebook
    from undiffuse.models.codecs import is_ours, load_codec
    from undiffuse.training.run import hold_out

    source, *changes = words
    ours = is_ours(name) or not Path(name).is_dir()
    recipe = read_run_recipe(Path(name)) if ours else None
    if recipe is not None and source == recipe.data.source and not changes:
        found = require_codebook(load_codec(name))
        return found, *hold_out(recipe, open_data(source, recipe.data, spec=found.data))
    if ours:
        found = require_codebook(load_codec(name))
        return found, open_data(source, data_options(changes) if changes else None, spec=found.data), None
    data = open_data(source, data_options(changes) if changes else None)
    return require_codebook(load_pretrained(PretrainedCodecOptions(path=name), data.spec)), data, None


def _some(data: Dataset, most: int = 12) -> Any:
    import torch

    return data.batch(torch.arange(min(most, len(data))))["x"]


def _looked_at(held_out: Dataset | None) -> str:
    return "items held out of the training in this folder" if held_out is not None else "all items that were given"

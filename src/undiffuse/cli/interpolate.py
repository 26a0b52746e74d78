"""`undiffuse interpolate`: items between two others, with a model of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.asking import Guidance, OneCondition, OneLabel
from undiffuse.cli.shared import Device, Json, Load, Out, Seed

if TYPE_CHECKING:
    from undiffuse.cli.places import Found

EPILOG = """\b
Examples:
  undiffuse interpolate runs/codes one.png other.png
  undiffuse interpolate runs/codes one.png other.png --start 0.7 --shares 0.25,0.5,0.75 --samples 4
  undiffuse interpolate runs/text "a tale of two cities" "a room with a view  "
"""
SECTIONS = {
    "What to mix": ("shares", "start", "samples", "seed", "label", "cond"),
    "How to draw": ("steps", "guidance", "batch_size", "device"),
}


def interpolate(
    model: Annotated[str, typer.Argument(help="The folder of a run on tokens, or on pictures with codec=vq.")],
    first: Annotated[str, typer.Argument(help="A picture's file, or a text.")],
    second: Annotated[str, typer.Argument(help="Another of the same size or length.")],
    shares: Annotated[
        str, typer.Option(metavar="A,B,..", help="Chance of each token to be that of the second item.")
    ] = "0,0.25,0.5,0.75,1",
    start: Annotated[
        float, typer.Option(help="Time at which the mix is made: 0 draws nothing, 1 forgets both items.")
    ] = 0.5,
    samples: Annotated[int, typer.Option(help="Items for each share.")] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Sampling steps from there to data.")] = 32,
    label: OneLabel = None,
    cond: OneCondition = None,
    guidance: Guidance = None,
    out: Out = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Items computed at once.")] = 256,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Mix two items token by token at a noise level, and let the model make one item of what is left of both."""
    from undiffuse.cli.conditions import one_of_each
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.tasks.completion import token_process
    from undiffuse.tasks.interpolation import interpolate as mix

    output = Output(json)
    numbers = _numbers(shares)
    found = find_model(model, device, load=load)
    token_process(found.model, "interpolate")  # refuses before pictures are read
    one, other = (_item(found, words) for words in (first, second))
    with output.progress() as listener:
        made = mix(
            found.model,
            one,
            other,
            numbers,
            start=start,
            samples=samples,
            steps=steps,
            seed=seed,
            cond=one_of_each(label, cond or [], found.model.spec),
            guidance=guidance,
            batch_size=batch_size,
            listener=listener,
        )
    asked = {"first": first, "second": second, "shares": numbers, "start": start, "steps": steps}
    asked |= {"label": label, "cond": cond, "guidance": guidance, "load": load}
    folder = out if out is not None else found.home / f"interpolate-seed{seed}"
    written = _save(found, made, folder, seed, asked)
    for share, text in zip(numbers, written.get("texts", []), strict=False):
        output.say(f"{share:g}: {text}")
    figures = {"model": model, "seed": seed, "shares": numbers, "start": start, "samples": samples}
    output.finish(f"The result is {written['main']}", figures | written)


def _numbers(words: str) -> list[float]:
    try:
        return [float(word) for word in words.split(",")]
    except ValueError:
        raise ValueError(f"--shares {words!r} is no list of numbers; write for example 0.25,0.5,0.75.") from None


def _item(found: Found, words: str) -> Any:
    """Return a picture in data units, or a text."""
    spec = found.model.spec
    if spec.kind != "image":
        return words
    from undiffuse.cli.files import read_picture

    return read_picture(Path(words), spec)


def _save(found: Found, made: Any, folder: Path, seed: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Write all items, share by share, and of pictures a grid with one column per share."""
    from undiffuse import __version__
    from undiffuse.cli.saving import save_samples
    from undiffuse.images import image_grid, write_image
    from undiffuse.words import plain_json

    spec, samples = found.model.spec, made.flatten(0, 1)
    made_by = {"undiffuse": __version__, "model": found.name, "n": len(samples), "seed": seed, "cond": None}
    made_by |= {"interpolate": plain_json({key: value for key, value in asked.items() if value is not None})}
    saved = save_samples(samples, spec, folder, made_by)
    written: dict[str, Any] = {"folder": folder, "files": saved.files, "main": saved.main}
    if spec.kind != "image":
        return written | {"texts": found.model.text(made[:, 0])}
    strip = folder / f"strip-seed{seed}-n{len(samples)}.png"
    rows = made.transpose(0, 1).flatten(0, 1)
    write_image(strip, image_grid(rows, columns=len(made), bounds=spec.range), made_by)
    return written | {"main": strip, "strip": strip, "files": [strip, *saved.files]}

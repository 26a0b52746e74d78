"""`undiffuse inpaint`: fill what is missing of a text, a row or a picture, with a model of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.asking import Guidance, OneCondition, OneLabel
from undiffuse.cli.shared import Device, Json, Load, Out, Seed, Solver, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.cli.places import Found
    from undiffuse.spec import DataSpec
    from undiffuse.tasks.completion import Completion

EPILOG = """\b
Examples:
  undiffuse inpaint runs/text --text "To be ____ not to be" --samples 8 --rank
  undiffuse inpaint runs/table --set colour=red --set size=2 --samples 100
  undiffuse inpaint runs/codes photo.png --mask hole.png --samples 4
  undiffuse inpaint runs/codes photo.png --mask hole.png --resample 16 --steps 50
In a mask white is known and black is to be filled.
"""
SECTIONS = {
    "What is known": ("mask", "text", "placeholder", "set_", "label", "cond"),
    "How to fill": ("samples", "seed", "method", "resample", "steps", "solver", "guidance", "dilate", "paste", "rank"),
}
_SHOWN = 8  # completions that are printed


def inpaint(
    model: Annotated[str, typer.Argument(help="The folder of a run on tokens, or on pictures with codec=vq.")],
    image: Annotated[Path | None, typer.Argument(help="Picture to complete.", show_default=False)] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Picture of its size: white is known, black is filled.", show_default=False)
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text with a placeholder for each token to fill.", show_default=False)
    ] = None,
    placeholder: Annotated[str, typer.Option(help="Character that stands for a token to fill.")] = "_",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="COLUMN=VALUE", help="Known column of a row; repeatable.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="How many completions.")] = 4,
    method: Annotated[str, typer.Option(help="clamp, replacement, or auto: what is exact for the model.")] = "auto",
    resample: Annotated[
        int | None,
        typer.Option(help="Replacement: how often each step is taken; default 8.", show_default=False),
    ] = None,
    steps: Steps = None,
    solver: Solver = None,
    dilate: Annotated[
        int | None,
        typer.Option(help="Pictures: tokens around the hole to fill as well; default 1.", show_default=False),
    ] = None,
    paste: Annotated[bool, typer.Option(help="Pictures: put known pixels back, bit for bit.")] = True,
    rank: Annotated[bool, typer.Option("--rank", help="The likeliest completion first.")] = False,
    label: OneLabel = None,
    cond: OneCondition = None,
    guidance: Guidance = None,
    out: Out = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Completions computed at once.")] = 256,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Fill what is missing of a text, a row of a table or a picture: whatever is known, without training for it.

    Exact for models of masks (corruption=absorbing). Models of other noise are asked several times per step
    (--resample), which is near to exact. Continuous models of pictures: undiffuse restore --mask.
    """
    from undiffuse.cli.conditions import one_of_each
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.tasks.completion import inpaint as complete
    from undiffuse.tasks.completion import token_process

    output = Output(json)
    _check_words(image, mask, text, set_ or [])
    found = find_model(model, device, load=load)
    token_process(found.model)  # refuses before pictures are read
    given, known = _given(image, mask, text, set_ or [], found.model.spec)
    with output.progress() as listener:
        done = complete(
            found.model,
            given,
            known,
            samples=samples,
            method=method,  # type: ignore[arg-type]
            resample=resample,
            steps=steps,
            solver=solver,
            seed=seed,
            placeholder=placeholder,
            dilate=dilate,
            paste=paste,
            rank=rank,
            cond=one_of_each(label, cond or [], found.model.spec),
            guidance=guidance,
            batch_size=batch_size,
            listener=listener,
        )
    output.say(
        f"{samples} completions by {done.method}, {done.nfe} network evaluations each; {int((~done.known).sum())} of "
        f"{done.known.numel()} tokens drawn" + (f" ({done.why})" if done.why else "")
    )
    asked: dict[str, Any] = {"given": text or (str(image) if image else set_), "mask": mask}
    asked |= {"label": label, "cond": cond, "load": load}
    asked |= {"method": done.method, "resample": resample, "steps": steps, "solver": solver, "guidance": guidance}
    asked |= {"dilate": dilate, "paste": paste, "rank": rank}
    folder = out if out is not None else found.home / f"inpaint-seed{seed}"
    written = _save(found, done, folder, given, known, seed, asked)
    for line in written.get("texts", [])[:_SHOWN]:
        output.say(line)
    output.finish(f"The result is {written['main']}", {"model": model, "seed": seed} | done.to_json() | written)


def _check_words(image: Path | None, mask: Path | None, text: str | None, columns: list[str]) -> None:
    """Refuse a command line that does not say what is known, before anything is loaded.

    Raises:
        ValueError: Nothing to complete, several things, or a picture without a mask.
    """
    given = [name for name, value in (("an image", image), ("--text", text), ("--set", columns)) if value]
    if len(given) != 1:
        what = " and ".join(given) if given else "nothing"
        raise ValueError(f"{what} to complete; give one of: an image with --mask, --text, or --set COLUMN=VALUE.")
    if (image is None) != (mask is None):
        raise ValueError(
            "a picture needs --mask FILE, white where it is known." if image else "--mask is for pictures."
        )


def _given(
    image: Path | None, mask: Path | None, text: str | None, columns: list[str], spec: DataSpec
) -> tuple[Any, Any]:
    """Return what `inpaint` takes as `x` and `mask`."""
    if text is not None:
        return text, None
    if image is None:
        return dict(_column(words) for words in columns), None
    import torch

    from undiffuse.cli.files import read_picture
    from undiffuse.images import read_image

    assert mask is not None
    if spec.kind != "image":
        raise ValueError(f"a picture was given, but this model makes {spec.noun}; give --text or --set.")
    return read_picture(image, spec), torch.from_numpy(read_image(mask, "grey")[..., 0])


def _column(words: str) -> tuple[str, str]:
    name, equals, value = words.partition("=")
    if not name or not equals:
        raise ValueError(f"--set {words!r} says nothing; write COLUMN=VALUE, for example colour=red.")
    return name, value


def _save(
    found: Found, done: Completion, folder: Path, given: Any, known: Any, seed: int, asked: dict[str, Any]
) -> dict[str, Any]:
    """Write the completions, and of pictures a strip: before, mask, after."""
    from undiffuse import __version__
    from undiffuse.cli.saving import save_samples
    from undiffuse.words import plain_json

    spec, samples = found.model.spec, done.samples[:, 0]
    made_by = {"undiffuse": __version__, "model": found.name, "n": len(samples), "seed": seed, "cond": None}
    made_by |= {"inpaint": plain_json({key: value for key, value in asked.items() if value is not None})}
    saved = save_samples(samples, spec, folder, made_by)
    written: dict[str, Any] = {"folder": folder, "files": saved.files, "main": saved.main}
    if spec.kind != "image":
        return written | {"texts": found.model.text(samples)}
    strip = folder / f"strip-seed{seed}-n{len(samples)}.png"
    _write_strip(strip, given, known, samples, spec, made_by)
    return written | {"main": strip, "strip": strip, "files": [strip, *saved.files]}


def _write_strip(
    path: Path, given: Tensor, mask: Tensor, samples: Tensor, spec: DataSpec, made_by: dict[str, Any]
) -> None:
    import torch

    from undiffuse.images import image_grid, write_image

    low, high = spec.range or (-1.0, 1.0)
    known = torch.where(mask >= 127.5, high, low).expand_as(given)
    before = torch.where(mask >= 127.5, given, (low + high) / 2)
    row = torch.cat([before[None], known[None], samples.to(given.dtype)])
    write_image(path, image_grid(row, columns=len(row), bounds=(low, high)), made_by)

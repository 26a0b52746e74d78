"""`undiffuse cka`: how alike the layers of models are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.features import read_layers, read_times
from undiffuse.cli.shared import Device, Json, Load, ModelName, Out, Seed

if TYPE_CHECKING:
    from undiffuse.analysis.similarity import Comparison
    from undiffuse.cli.places import Found

EPILOG = """\b
Examples:
  undiffuse cka digits --data digits
  undiffuse cka runs/a runs/b --data photos/ -n 2000 --unbiased
  undiffuse cka digits --data digits --t 0.1 --other-t 0.5
"""


def cka(
    model: ModelName,
    other: Annotated[
        str | None, typer.Argument(help="Another one; default: the model itself.", show_default=False)
    ] = None,
    data: Annotated[str, typer.Option("--data", help="Data that both see.")] = "",
    n: Annotated[int, typer.Option("-n", "--count", help="Items, chosen by the seed.")] = 2000,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Layer, again for several.", show_default="all")
    ] = None,
    t: Annotated[list[float] | None, typer.Option("--t", help="Time, again for several.", show_default="0.1")] = None,
    other_t: Annotated[
        list[float] | None,
        typer.Option("--other-t", help="Time of the other model; default: the same.", show_default=False),
    ] = None,
    unbiased: Annotated[bool, typer.Option("--unbiased", help="The estimator for few items or many features.")] = False,
    minibatch: Annotated[
        int | None,
        typer.Option("--minibatch", help="Items of a minibatch of the unbiased one; default: all.", show_default=False),
    ] = None,
    pool: Annotated[int, typer.Option(help="Cells on each axis that a map is averaged to.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Items computed at once; changes speed and memory only.")] = 64,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Compare the layers of two models, or of one with itself or at two times, on the same items: linear CKA.

    Writes cka.json and cka.html into --out, or the model's folder. --load goes to MODEL, and to OTHER where that is a
    pipeline too.
    """
    from undiffuse.analysis.similarity import compare_layers
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.errors import DataError
    from undiffuse.pretrained.loading import is_diffusers
    from undiffuse.tasks.features.items import read_items

    output = Output(json)
    if not data:
        raise DataError("no data were named; give --data FOLDER, an array or a built-in name.")
    found = find_model(model, device, load=load)
    second = None if other is None else find_model(other, device, load=load if is_diffusers(other) else None).model
    items = read_items(found.model, data, n=n, seed=seed)
    is_alike = second is None or second.spec == found.model.spec
    other_x = None if is_alike else read_items(second, data, n=n, seed=seed).x  # in its own size and units
    with output.progress() as listener:
        comparison = compare_layers(
            found.model,
            second,
            items.x,
            layers="all" if not layer else read_layers(layer),
            t=read_times(t, 0.1),  # type: ignore[arg-type]
            other_t=read_times(other_t),
            other_x=other_x,
            unbiased=unbiased,
            minibatch=minibatch,
            pool=pool,
            seed=seed,
            batch_size=batch_size,
            listener=listener,
        )
    output.table(comparison.columns, comparison.table(), range(1, len(comparison.columns)))
    written = _write(found, comparison, other, out if out is not None else found.home)
    said = {"model": model, "other": other, "data": data} | written | comparison.to_json()
    output.finish(f"The report is {written['report']}", said)


def _write(found: Found, comparison: Comparison, other: str | None, folder: Path) -> dict[str, Any]:
    import json

    from undiffuse.report import Report, comparison_section
    from undiffuse.training.folder import make_folder, write_text
    from undiffuse.words import plain_json

    figures = make_folder(folder) / "cka.json"
    write_text(figures, json.dumps(plain_json(comparison.to_json()), indent=1) + "\n")
    title = f"Layers of {found.name}" + ("" if other is None else f" and {other}")
    report = Report(title, repr(found.model), [comparison_section(comparison)])
    return {"results": figures, "report": report.write(folder / "cka.html")}

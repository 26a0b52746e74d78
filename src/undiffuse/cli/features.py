"""`undiffuse features`: what the inside of a model says about data, as a file of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undiffuse.cli.shared import Device, Json, Load, ModelName, Resize, Seed

EPILOG = """\b
Examples:
  undiffuse features digits digits --out digits.npz
  undiffuse features runs/photos new-photos/ --layer mid --layer up1.0 --t 0.05 --t 0.2 --pool 2 --out photos.parquet
  undiffuse features runs/photos --list
"""


def features(
    model: ModelName,
    data: Annotated[
        str | None,
        typer.Argument(help="Data: a folder, an archive, an array, a built-in name.", show_default=False),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", help="Block to read, again for several; auto: one, all: every.", show_default="auto"),
    ] = None,
    t: Annotated[
        list[float] | None,
        typer.Option("--t", help="Time in [0, 1], 0 is clean; again for several.", show_default="0.1"),
    ] = None,
    pool: Annotated[int, typer.Option(help="Cells on each axis that a map is averaged to; 0: leave it.")] = 1,
    draws: Annotated[int, typer.Option(help="Draws of noise to average over.")] = 1,
    n: Annotated[
        int | None,
        typer.Option("-n", "--count", help="Items at most, chosen by the seed; default: all.", show_default=False),
    ] = None,
    resize: Resize = "crop",
    inputs: Annotated[bool, typer.Option("--inputs", help="What goes into blocks, not what comes out.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the layers with their shapes, and stop.")] = False,
    batch_size: Annotated[int, typer.Option(help="Items computed at once; changes speed and memory only.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File: .npz, .npy or .parquet; default: features.npz.", show_default=False),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Noise data a little, run the network once, and write what its blocks return.

    .npz and .parquet also hold the number and the label of each item, and the settings.
    """
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.data import DataOptions
    from undiffuse.errors import DataError
    from undiffuse.tasks.features.layers import describe, layers_of
    from undiffuse.tasks.features.table import check_suffix
    from undiffuse.tasks.features.table import features as compute

    output = Output(json)
    path = out or Path("features.npz")
    check_suffix(path)
    if data is None and not show:
        raise DataError("no data were named; give a folder, an archive, an array or a built-in name after the model.")
    found = find_model(model, device, load=load).model
    if show:
        shapes = layers_of(found, inputs=inputs)
        output.table(("layer", "shape"), [(name, describe(shape)) for name, shape in shapes.items()])
        output.finish(f"{len(shapes)} layers", {"model": model, "layers": shapes})
        return
    assert data is not None
    options = DataOptions(source=data, resize=resize)  # type: ignore[arg-type]
    chosen = {"layers": read_layers(layer), "t": read_times(t, 0.1), "pool": pool or None, "draws": draws}
    with output.progress() as listener:
        table = compute(
            found,
            data,
            seed=seed,
            n=n,
            inputs=inputs,
            batch_size=batch_size,
            options=options,
            listener=listener,
            **chosen,  # type: ignore[arg-type]
        )
    table.save(path)
    output.say(f"{len(table)} items, {table.values.shape[1]} features: {', '.join(table.parts)}")
    said = {"model": model, "data": data, "n": len(table), "features": table.values.shape[1], "parts": table.parts}
    output.finish(f"The features are in {path}", said | {"settings": table.settings, "out": path})


def read_layers(asked: list[str] | None) -> str | list[str]:
    """Return layers as `FeatureEncoder` takes them."""
    if not asked:
        return "auto"
    return asked[0] if len(asked) == 1 else asked


def read_times(asked: list[float] | None, default: float | None = None) -> float | list[float] | None:
    """Return times as `FeatureEncoder` takes them; `default` where none were asked for."""
    if not asked:
        return default
    return asked[0] if len(asked) == 1 else asked

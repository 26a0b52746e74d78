"""`undiffuse bench-match`: PCK of features on SPair-71k, PF-Pascal or TSS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from undiffuse.cli.match import (
    FEATURES,
    Alpha,
    Cond,
    Dino,
    DinoSize,
    Draws,
    Layer,
    Method,
    ModelName,
    Pca,
    Size,
    Time,
)
from undiffuse.cli.shared import Device, Json, Load, Seed

EPILOG = """\b
Examples:
  undiffuse bench-match data/SPair-71k --model FOLDER --per-category 20
  undiffuse bench-match data/SPair-71k --model FOLDER --dino facebook/dinov2-base --features diffusion --features dino \
--features diffusion+dino
  undiffuse bench-match data/TSS_CVPR2016 --features patch
"""
SECTIONS = {
    "The pairs": ("layout", "split", "category", "per_category"),
    "Features": FEATURES,
    "What counts": ("method", "size_of", "at", "average"),
}


def bench_match(
    data: Annotated[Path, typer.Argument(help="Folder of SPair-71k, PF-Pascal or TSS.")],
    model: ModelName = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="A choice, such as diffusion+dino; give several to compare them with the first. Default: all that "
            "--model and --dino allow, fused, and the position alone.",
            show_default=False,
        ),
    ] = None,
    alpha: Alpha = None,
    layer: Layer = None,
    t: Time = None,
    draws: Draws = 1,
    size: Size = None,
    pca: Pca = 256,
    dino: Dino = None,
    dino_size: DinoSize = 840,
    method: Method = "nearest",
    cond: Cond = None,
    layout: Annotated[str, typer.Option(help="spair, pf-pascal, tss, or auto.")] = "auto",
    split: Annotated[str, typer.Option(help="Of the data set: test, val or trn.")] = "test",
    category: Annotated[str | None, typer.Option(help="This one alone.", show_default=False)] = None,
    per_category: Annotated[
        int | None, typer.Option(help="So many pairs of each category, drawn by the seed.", show_default=False)
    ] = None,
    size_of: Annotated[
        str | None, typer.Option(help="What thresholds are shares of: bbox or image.", show_default=False)
    ] = None,
    at: Annotated[str | None, typer.Option(help="Thresholds, with commas.", show_default=False)] = None,
    average: Annotated[
        str | None,
        typer.Option(help="point, image, category, category-pairs, category-image.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("bench-match"),
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Measure how well features correspond: PCK with intervals over pairs, beside the position alone.

    Thresholds, sizes and averages are those of the data set's own papers unless you say others. Writes match.json.
    """
    import json as json_module

    from undiffuse.cli.asking import read_size
    from undiffuse.cli.match import read_condition, read_numbers, read_options
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.tasks.match.bench import bench_match as measure
    from undiffuse.training.folder import write_text

    output = Output(json)
    words: dict[str, Any] = {"layer": layer, "t": t, "draws": draws, "size": read_size(size), "pca": pca}
    words |= {"dino_size": dino_size, "method": method, "seed": seed}
    choices = _choices(features, alpha, model, dino)
    thresholds = None if at is None else read_numbers(at, "--at")
    found = None if model is None else find_model(model, device, load=load).model
    with output.progress() as listener:
        result = measure(
            found,
            data,
            choices,
            layout=layout,
            split=split,
            category=category,
            per_category=per_category,
            size_of=cast(Literal["bbox", "image"] | None, size_of),
            alphas=thresholds,
            average=cast(Any, average),
            listener=listener,
            cond=read_condition(cond, found),
            **read_options(words),
        )
    rule = result.convention
    how = f"{result.settings['data']}, per {rule.average}, errors below alpha times the {rule.size}"
    output.say(f"{result.pairs} pairs, {result.points} points; {how}")
    output.table(result.columns, result.table(), (2, 3, 4))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "match.json", json_module.dumps(result.to_json(), indent=1) + "\n")
    output.finish(f"The figures are in {out / 'match.json'}", result.to_json() | {"out": str(out)})


def _choices(
    features: list[str] | None, alpha: str | None, model: str | None, dino: str | None
) -> dict[str, dict[str, Any]]:
    """Return the choices of features by name; the first is what others are compared with.

    Raises:
        ValueError: Nothing to choose from.
    """
    from undiffuse.cli.match import read_options

    given = [name for name, asked in (("diffusion", model), ("dino", dino)) if asked is not None]
    if not features and not given:
        raise ValueError("say what to measure: --model, --dino, or --features patch.")
    found: dict[str, dict[str, Any]] = {}
    for word in features or ["+".join(given), "position"]:
        names = tuple(part.strip() for part in word.split("+"))
        if "diffusion" in names and model is None:
            raise ValueError(f"--features {word} needs --model.")
        own = {"features": names, "dino": dino if "dino" in names else None}
        found[word] = own | (read_options({"alpha": alpha}) if len(names) > 1 else {})
    return found

"""`undiffuse match`: where points of one picture lie in others, all of its pixels, or its object put into another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Device, Json, Load, Seed

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.models import Model
    from undiffuse.tasks.match import Matcher, Matches

EPILOG = """\b
Examples:
  undiffuse match cat.png other-cat.png --points eyes.csv --model FOLDER
  undiffuse match cat.png a.png b.png --points eyes.csv --model FOLDER --dino facebook/dinov2-base --alpha 0.5
  undiffuse match a.png b.png --dense --features patch
  undiffuse match cat.png dog.png --swap --mask cat-mask.png --target-mask dog-mask.png --model FOLDER
Points are lines x,y in pixels, (0, 0) is the middle of the first one; a third column names them.
"""
FEATURES = tuple(
    ["model", "load", "dino", "features", "alpha", "layer", "t", "draws", "cond", "size", "dino_size", "pca"]
)
SECTIONS = {
    "What to match": ("points", "dense", "swap", "mask", "target_mask", "start"),
    "Features": FEATURES,
    "How a match is chosen": ("method", "cells", "mutual", "ratio"),
}

Features = Annotated[
    str | None,
    typer.Option(
        help="diffusion, dino, patch, position, or several with + between; default: diffusion, and dino where named.",
        show_default=False,
    ),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A run's folder, or a model of diffusers.", show_default=False)
]
Alpha = Annotated[
    str | None,
    typer.Option(help="Weight of the first of two features, or one for each: 0.5,0.3,0.2.", show_default=False),
]
Layer = Annotated[
    list[str] | None,
    typer.Option("--layer", help="Block to read, again for several.", show_default="the decoder's coarse ones"),
]
Time = Annotated[
    list[float] | None,
    typer.Option("--t", help="Time in [0, 1], 0 is clean; again for several.", show_default="0.1"),
]
Draws = Annotated[int, typer.Option(help="Noise draws to average over; 8 is steadier than 1.")]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Pixels to which pictures are scaled, for all features but dino; 64 is 64x64.",
        show_default=False,
    ),
]
Pca = Annotated[int, typer.Option(help="Dimensions of the co-PCA of wide diffusion layers; 0: none.")]
Dino = Annotated[
    str | None,
    typer.Option(help="A DINO network: a folder, or a hub name such as facebook/dinov2-base.", show_default=False),
]
DinoSize = Annotated[int, typer.Option(help="Pixels of the longer side for DINO.")]
Cells = Annotated[
    int | None, typer.Option(help="Cells of the longer side; default: those of the finest feature.", show_default=False)
]
Method = Annotated[str, typer.Option(help="nearest, soft-argmax, or window (soft-argmax round the nearest).")]
Cond = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A condition of the model, such as prompt=a cat.", show_default=False),
]


def match(
    src: Annotated[Path, typer.Argument(help="The picture with the points.")],
    targets: Annotated[list[Path], typer.Argument(metavar="DST", help="Pictures to find them in.")],
    points: Annotated[Path | None, typer.Option(help="A CSV file of points.", show_default=False)] = None,
    model: ModelName = None,
    features: Features = None,
    alpha: Alpha = None,
    layer: Layer = None,
    t: Time = None,
    draws: Draws = 1,
    size: Size = None,
    pca: Pca = 256,
    dino: Dino = None,
    dino_size: DinoSize = 840,
    cells: Cells = None,
    method: Method = "nearest",
    mutual: Annotated[bool, typer.Option("--mutual", help="Drop points whose match does not lead back.")] = False,
    ratio: Annotated[
        float | None, typer.Option(help="Drop points whose second best match is as good: 0.9.", show_default=False)
    ] = None,
    cond: Cond = None,
    dense: Annotated[bool, typer.Option("--dense", help="Match every pixel; writes the flow.")] = False,
    swap: Annotated[bool, typer.Option("--swap", help="Fill the object of SRC with that of DST.")] = False,
    mask: Annotated[
        Path | None, typer.Option(help="The object in SRC (white), for --swap.", show_default=False)
    ] = None,
    target_mask: Annotated[
        Path | None, typer.Option(help="Where in DST matches may lie (white).", show_default=False)
    ] = None,
    start: Annotated[
        float | None,
        typer.Option(help="For --swap: time from which the model refines; 0 pastes; default 0.5.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("matched"),
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Find points of one picture in others, without training, by features of a diffusion model, DINO, or pixels.

    Writes for each picture a drawing with lines between the points, a CSV and a JSON file; with --dense the flow, with
    --swap the new picture.
    """
    from undiffuse.cli.asking import read_size
    from undiffuse.cli.files import different
    from undiffuse.cli.output import Output

    output = Output(json)
    _check_asked(points, dense, swap, mask, target_mask, start, targets, mutual or ratio is not None)
    found, matcher, condition = open_matcher(
        model,
        device,
        load=load,
        refines=swap,
        features=features,
        alpha=alpha,
        layer=layer,
        t=t,
        cond=cond,
        draws=draws,
        size=read_size(size),
        pca=pca,
        dino=dino,
        dino_size=dino_size,
        cells=cells,
        method=method,
        mutual=mutual,
        ratio=ratio,
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"model": model, "out": str(out)}
    if points is not None:
        results["matches"] = _match_points(output, matcher, src, targets, points, target_mask, out)
    if dense:
        stems = different([target.stem for target in targets])
        results["dense"] = [
            _match_all(output, matcher, src, target, target_mask, out / stem)
            for target, stem in zip(targets, stems, strict=True)
        ]
    if swap:
        results["swap"] = _swap(output, found, matcher, src, targets[0], mask, target_mask, start, condition, out)
    output.finish(f"The results are in {out}", results)


def open_matcher(
    name: str | None, device: str, *, load: list[str] | None, cond: list[str] | None, refines: bool, **words: Any
) -> tuple[Model | None, Matcher, dict[str, Any] | None]:
    """Return the model, the matcher and the condition that words of the command line ask for.

    The condition is for features where they read one, and for refining a swap.

    Raises:
        ValueError: Options that do not fit; told before the model is loaded.
    """
    from dataclasses import replace

    from undiffuse.cli.places import choose_device, find_model
    from undiffuse.tasks.match.matcher import Matcher
    from undiffuse.tasks.match.options import MatchOptions

    options = MatchOptions(**read_options(words))
    if "diffusion" in options.sources and name is None:
        raise ValueError("diffusion features need a model; give --model, or --features dino, patch or position.")
    model = None if name is None else find_model(name, device, load=load).model
    condition = read_condition(cond, model)
    for_features = None if refines and "diffusion" not in options.sources else condition
    return model, Matcher(model, replace(options, cond=for_features), device=choose_device(device)), condition


def read_condition(words: list[str] | None, model: Model | None) -> dict[str, Any] | None:
    """Return the condition of all pictures.

    Raises:
        ValueError: There is no model that could read one, or it knows no such condition.
    """
    from undiffuse.cli.conditions import one_of_each

    if not words:
        return None
    if model is None:
        raise ValueError(f"--cond {words[0]} needs a model that reads it; give --model.")
    return one_of_each(None, words, model.state_spec)


def read_options(words: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `match` that words stand for: features with + between, weights with commas."""
    found = {name: value for name, value in words.items() if value is not None}
    for name, option in (("t", "t"), ("layer", "layers")):
        if name in found:
            found[option] = tuple(found.pop(name))
    if "features" in found:
        found["features"] = tuple(part.strip() for part in found["features"].split("+"))
    if "alpha" in found:
        given = read_numbers(str(found["alpha"]), "--alpha")
        found["alpha"] = given[0] if len(given) == 1 else given
    return found


def read_numbers(text: str, name: str) -> tuple[float, ...]:
    """Return numbers with commas between.

    Raises:
        ValueError: They are none.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} {text!r} is no number and no list of numbers with commas.") from error


def _check_asked(
    points: Path | None,
    dense: bool,
    swap: bool,
    mask: Path | None,
    target_mask: Path | None,
    start: float | None,
    targets: list[Path],
    tests: bool,
) -> None:
    if points is None and not dense and not swap:
        raise ValueError("say what to match: --points FILE, --dense for every pixel, or --swap.")
    if swap and (mask is None or target_mask is None):
        raise ValueError("--swap needs the objects of both pictures: --mask for SRC and --target-mask for DST.")
    if not swap and (mask is not None or start is not None):
        raise ValueError(
            "--mask and --start belong to --swap; leave them out (--target-mask limits where matches lie)."
        )
    if points is None and tests:
        raise ValueError("--mutual and --ratio test single points; give --points, or leave them out.")
    if len(targets) > 1 and (swap or target_mask is not None):
        raise ValueError(f"--swap and --target-mask belong to one picture and {len(targets)} are given; give one.")


def _match_points(
    output: Output, matcher: Matcher, src: Path, targets: list[Path], points: Path, mask: Path | None, out: Path
) -> list[dict[str, Any]]:
    from undiffuse.cli.files import different
    from undiffuse.events import Advanced, Finished, Started
    from undiffuse.tasks.match.frame import check_points, read_points
    from undiffuse.tasks.match.run import match as find

    source = matcher.describe(src)
    places, names = read_points(points)
    check_points(places, source.picture.size, str(src))
    written = []
    with output.progress() as listener:
        listener(Started("match", len(targets), "picture"))
        for number, (target, name) in enumerate(
            zip(targets, different([path.stem for path in targets]), strict=True), 1
        ):
            described = matcher.describe(target)
            found = find(matcher, source, places, described, dst_mask=mask)
            written.append(_write(found, names, source.picture, described.picture, target, out / f"{name}-matches"))
            listener(Advanced("match", number))
            output.say(f"{target}: {int(found.kept.sum())} of {len(found)} points, {int(found.mutual.sum())} lead back")
            output.table(found.columns, found.rows(names), range(1, 9))
        listener(Finished("match"))
    return written


def _write(found: Matches, names: tuple[str, ...], src: Any, dst: Any, target: Path, stem: Path) -> dict[str, Any]:
    """Write the drawing, the CSV and the JSON of one picture."""
    import csv
    import io
    import json

    from undiffuse.images.write import write_image
    from undiffuse.tasks.match.drawing import draw_matches
    from undiffuse.training.folder import write_text

    files = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "csv", "json")}
    write_image(files["png"], draw_matches(src, dst, found), {"match": found.settings})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([found.columns, *found.rows(names)])
    write_text(files["csv"], text.getvalue())
    record = {"target": str(target), "names": list(names), **found.to_json()}
    write_text(files["json"], json.dumps(record, indent=1) + "\n")
    return record | {kind: str(path) for kind, path in files.items()}


def _match_all(
    output: Output, matcher: Matcher, src: Path, target: Path, mask: Path | None, stem: Path
) -> dict[str, Any]:
    """Match every pixel; writes the flow as .npy and as colours, into files whose names begin with `stem`."""
    import numpy as np

    from undiffuse.files import write_whole
    from undiffuse.images.write import write_image
    from undiffuse.tasks.match.drawing import draw_flow
    from undiffuse.tasks.match.run import match_dense

    with output.progress() as listener:
        found = match_dense(matcher, matcher.describe(src), matcher.describe(target), dst_mask=mask, listener=listener)
    files = {
        kind: stem.with_name(f"{stem.name}-flow.{ending}") for kind, ending in (("flow", "npy"), ("picture", "png"))
    }
    values = np.concatenate([found.flow.numpy(), found.confidence.numpy()[..., None]], axis=-1).astype(np.float32)
    write_whole(files["flow"], lambda path: _save(path, values))
    write_image(files["picture"], draw_flow(found), {"match": found.settings})
    share, length = float(found.mutual.float().mean()), float(found.flow.norm(dim=-1).mean())
    output.say(
        f"{target}: every pixel on {found.grid[0]} x {found.grid[1]} cells, {100 * share:.0f} % lead back, mean "
        f"displacement {length:.1f} pixels; {files['flow']} holds (H, W, 3): dx, dy, confidence"
    )
    facts = {"target": str(target), "mutual": share, "mean_displacement": length, "settings": found.settings}
    return facts | {name: str(path) for name, path in files.items()}


def _save(path: Path, values: Any) -> None:
    import numpy as np

    with open(path, "wb") as file:
        np.save(file, values, allow_pickle=False)


def _swap(
    output: Output,
    model: Model | None,
    matcher: Matcher,
    src: Path,
    target: Path,
    mask: Path | None,
    target_mask: Path | None,
    start: float | None,
    cond: dict[str, Any] | None,
    out: Path,
) -> dict[str, Any]:
    from undiffuse.images.write import write_image
    from undiffuse.tasks.match.drawing import to_uint8
    from undiffuse.tasks.match.swapping import swap

    with output.progress() as listener:
        found = swap(
            model,
            src,
            target,
            mask,
            target_mask,
            start=start,
            cond=cond,
            matcher=matcher,
            listener=listener,
        )
    files = {"picture": out / f"{target.stem}-swap.png", "pasted": out / f"{target.stem}-pasted.png"}
    recipe = {"swap": found.settings, "start": found.start}
    write_image(files["picture"], to_uint8(found.picture), recipe)
    write_image(files["pasted"], to_uint8(found.pasted), recipe)
    how = f"refined from t = {found.start:g} in {found.nfe} evaluations" if found.start else "pasted, not refined"
    output.say(f"{files['picture']}: the object of {target} in the place of that of {src}, {how}")
    facts = {"target": str(target), "start": found.start, "evaluations": found.nfe, "settings": found.settings}
    return facts | {name: str(path) for name, path in files.items()}

"""`undiffuse probe`: a classifier on a model's frozen features, and what it is worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.features import read_layers, read_times
from undiffuse.cli.shared import Device, Json, Load, ModelName, Out, Seed

if TYPE_CHECKING:
    from undiffuse.cli.places import Found
    from undiffuse.tasks.features.study import ProbeStudy

EPILOG = """\b
Examples:
  undiffuse probe digits digits --out runs/digits-probe
  undiffuse probe runs/photos labelled/ --layer up1.0 --t 0.1 --head attention --head-option depth=1
  undiffuse probe runs/photos labelled/ --layer mid --layer up0.0 --t 0.05 --t 0.2 --head ridge
"""


def probe(
    model: ModelName,
    data: Annotated[str, typer.Argument(help="Data with labels: class folders, or an array with a label column.")],
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", help="Block to read, again for several; auto: search.", show_default="auto"),
    ] = None,
    t: Annotated[
        list[float] | None,
        typer.Option("--t", help="Time, again for several; auto searches among them.", show_default="searched, or 0.1"),
    ] = None,
    pool: Annotated[
        int | None, typer.Option(help="Cells on each axis of a map.", show_default="searched, or 2")
    ] = None,
    head: Annotated[
        str, typer.Option(help="ridge, logistic, knn, mlp on pooled features; cnn, attention on maps.")
    ] = "ridge",
    head_option: Annotated[
        list[str] | None,
        typer.Option(
            "--head-option",
            metavar="NAME=VALUE",
            help="More about the head: alpha=10, neighbours=9, rate=0.01, batch, width, depth, cells; repeatable.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of noise to average over.")] = 1,
    folds: Annotated[int, typer.Option(help="Folds of the search.")] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the items, of mlp, cnn and attention.")] = 30,
    holdout: Annotated[
        float | None,
        typer.Option(help="Share or number of items that judge; default: the data's own.", show_default=False),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column or .npz array that holds the class.", show_default=False)
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--count", help="Items to learn from at most.", show_default=False)
    ] = None,
    few: Annotated[bool, typer.Option("--few/--no-few", help="Draw the curve over few labels.")] = True,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Judge raw items and the untrained network, too.")
    ] = True,
    batch_size: Annotated[int, typer.Option(help="Items computed at once; changes speed and memory only.")] = 64,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Train a small head on frozen features, beside the baselines, and write the probe with a report.

    With --layer auto, block, time and pooling are chosen by cross-validation on the items to learn from; what judges
    takes no part. Writes probe.safetensors, probe.json, results.json and probe.html into --out, or the model's folder.
    """
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.config import resolve
    from undiffuse.tasks.features.few_labels import COUNTS
    from undiffuse.tasks.features.items import read_split
    from undiffuse.tasks.features.options import HeadOptions
    from undiffuse.tasks.features.study import COLUMNS, study_probe

    output = Output(json)
    options = asdict(resolve(HeadOptions, {"head": head, "epochs": epochs, "seed": seed}, head_option or []))
    seed = options.pop("seed")
    found = find_model(model, device, load=load)
    learned, judged = read_split(found.model, data, _options(found, data, holdout, label_column), n=n, seed=seed)
    output.say(f"{len(learned)} items to learn from, {len(judged)} that judge")
    with output.progress() as listener:
        study = study_probe(
            found.model,
            learned,
            judged,
            layers=read_layers(layer),
            t=read_times(t),
            pool=pool,
            draws=draws,
            seed=seed,
            folds=folds,
            few=COUNTS if few else (),
            baselines=baselines,
            batch_size=batch_size,
            listener=listener,
            **options,
        )
    output.table(COLUMNS, study.table(), (1, 3, 4))
    written = _write(found, study, data, out if out is not None else found.home)
    said = {"model": model, "data": data} | written | study.to_json()
    output.finish(f"The report is {written['report']}", said)


def _options(found: Found, data: str, holdout: float | None, label: str | None) -> Any:
    """Return how the data are read: as the model's recipe did, where they are those of its training."""
    from dataclasses import replace

    from undiffuse.data import DataOptions

    trained = None if found.recipe is None else found.recipe.data
    options = trained if trained is not None and trained.source == data else DataOptions(source=data)
    changes: dict[str, Any] = {} if holdout is None else {"holdout": holdout}
    return replace(options, **(changes if label is None else changes | {"label": label}))


def _write(found: Found, study: ProbeStudy, data: str, folder: Path) -> dict[str, Any]:
    import json

    from undiffuse.report import Report, probe_sections
    from undiffuse.training.folder import write_text
    from undiffuse.words import plain_json

    study.classifier.save(folder)
    results = folder / "results.json"
    write_text(results, json.dumps(plain_json(study.to_json()), indent=1) + "\n")
    report = Report(f"A probe of {found.name} on {data}", repr(found.model), probe_sections(study))
    return {"probe": folder, "results": results, "report": report.write(folder / "probe.html")}

"""`undiffuse bench-compose`: which text fits which picture, on tasks of one's own and on published benchmarks."""

from __future__ import annotations

import json as jsonlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.compose_tasks import WORDS, Count, Template, Times
from undiffuse.cli.judging import Loss, Questions, Spacing, WeightWord
from undiffuse.cli.shared import Device, Json, Load, ModelName, Resize, Seed

if TYPE_CHECKING:
    from undiffuse.analysis.compositionality.bench import ComposeReport
    from undiffuse.analysis.compositionality.task import Task
    from undiffuse.cli.output import Output
    from undiffuse.models.model import Model
    from undiffuse.tasks.classify.table import Weight

EPILOG = f"""{WORDS}
\b
Examples:
  undiffuse bench-compose digits labelled:digits
  undiffuse bench-compose digits labelled:digits --weight w.json --out w --compare bench-compose/digits/results.json
  undiffuse bench-compose digits labelled:digits --own self-bench/digits
  undiffuse bench-compose stable-diffusion/ winoground:data/winoground whats-up:data/whatsup
"""


def bench_compose(
    model: ModelName = "",
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks, see below.", show_default=False)] = None,
    times: Times = 30,
    spacing: Spacing = "t",
    weight: WeightWord = "uniform",
    loss: Loss = "l2",
    contrast: Annotated[
        bool | None,
        typer.Option(
            help="Subtract the error without a text; default: where pictures are compared.", show_default=False
        ),
    ] = None,
    resize: Resize = "crop",
    template: Template = None,
    n: Count = None,
    interval: Annotated[str, typer.Option(help="Of 95 %: wilson or normal.")] = "wilson",
    compare: Annotated[
        Path | None,
        typer.Option(help="results.json of another run: McNemar's test on the same items.", show_default=False),
    ] = None,
    own: Annotated[
        Path | None,
        typer.Option(help="Self-Bench of the model: how far the tasks lie from its own pictures.", show_default=False),
    ] = None,
    batch_size: Questions = 256,
    show: Annotated[bool, typer.Option("--list", help="List the benchmarks that are read, and stop.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results; default: bench-compose/MODEL.", show_default=False),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Measure how well a conditional model tells which text fits a picture, and which picture a text.

    Writes results.json and results.csv, anew after each task; the same command goes on where it stopped, and one with
    other tasks adds theirs.
    """
    from undiffuse.analysis.compositionality.bench import COLUMNS
    from undiffuse.analysis.compositionality.bench import bench_compose as measure
    from undiffuse.cli.compose_tasks import open_tasks
    from undiffuse.cli.failures import goes_on
    from undiffuse.cli.judging import read_weight
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model, safe_name
    from undiffuse.training.folder import make_folder

    output = Output(json)
    if show:
        _list(output)
        return
    weights = read_weight(weight)
    found = find_model(model, device, load=load)
    chosen = open_tasks(tasks or [], found, n, seed)
    other = None if compare is None else _read(compare)
    options: dict[str, Any] = {"times": times, "spacing": spacing, "loss": loss, "contrast": contrast, "seed": seed}
    options |= {"resize": resize, "template": template, "batch_size": batch_size}
    folder = make_folder(out or Path("bench-compose") / safe_name(model))
    asked = _asked(model, found.model, weights, interval, options | {"load": load})
    before = _before(folder, asked, output)
    output.say(f"{sum(map(len, chosen))} items, {len(chosen)} tasks; each text is tried at {times} times")
    with output.progress() as listener, goes_on(f"the tasks that were done are in {folder}"):
        report = measure(
            found.model,
            chosen,
            weight=weights,
            interval=interval,
            listener=listener,
            before=before,
            keep=partial(_write, before=before, folder=folder, asked=asked),
            **options,
        )
    output.table(COLUMNS, report.table(), (3, 4, 5, 7))
    tests = {} if other is None else _compared(report, other, output)
    gaps = {} if own is None else _gaps(found.model, report, chosen, own, options, output)
    written = _write(report, before, folder=folder, asked=asked)
    more = {"compared": tests, "gaps": gaps}
    output.finish(f"The figures are in {written['results']}", {**written, **report.to_json(), **more})


def _asked(name: str, model: Model, weights: Weight, interval: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what the figures depend on."""
    from undiffuse.analysis.compositionality.own_generations import fingerprint

    return {
        "model": name,
        "fingerprint": fingerprint(model),
        "weight": weights if isinstance(weights, str) else weights.to_json(),  # type: ignore[union-attr]
        "interval": interval,
        **{key: value for key, value in options.items() if key != "batch_size"},
    }


def _list(output: Output) -> None:
    from undiffuse.analysis.compositionality.layouts.table import LAYOUTS

    rows = [(name, layout.files, layout.source) for name, layout in LAYOUTS.items()]
    output.table(("layout", "what the folder holds", "source"), rows)
    output.result({"layouts": {name: vars(layout) for name, layout in LAYOUTS.items()}})


def _read(path: Path) -> ComposeReport:
    """Return an earlier report.

    Raises:
        DataError: There is none.
    """
    from undiffuse.analysis.compositionality.bench import ComposeReport
    from undiffuse.analysis.compositionality.task import read_json
    from undiffuse.errors import DataError

    try:
        return ComposeReport.from_json(read_json(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _before(folder: Path, asked: dict[str, Any], output: Output) -> ComposeReport | None:
    """Return the rows of an earlier run into this folder.

    Raises:
        UndiffuseError: They were measured with other settings.
    """
    from undiffuse.errors import UndiffuseError
    from undiffuse.words import plain_json

    path = folder / "results.json"
    if not path.is_file():
        return None
    report = _read(path)
    other = [key for key, value in plain_json(asked).items() if report.settings.get(key) != value]
    if other:
        raise UndiffuseError(
            f"{path} was measured with another {', '.join(other)}; give another --out, or remove it to begin anew."
        )
    output.say(f"{len(report.rows)} rows are there already")
    return report


def _compared(report: ComposeReport, other: ComposeReport, output: Output) -> dict[str, Any]:
    """Print McNemar's tests against another report, and return them."""
    found = report.compare(other)
    rows = [
        (task, measure, str(test.only_first), str(test.only_second), f"{test.p:.3g}")
        for (task, measure), test in found.items()
    ]
    output.table(("task", "measure", "only this right", "only the other", "p"), rows, (2, 3, 4))
    return {f"{task}, {measure}": vars(test) for (task, measure), test in found.items()}


def _gaps(
    model: Model, report: ComposeReport, tasks: list[Task], own: Path, options: dict[str, Any], output: Output
) -> dict[str, Any]:
    """Print how far tasks with right answers lie from a model's own pictures, and return it."""
    from undiffuse.analysis.compositionality.gap import domain_gap
    from undiffuse.analysis.compositionality.own_generations import joined, read_self_bench
    from undiffuse.analysis.compositionality.score import score_task

    with output.progress() as listener:
        base = score_task(model, joined(read_self_bench(own)), listener=listener, **options)
        found = {
            task.name: domain_gap(model, report.errors.get(task.name, task), base, listener=listener, **options)
            for task in tasks
            if task.type != "bias"
        }
    rows = [
        (name, f"{gap.frechet:.3g}", f"{gap.frechet_floor:.3g}", f"{gap.error_ratio:.2f}", f"{gap.real.best_time:.2f}")
        for name, gap in found.items()
    ]
    output.table(("task", "Frechet", "own halves", "error ratio", "best time"), rows, (1, 2, 3, 4))
    return {
        name: {
            "frechet": gap.frechet,
            "frechet_floor": gap.frechet_floor,
            "error_ratio": gap.error_ratio,
            "times": gap.real.times.tolist(),
            "accuracy": gap.real.accuracy.tolist(),
            "ratio_by_time": gap.ratio_by_time.tolist(),
        }
        for name, gap in found.items()
    }


def _write(report: ComposeReport, before: ComposeReport | None, folder: Path, asked: dict[str, Any]) -> dict[str, Path]:
    """Write the rows, with those of other tasks that lie there already."""
    from undiffuse.analysis.compositionality.bench import ComposeReport
    from undiffuse.training.folder import write_text

    results, table = folder / "results.json", folder / "results.csv"
    tasks, rows = dict(report.settings["tasks"]), report.rows
    if before is not None:
        rows += tuple(row for row in before.rows if row.task not in tasks)
        tasks = {**before.settings.get("tasks", {}), **tasks}
    whole = ComposeReport(rows, {**asked, "tasks": tasks})
    write_text(results, jsonlib.dumps(whole.to_json(), indent=1) + "\n")
    write_text(table, whole.csv())
    return {"results": results, "table": table}

"""`undiffuse evaluate`: figures of a model, each beside the same figure of real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.guides import GuidanceWords, read_guides
from undiffuse.cli.shared import Device, Json, Load, ModelName, Out, Seed, Solver, Steps

if TYPE_CHECKING:
    from undiffuse.cli.places import Found
    from undiffuse.metrics import Evaluation

EPILOG = """\b
Examples:
  undiffuse evaluate runs/photos
  undiffuse evaluate runs/digits --guidance 1,1.5,2,3
  undiffuse evaluate runs/digits --guidance 2,4 --threshold dynamic
  undiffuse evaluate runs/text other.txt --json
  undiffuse evaluate runs/text --reference runs/left-to-right
  undiffuse evaluate runs/cifar train.zip --held-out test.zip -n 5000
  undiffuse evaluate runs/photos --features dinov2:facebook/dinov2-small
"""

SECTIONS = {
    "What to compare": ("n", "metrics", "features", "held_out", "reference", "cache"),
    "How to sample": ("seed", "guidance", "negative", "autoguide", "threshold", "solver", "steps"),
}


def evaluate(
    model: ModelName,
    data: Annotated[
        str | None, typer.Argument(help="Real data; default: what the model was trained on.", show_default=False)
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--count", help="Samples; default: 1000, of texts 128.", show_default=False)
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scales to compare, such as 1,2,3.", show_default=False)
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A condition to move away from, as in sample.", show_default=False),
    ] = None,
    autoguide: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A weaker model to move away from.", show_default=False)
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Bound every answer: static, dynamic or none.", show_default=False)
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics by name, such as frechet,memorisation; default: by the data.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="What images, video and signals are compared in: classifier, classifier:FOLDER, perceptron, pca, "
            "motion, dinov2:FOLDER (or a name on the hub), inception:FILE.safetensors; auto: by the data."
        ),
    ] = "auto",
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", help="Real data not trained on; default: a part of DATA.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Texts: judge samples by this model, which reads from left to right: a run, or one of Hugging Face.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Keep features of real data by networks, and use those kept.")] = True,
    out: Out = None,
    seed: Seed = 0,
    solver: Solver = None,
    steps: Steps = None,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Compare a model with real data, a part of which it has not seen.

    "real data" in the table is the same figure for real items: as good as it gets. Writes metrics.json and report.html
    into the run's folder, or into --out.
    """
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model, open_data_of
    from undiffuse.metrics import evaluate as measure
    from undiffuse.models.parallel import SplitModel
    from undiffuse.models.processes import Processes

    output = Output(json)
    scales = read_scales(guidance)
    processes = Processes.join()
    with processes.agree():
        found = find_model(model, device, load=load)
    split = SplitModel(found.model, processes)
    if not processes.is_main:
        return split.serve()
    dataset, holdout = open_data_of(found, data)
    asked = GuidanceWords(negative or [], autoguide, threshold=threshold)
    sampling = {key: value for key, value in {"solver": solver, "steps": steps}.items() if value is not None}
    sampling |= read_guides(asked, found.model, 1, None, device)
    chosen = metrics.split(",") if metrics else "auto"
    with output.progress() as listener:
        result = measure(
            found.model if processes.size == 1 else split,
            dataset,
            holdout=holdout,
            n=n,
            seed=seed,
            guidance=scales,
            metrics=chosen,
            held_out=held_out,
            features=features,
            cache=cache,
            reference=reference,
            listener=listener,
            **sampling,
        )
    split.close()
    output.table(result.columns, _notes_once(result.table()), numeric=(1, 2, 3, 4))
    for line in result.warnings:
        output.warn(line)
    written = _write(found, result, out if out is not None else found.home)
    output.finish(f"The report is {written['report']}", result.to_json() | {"model": model} | written)


def read_scales(text: str | None) -> list[float] | None:
    """Return guidance scales from "1,2,3".

    Raises:
        ValueError: Something in it is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--guidance {text!r} holds something else than numbers; write 1,2,3.") from None


def _notes_once(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Leave out a note that stood in the table before."""
    seen: set[str] = set()
    shown = []
    for row in rows:
        shown.append(row if row[-1] not in seen else (*row[:-1], ""))
        seen.add(row[-1])
    return shown


def _write(found: Found, result: Evaluation, folder: Path) -> dict[str, Any]:
    """Write metrics.json and the report: that of the whole run where the folder is the run's own."""
    import json

    from undiffuse.report import Report, evaluation_section, run_report
    from undiffuse.training.folder import write_text

    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "metrics.json"
    write_text(figures, json.dumps(result.to_json(), indent=1) + "\n")
    if found.folder is not None and folder.resolve() == found.folder.resolve():
        return {"metrics": figures, "report": run_report(folder, evaluation=result)}
    report = Report(f"Evaluation of {found.name}", repr(found.model), [evaluation_section(result)])
    return {"metrics": figures, "report": report.write(folder / "report.html")}

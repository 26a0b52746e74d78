"""`undiffuse self-bench`: a model's own generations as a task of matching."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Device, Json, Load, ModelName, Seed, Solver, Steps

if TYPE_CHECKING:
    from undiffuse.analysis.compositionality.prompts import Prompt
    from undiffuse.cli.places import Found

EPILOG = """\b
Prompts are the classes of a model with labels, or a file: GenEval's evaluation_metadata.jsonl, whose prompts compete
with others of their kind, or a text file with a prompt a line, which compete with each other.
The filter is `classifier`, trained on the data that the model was trained on, or a CSV file with the columns file and
correct (1 or 0), filled in by people.
\b
Examples:
  undiffuse self-bench digits --samples 10 --filter classifier
  undiffuse bench-compose digits self-bench/digits
  undiffuse self-bench stable-diffusion/ --prompts evaluation_metadata.jsonl --guidance 9 --out own/
"""


def self_bench(
    model: ModelName,
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts; default: the model's classes.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 4,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 3.0,
    filter: Annotated[
        str | None, typer.Option(help="classifier, or a CSV file; default: keep all.", show_default=False)
    ] = None,
    solver: Solver = None,
    steps: Steps = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: self-bench/MODEL.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Let a model draw its own test: pictures of prompts, filtered, with what competes with each prompt.

    Writes pictures and a task for each kind of prompt; `undiffuse bench-compose` reads the folder. The same command
    goes on where it stopped.
    """
    from undiffuse.analysis.compositionality.own_generations import self_bench as draw
    from undiffuse.cli.failures import goes_on
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model, safe_name

    output = Output(json)
    found = find_model(model, device, load=load)
    sampling: dict[str, Any] = {"solver": solver, "steps": steps}
    folder = out or Path("self-bench") / safe_name(model)
    with output.progress() as listener, goes_on(f"the pictures that were drawn are in {folder}"):
        made = draw(
            found.model,
            folder,
            prompts=None if prompts is None else _prompts(prompts),
            samples=samples,
            guidance=guidance,
            filter=_filter(filter, found),
            seed=seed,
            listener=listener,
            **{key: value for key, value in sampling.items() if value is not None},
        )
    rows = [(task.name, task.group, str(len(task)), str(len(task.items[0].texts))) for task in made.tasks]
    output.table(("task", "group", "pictures", "candidates"), rows, (2, 3))
    if made.passed is not None:
        agreed = made.passed
        output.say(
            f"{agreed.hits} of {agreed.n} pictures passed the filter: {100 * agreed.value:.1f} % "
            f"({100 * agreed.low:.1f} to {100 * agreed.high:.1f})"
        )
    passed = None if made.passed is None else {**vars(made.passed), "value": made.passed.value}
    result = {"folder": made.folder, "drawn": made.drawn, "passed": passed, "tasks": {r[0]: int(r[2]) for r in rows}}
    output.finish(f"The tasks are in {made.folder}", result)


def _prompts(path: Path) -> list[Prompt]:
    from undiffuse.analysis.compositionality.prompts import geneval_prompts, text_prompts
    from undiffuse.errors import DataError

    if path.suffix == ".jsonl":
        return geneval_prompts(path)
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read prompts from {path}: {error}; expected a text file, a prompt a line.") from error
    return text_prompts([line.strip() for line in lines if line.strip()])


def _filter(word: str | None, found: Found) -> Any:
    """Return the filter that a word means."""
    from undiffuse.analysis.compositionality.own_generations import classifier_filter

    if word != "classifier":
        return word
    import torch

    from undiffuse.cli.places import open_data_of
    from undiffuse.data import split
    from undiffuse.errors import DataError
    from undiffuse.metrics.features import ClassifierFeatures

    dataset, holdout = open_data_of(found, None)
    part = split(dataset, holdout)[0]
    items = part.batch(torch.arange(len(part)))
    if "label" not in items["cond"]:
        raise DataError(f"{found.name} was trained without labels; give a CSV file as --filter.")
    data = part.spec.from_model(items["x"])
    return classifier_filter(ClassifierFeatures().fit(data, items["cond"]["label"]), found.model.spec.classes)

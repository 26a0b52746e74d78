"""`undiffuse classify`: the class of pictures or other data, by the condition under which they are denoised best."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.judging import Loss, Questions, WeightWord
from undiffuse.cli.shared import Device, Json, Load, MaxBad, ModelName, Out, Resize, Seed

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.cli.output import Output
    from undiffuse.cli.places import Found
    from undiffuse.tasks.classify.results import Classification

EPILOG = """\b
Examples:
  undiffuse classify digits
  undiffuse classify runs/photos new/*.png --times 10,40 --keep 4,1
  undiffuse classify stable-diffusion pets/ --labels cat,dog --template "a photo of a {}." --loss l1
  undiffuse classify runs/photos sorted/ --weight weights.json --race 4
A folder of folders holds classes, whose names are those of the folders; then the accuracy is told.
"""
SECTIONS = {
    "What competes": ("labels", "template", "condition", "cond"),
    "How often to ask": ("times", "keep", "order", "race", "antithetic", "batch_size", "seed"),
    "What counts": ("loss", "target", "weight", "contrast", "guidance", "method", "reduce", "temperature"),
    "The items": ("n", "resize", "max_bad"),
}
_LISTED = 20  # rows of the table on the terminal


@dataclass(frozen=True)
class Items:
    """What is to be classified.

    Args:
        data: Items in data units (n, *shape).
        names: A name for each.
        given: The class of each, as it is written; empty where it is not known.
        unreadable: Files that could not be read, with the reason of each.
    """

    data: Tensor
    names: list[str]
    given: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)


def classify(
    model: ModelName,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Pictures, folders of them, or one data set; default: what the training held out.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="A file with a class or prompt on each line, several of a class with | between, or words with commas; "
            "default: the model's classes.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='Prompt of a class, as "a photo of a {}."; again for several.', show_default=False),
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="Condition that the labels are of, where it is not clear.", show_default=False)
    ] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A condition that is the same for all classes.", show_default=False),
    ] = None,
    times: Annotated[
        str | None, typer.Option(help="Times known after each round, as 10,40.", show_default="10,40")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Classes that each round keeps, as 4,1.", show_default="the better half, at most 5, then 1"),
    ] = None,
    order: Annotated[
        str, typer.Option(help="corput: rounds go on; reference: the sets of the paper's code.")
    ] = "corput",
    race: Annotated[
        float | None,
        typer.Option(help="Give up what lags so many standard errors behind, such as 4.", show_default=False),
    ] = None,
    antithetic: Annotated[bool, typer.Option("--antithetic", help="Take each noise and its negative.")] = False,
    loss: Loss = "l2",
    target: Annotated[str, typer.Option(help="What the error is of: eps, x0, v or velocity.")] = "eps",
    weight: WeightWord = "uniform",
    contrast: Annotated[bool, typer.Option("--contrast", help="Subtract the error without a condition.")] = False,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance scale; 1 is none, and usually best.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option(help="errors; or by likelihoods: ode or elbo.")] = "errors",
    reduce: Annotated[
        str, typer.Option(help="Several prompts of a class: max or mean of their probabilities.")
    ] = "max",
    temperature: Annotated[float, typer.Option(help="Of the probabilities; larger is less sure.")] = 1.0,
    resize: Resize = "crop",
    max_bad: MaxBad = 0.05,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--count", help="Items of a data set, chosen by the seed; the first pictures.", show_default="all"
        ),
    ] = None,
    batch_size: Questions = 256,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Say which class or text fits each item best, and how probable each is. Nothing is trained.

    Writes classify.json, classify.csv and classify.html, where classes are known with accuracy and confusion, into the
    run's folder or --out.
    """
    from undiffuse.cli.conditions import one_of_each
    from undiffuse.cli.judging import read_weight
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.report.classification import class_labels
    from undiffuse.tasks.classify.run import classify as run

    output = Output(json)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"--temperature {temperature:g} must be above 0.")
    if n is not None and n < 1:
        raise ValueError(f"-n {n} must be at least 1.")
    chosen: dict[str, Any] = {"order": order, "race": race, "method": method, "reduce": reduce, "seed": seed}
    chosen |= {"times": _numbers("--times", times), "keep": _numbers("--keep", keep), "batch_size": batch_size}
    errors = {"loss": loss, "target": target, "antithetic": antithetic, "contrast": contrast}
    usual = {"loss": "l2", "target": "eps", "antithetic": False, "contrast": False}
    chosen |= errors if method == "errors" else {key: value for key, value in errors.items() if value != usual[key]}
    chosen["weight"] = read_weight(weight)
    found = find_model(model, device, load=load)
    items = _items(found, images or [], n, seed, resize, max_bad)
    if items.unreadable:
        output.warn(_left_out(items))
    output.say(f"{len(items.data)} item{'s' if len(items.data) != 1 else ''}")
    chosen |= {"candidates": _labels(labels), "template": template or None, "condition": condition}
    chosen |= {"cond": one_of_each(None, cond or [], found.model.spec), "wrap": _guided(guidance)}
    with output.progress() as listener:
        result = run(found.model, items.data, listener=listener, **chosen)
    truth = class_labels(items.given, result.class_names)
    if items.given and truth is None:
        output.warn("the classes of the items are not those that competed, so no accuracy is told.")
    _show(output, result, items, truth, temperature)
    written = _write(found, result, items, truth, temperature, out if out is not None else found.home)
    said = {"model": model, **_told(result, items, truth, temperature), **written}
    output.finish(f"The report is {written['report']}", said)


def _show(output: Output, result: Classification, items: Items, truth: Tensor | None, temperature: float) -> None:
    """Print the first items with their classes, and the figures."""
    from undiffuse.report.classification import COLUMNS, NUMERIC, figures, item_rows

    rows = item_rows(result, items.names, truth, temperature)
    shown = [column for column, name in enumerate(COLUMNS) if name != "given" or truth is not None]
    output.table([COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in rows[:_LISTED]], NUMERIC)
    if len(rows) > _LISTED:
        output.say(f"... and {len(rows) - _LISTED} more")
    output.pairs(figures(result, truth, temperature))


def _numbers(name: str, text: str | None) -> tuple[int, ...] | int | None:
    """Return "10,40" as numbers; a single one as it is, None where nothing was said.

    Raises:
        ValueError: Something else than whole numbers.
    """
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise ValueError(f"{name} {text!r} must be whole numbers with commas, such as 10,40.")
    return numbers[0] if len(numbers) == 1 else numbers


def _labels(text: str | None) -> list[Any] | None:
    """Return classes from a file or from words; several prompts of a class as a list.

    Raises:
        DataError: The file cannot be read or holds nothing.
    """
    from undiffuse.errors import DataError

    if text is None:
        return None
    path = Path(text)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the labels in {path}: {error}.") from error
    elif path.suffix == ".txt" or "/" in text:
        raise DataError(f"there is no file {path}; give a file with a class on each line, or words with commas.")
    else:
        lines = text.split(",")
    groups = [[part.strip() for part in line.split("|") if part.strip()] for line in lines]
    found = [group[0] if len(group) == 1 else group for group in groups if group]
    if not found:
        raise DataError(f"{text} names no classes; write one on each line.")
    return found


def _guided(guidance: float | None) -> Any:
    from undiffuse.guidance import ClassifierFreeGuidance

    return None if guidance is None else lambda denoiser: ClassifierFreeGuidance(denoiser, guidance)


def _items(found: Found, paths: list[Path], n: int | None, seed: int, resize: str, max_bad: float) -> Items:
    """Read pictures, or items of a data set.

    Raises:
        DataError: A path is missing, or more than the share `max_bad` of the files cannot be read.
        ValueError: An unknown way to resize, or no share.
    """
    from undiffuse.cli.files import find_files
    from undiffuse.images.read import PICTURE_SUFFIXES

    if resize not in ("crop", "pad", "stretch"):
        raise ValueError(f"--resize {resize!r} is unknown; use crop, pad or stretch.")
    if not 0 <= max_bad <= 1:
        raise ValueError(f"--max-bad {max_bad:g} must be a share from 0 to 1.")
    single = paths[0] if len(paths) == 1 else None
    pictures = found.model.spec.kind == "image" and any(
        path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES for path in paths
    )
    if not paths or (single is not None and not pictures):
        return _of_data_set(found, None if single is None else str(single), n, seed)
    files = find_files(paths, PICTURE_SUFFIXES, "pictures")
    return _of_files(found, files[:n], resize, max_bad, " ".join(map(str, paths)))


def _of_data_set(found: Found, source: str | None, n: int | None, seed: int) -> Items:
    from undiffuse.analysis.items import choose_items
    from undiffuse.cli.places import open_held_out

    dataset, _ = open_held_out(found, source)
    chosen = choose_items(dataset, n, seed)
    classes, labels = dataset.spec.classes, chosen.cond.get("label")
    given = [] if labels is None or not classes else [classes[number] for number in labels.tolist()]
    return Items(chosen.data, [f"item {number}" for number in chosen.index.tolist()], given)


def _of_files(found: Found, files: list[tuple[Path, str]], resize: Any, max_bad: float, where: str) -> Items:
    import torch

    from undiffuse.data.dataset import refuse_bad
    from undiffuse.data.picture_source import attempt
    from undiffuse.images.units import picture_item

    called = {str(path): name for path, name in files}
    read, unreadable = attempt(lambda path: picture_item(Path(path), found.model.spec, resize), called)
    refuse_bad(unreadable, len(called), max_bad, where, "--max-bad")
    names = [called[path] for path in read]
    nested = all("/" in Path(name).as_posix() for name in names)
    given = [Path(name).parts[0] for name in names] if nested else []
    return Items(torch.stack(list(read.values())), names, given, unreadable)


def _left_out(items: Items) -> str:
    from undiffuse.data.dataset import Problem, some_problems

    count, listed = len(items.unreadable), some_problems([Problem(*pair) for pair in items.unreadable.items()])
    return f"{count} of {count + len(items.data)} files cannot be read and are left out: {listed.rstrip('.')}."


def _told(result: Classification, items: Items, truth: Tensor | None, temperature: float) -> dict[str, Any]:
    """Return the result as plain values, with the items' names and, where it is known, the accuracy."""
    found = result.to_json(temperature) | {"items": items.names, "unreadable": items.unreadable}
    if truth is not None:
        share = result.accuracy(truth)
        found |= {"accuracy": share.value, "accuracy_interval": [share.low, share.high]}
        found |= {"confusion": result.confusion(truth).tolist()}
        found["given"] = items.given
    return found


def _write(
    found: Found, result: Classification, items: Items, truth: Tensor | None, temperature: float, folder: Path
) -> dict[str, Any]:
    """Write classify.json, classify.csv and classify.html and return where."""
    import csv
    import io
    import json

    from undiffuse.report import Report
    from undiffuse.report.classification import classification_section
    from undiffuse.training.folder import write_text
    from undiffuse.words import plain_json

    folder.mkdir(parents=True, exist_ok=True)
    told = _told(result, items, truth, temperature) | {"table": result.table.to_json()}
    write_text(folder / "classify.json", json.dumps(plain_json(told)) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", "class", "tied", "given", *(f"p({name})" for name in result.class_names)])
    parts = zip(
        items.names, result.names, result.ties.tolist(), result.probabilities(temperature).tolist(), strict=True
    )
    for number, (name, label, tied, shares) in enumerate(parts):
        given = items.given[number] if items.given else ""
        writer.writerow([name, label, int(tied), given, *(f"{share:.6g}" for share in shares)])
    write_text(folder / "classify.csv", text.getvalue())
    section = classification_section(result, items.names, items.data, found.model.spec, truth, temperature)
    page = Report(f"Classes by {found.name}", repr(found.model), [section]).write(folder / "classify.html")
    return {"classify": folder / "classify.json", "csv": folder / "classify.csv", "report": page}

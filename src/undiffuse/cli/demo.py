"""`undiffuse demo`: two small models, trained, sampled and judged within six minutes, on one page.

The time is a budget: a few steps tell the speed of the machine, and the number of steps follows from it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undiffuse.cli.shared import Json, Seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from undiffuse.cli.output import Output
    from undiffuse.metrics import Evaluation
    from undiffuse.models import Model
    from undiffuse.report import Section

_DIGITS_SECONDS, _TEXT_SECONDS = 135.0, 90.0
_GUIDANCE = 2.0
_ROWS = 8  # samples of each class
_EVALUATED = 500
_TEXTS = 32  # samples of text judged: drawing one takes as many network calls as it has characters


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("demo"),
    data: Annotated[
        str, typer.Option(metavar="FILE", help="Text to learn.", show_default="the built-in prose")
    ] = "prose",
    digits_seconds: Annotated[float, typer.Option(help="Time to train the digits.")] = _DIGITS_SECONDS,
    text_seconds: Annotated[float, typer.Option(help="Time to train the text model.")] = _TEXT_SECONDS,
    samples: Annotated[int, typer.Option("-n", "--count", help="Digits drawn for each figure.")] = _EVALUATED,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train on real digits and on text, sample, evaluate, and write one HTML report with pictures."""
    from undiffuse.cli.output import Output

    output = Output(json)
    started = time.monotonic()
    digits_figures, digits = _digits(output, out / "digits", digits_seconds, samples, seed)
    text_figures, letters = _text(output, out / "text", data, text_seconds, seed)
    seconds = time.monotonic() - started
    path = _page(out, seconds, [*digits, *letters])
    result = {"report": path, "seconds": seconds, "digits": digits_figures, "text": text_figures}
    output.say(f"The models are {out / 'digits'} and {out / 'text'}.")
    output.finish(f"The report is {path}", result)


def _digits(output: Output, folder: Path, seconds: float, n: int, seed: int) -> tuple[dict[str, object], list[Section]]:
    """Train the digits, draw each class with and without guidance, and judge both."""
    from undiffuse.metrics import evaluate
    from undiffuse.report import Section, evaluation_section

    model = _trained(output, "digits", "digits", folder, seconds, seed)
    section = Section("Digits: samples of each class")
    section.text("One column per class. The same noise makes both pictures; guidance trades variety for clarity.")
    for scale, caption in ((1.0, "without guidance"), (_GUIDANCE, f"with guidance {_GUIDANCE:g}")):
        section.picture(_class_grid(model, scale, seed), caption)
    with output.progress() as listener:
        figures = evaluate(model, "digits", n=n, seed=seed, guidance=(1.0, _GUIDANCE), listener=listener)
    _show(output, "Digits", figures)
    return figures.to_json(), [section, evaluation_section(figures, "Digits: figures"), *_course(folder, "Digits")]


def _text(
    output: Output, folder: Path, source: str, seconds: float, seed: int
) -> tuple[dict[str, object], list[Section]]:
    """Train the text model and judge it; its samples come with the figures."""
    from undiffuse.metrics import evaluate
    from undiffuse.report import evaluation_section

    model = _trained(output, source, "text", folder, seconds, seed)
    with output.progress() as listener:
        figures = evaluate(model, source, n=_TEXTS, seed=seed, listener=listener)
    _show(output, "Text", figures)
    name = Path(source).stem
    return figures.to_json(), [
        evaluation_section(figures, f"Text ({name}): figures and samples"),
        *_course(folder, "Text"),
    ]


def _trained(output: Output, source: str, recipe: str, folder: Path, seconds: float, seed: int) -> Model:
    """Train by a shipped recipe for as many of its steps as the time allows.

    Raises:
        Interrupted: The user stopped it.
    """
    from undiffuse.cli.failures import Interrupted
    from undiffuse.training.recipe import recipe_layer
    from undiffuse.training.run import train

    steps = _steps(source, recipe, folder, seconds, seed)
    output.say(f"\nTraining on {source}: {steps} steps, about {seconds:.0f} s at most.", "bold")
    warmup = min(recipe_layer(recipe)["train"]["warmup"], steps // 10)  # a slow machine makes too few steps for more
    overrides = (f"train.steps={steps}", f"train.warmup={warmup}", f"train.seed={seed}")
    with output.progress() as listener:
        run = train(source, recipe, out=folder, overrides=overrides, listener=listener)
    if not run.finished:
        raise Interrupted(f"{run.step} steps are in {folder}; go on with: undiffuse demo --out {folder.parent}")
    return run.model


def _steps(source: str, recipe: str, folder: Path, seconds: float, seed: int) -> int:
    """Return the steps of a run begun before, or else those that fit the time on this machine, the recipe's at most."""
    from undiffuse.cli.places import read_run_recipe
    from undiffuse.training.pace import steps_within
    from undiffuse.training.recipe import recipe_layer

    begun = read_run_recipe(folder)
    if begun is not None:
        return begun.train.steps
    fitting = steps_within(source, recipe, seconds, [f"train.seed={seed}"])
    return min(fitting, recipe_layer(recipe)["train"]["steps"])


def _class_grid(model: Model, scale: float, seed: int) -> NDArray[np.uint8]:
    """Return a picture with one column per class, uint8 (H, W, C)."""
    from undiffuse.images import image_grid

    classes = len(model.spec.classes)
    labels = [number % classes for number in range(_ROWS * classes)]
    drawn = model.sample(len(labels), seed=seed, cond={"label": labels}, guidance=scale)
    return image_grid(drawn, columns=classes, scale=5, bounds=model.spec.range or (-1.0, 1.0))


def _course(folder: Path, name: str) -> list[Section]:
    """Return how the training went and how to repeat it."""
    from undiffuse.report.run import making_section, training_section

    found = [section for section in (training_section(folder), making_section(folder)) if section is not None]
    for section in found:
        section.title = f"{name}: {section.title[0].lower()}{section.title[1:]}"
    return found


def _show(output: Output, title: str, figures: Evaluation) -> None:
    output.say(f"\n{title}: figures", "bold")
    output.table(figures.columns[:-1], [row[:-1] for row in figures.table()], numeric=(1, 2, 3, 4))


def _page(out: Path, seconds: float, sections: list[Section]) -> Path:
    from undiffuse.report import Report

    subtitle = f"Two diffusion models, trained, sampled and judged in {seconds / 60:.1f} minutes on this machine"
    return Report("undiffuse demo", subtitle, sections).write(out / "report.html")

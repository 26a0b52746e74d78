"""What words of the command line mean as tasks of matching, and the options of the commands that ask them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from undiffuse.analysis.compositionality.task import Task
    from undiffuse.cli.places import Found

Times = Annotated[int, typer.Option("--times", help="Noise levels at which each candidate is tried.")]
Template = Annotated[
    str | None, typer.Option("--template", help="Makes captions of texts: 'a photo of a {}.'.", show_default=False)
]
Count = Annotated[
    int | None,
    typer.Option("-n", "--count", help="Items of each task, chosen by the seed; default: all.", show_default=False),
]
LABELLED, TWO_DIGITS = "labelled", "two-digits"
WORDS = """\b
A task is one of:
  FOLDER or FILE       a folder with task.json, such a file, or what undiffuse self-bench wrote
  LAYOUT:FOLDER        a published benchmark as its authors lay it out; --list lists them
  labelled:DATA        which class: labelled data, cropped to the model's size; of its training data what was held out
  two-digits           pictures of two digits, made on the spot, for models trained on undiffuse's two digits
"""


def open_tasks(words: Sequence[str], found: Found, limit: int | None, seed: int) -> list[Task]:
    """Return the tasks that words mean, `limit` items of each, chosen by the seed.

    Raises:
        ValueError: No words, or an unknown layout.
        DataError: Nothing there, or nothing that can be read; the message says what is expected.
    """
    if not words:
        raise ValueError("name a task: a folder with task.json, LAYOUT:FOLDER, labelled:DATA or two-digits.")
    tasks = [task for word in words for task in _open(word, found)]
    return [_some(task, limit, seed) for task in tasks]


def _open(word: str, found: Found) -> list[Task]:
    from undiffuse.analysis.compositionality.layouts.table import open_layout
    from undiffuse.analysis.compositionality.own_generations import read_self_bench
    from undiffuse.analysis.compositionality.task import FILE, read_task
    from undiffuse.analysis.compositionality.two_digits import two_digit_tasks
    from undiffuse.errors import DataError

    path = Path(word).expanduser()
    if path.exists():
        is_many = path.is_dir() and not (path / FILE).is_file() and any(path.glob(f"*/{FILE}"))
        if path.is_dir() and not is_many and not (path / FILE).is_file():
            raise DataError(
                f"{word} holds no {FILE}, so it is no task; say {LABELLED}:{word} for pictures in folders of classes, "
                f"LAYOUT:{word} for a published benchmark."
            )
        return read_self_bench(path) if is_many else [read_task(path)]
    if word == TWO_DIGITS:
        return [*two_digit_tasks(), *two_digit_tasks(unseen=True)]
    layout, colon, folder = word.partition(":")
    if colon and layout == LABELLED:
        return [_labelled(found, folder)]
    return open_layout(layout, folder) if colon else [read_task(path)]


def _labelled(found: Found, source: str) -> Task:
    from undiffuse.analysis.compositionality.labelled import labelled_task
    from undiffuse.analysis.items import choose_items
    from undiffuse.cli.places import open_held_out
    from undiffuse.errors import DataError

    dataset, _ = open_held_out(found, source)
    items = choose_items(dataset, None, 0)
    if "label" not in items.cond:
        raise DataError(f"{source} has no labels; a labelled task needs folders of classes, or a label column.")
    return labelled_task(items.data, items.cond["label"], found.model.spec.classes, source)


def _some(task: Task, limit: int | None, seed: int) -> Task:
    from undiffuse.noise import permutation

    if limit is not None and limit < 1:
        raise ValueError(f"-n {limit} must be at least 1.")
    if limit is None or limit >= len(task):
        return task
    return task.take(permutation(seed, 0, len(task))[:limit].sort().values.tolist())

"""The section of a report that shows a classification: figures, confusion, the surest and the least sure items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.report.elements import Section
from undiffuse.report.plots import heat_map, lines

if TYPE_CHECKING:
    from undiffuse.spec import DataSpec
    from undiffuse.tasks.classify.results import Classification

_SHOWN, _ROWS, _MOST = 24, 200, 25
COLUMNS = ("item", "class", "probability", "confidence", "second", "given")
NUMERIC = (2, 3)


def item_rows(
    result: Classification, names: Sequence[str], truth: Tensor | None, temperature: float
) -> list[list[str]]:
    """Return a row of cells for each item, to go under `COLUMNS`."""
    probabilities = result.probabilities(temperature)
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, :2].tolist()
    labels, ties, sure = result.label.tolist(), result.ties.tolist(), result.confidence.tolist()
    rows = []
    for item, name in enumerate(names):
        label = labels[item]
        second = next((number for number in order[item] if number != label), None)
        rows.append(
            [
                name,
                result.class_names[label] + (" (tied)" if ties[item] else ""),
                f"{float(probabilities[item, label]):.3f}",
                "" if sure[item] != sure[item] else f"{sure[item]:.1f}",
                "" if second is None else f"{result.class_names[second]} {float(probabilities[item, second]):.3f}",
                "" if truth is None else result.class_names[int(truth[item])],
            ]
        )
    return rows


def figures(result: Classification, truth: Tensor | None, temperature: float) -> dict[str, str]:
    """Return names and values of what was found."""
    found = {"items": str(len(result)), "classes": str(len(result.class_names))}
    if truth is not None:
        found["accuracy"] = str(result.accuracy(truth))
    most = float(result.probabilities(temperature).amax(1).mean())
    found |= {"mean probability of the class": f"{most:.3f}", "evaluations per item": str(result.nfe)}
    if int(result.ties.sum()):
        found["ties"] = str(int(result.ties.sum()))
    return found


def classification_section(
    result: Classification,
    names: Sequence[str],
    items: Tensor | None = None,
    spec: DataSpec | None = None,
    truth: Tensor | None = None,
    temperature: float = 1.0,
    title: str = "Classification",
) -> Section:
    """Return a section with everything a classification found.

    Args:
        result: What `classify` returned.
        names: Of the items.
        items: The items in data units (B, *shape); pictures are shown.
        spec: What one item is.
        truth: Classes of the items (B,), where they are known.
        temperature: Of the probabilities.
        title: Heading of the section.
    """
    section = Section(title).pairs(figures(result, truth, temperature))
    made = {key: value for key, value in result.settings.items() if value not in (None, False)}
    section.text("Computed with " + ", ".join(f"{key} {value}" for key, value in made.items()) + ".", "note")
    for note in result.notes:
        section.text(note + ".", "warning")
    _confusion(section, result, truth)
    _by_time(section, result, truth)
    if items is not None and spec is not None and spec.kind == "image":
        _pictures(section, result, names, items, spec, truth)
    shown = item_rows(result, names, truth, temperature)
    section.table(COLUMNS, shown[:_ROWS], NUMERIC)
    if len(shown) > _ROWS:
        section.text(f"The first {_ROWS} of {len(shown)} items; the others are in classify.csv.", "note")
    return section.text(
        "The class under which an item is denoised best wins; all classes meet the same times and noise. Probabilities "
        "take the score, times the number of elements, as a log-likelihood, which uniform weights of times only "
        "resemble. Confidence is the lead over the next class in standard errors over times.",
        "note",
    )


def _confusion(section: Section, result: Classification, truth: Tensor | None) -> None:
    if truth is None or len(result.class_names) > _MOST:
        return
    counts = result.confusion(truth).double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    section.figure(
        heat_map(shares.numpy(), result.class_names, result.class_names),
        "Share of each given class (rows) that was put into each class (columns).",
    )


def _by_time(section: Section, result: Classification, truth: Tensor | None) -> None:
    """Draw how well each time alone tells the classes apart, where the whole table was measured often enough."""
    errors, times = result.table.errors, result.table.times
    whole = errors.isnan().logical_not().all(1)  # (B, n)
    counted = whole.all(0)
    if truth is None or int(counted.sum()) < 3:
        return
    classes = result.table.classes[errors[..., counted].argmin(1)]  # (B, n)
    right = (classes == truth.cpu()[:, None]).double().mean(0)
    section.figure(
        lines({"one time alone": (times[counted].tolist(), right.tolist())}, "time", "accuracy"),
        "Accuracy by the error at one time alone, of the times at which every class was measured.",
    )


def _pictures(
    section: Section, result: Classification, names: Sequence[str], items: Tensor, spec: DataSpec, truth: Tensor | None
) -> None:
    """Show the surest, the least sure and the wrong items, each row of pictures with their names in its order."""
    order = result.confidence.nan_to_num(nan=0.0).argsort(descending=True)
    half = max(1, len(order) // 2)
    shown = {"surest, the surest first": order[:half], "least sure, the least sure first": order.flip(0)[:half]}
    if truth is not None:
        wrong = (result.label.cpu() != truth.cpu()).nonzero()[:, 0]
        shown |= {"put into another class than given": wrong} if len(wrong) else {}
    labels = result.names
    for title, numbers in shown.items():
        chosen = numbers[:_SHOWN]
        said = ", ".join(f"{names[item]} as {labels[item]}" for item in chosen.tolist())
        section.picture(_grid(items[chosen], spec), f"The items {title}: {said}.")


def _grid(items: Tensor, spec: DataSpec) -> Any:
    from undiffuse.images import image_grid

    low, high = spec.range or (float(items.min()), float(items.max()))
    picture: np.ndarray = image_grid(items.float().cpu(), 12, bounds=(low, high if high > low else low + 1.0))
    return picture


def class_labels(given: Sequence[str], class_names: Sequence[str]) -> Tensor | None:
    """Return numbers of classes by name, int64 (B,); None where a name is no class."""
    numbers = {name: number for number, name in reversed(list(enumerate(class_names)))}  # of equal names the first
    if not given or any(name not in numbers for name in given):
        return None
    return torch.tensor([numbers[name] for name in given])

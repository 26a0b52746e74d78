"""How well features serve tasks that the model was not trained for, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.events import Listener, Message, silent
from undiffuse.models.model import Model
from undiffuse.tasks.features.baselines import RawItems, untrained
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.few_labels import few_label_curve
from undiffuse.tasks.features.options import CLOSED, HeadOptions
from undiffuse.tasks.features.probing import Encoder, accuracy, fit_head, head_inputs, number_labels
from undiffuse.tasks.features.search import probe_search

HEADS = ("ridge", "attention")


@dataclass(frozen=True)
class Target:
    """A task: items in model units (n, *) and labels, to learn from and to judge by.

    Args:
        x, y: To learn from, and to choose features by.
        test_x, test_y: To judge by; looked at once, at the end.
    """

    x: Tensor
    y: Any
    test_x: Tensor
    test_y: Any


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """One encoder with one head on one target.

    Args:
        target: Name of the task.
        encoder: "model", "untrained network", "raw items", or the name of another.
        chosen: Block, time and pooling in words; empty where there is nothing to choose.
        head: Name of the head.
        accuracy: On the test items, with all labels.
        few: The same with `few_labels` labels of each class, for heads in closed form; None else.
    """

    target: str
    encoder: str
    chosen: str
    head: str
    accuracy: float
    few: float | None


COLUMNS = ("task", "features", "chosen on the training items", "head", "accuracy", "few labels")


def transfer(
    model: Model,
    targets: Mapping[str, Target],
    *,
    heads: Sequence[str] = HEADS,
    few_labels: int = 10,
    repeats: int = 10,
    seed: int = 0,
    baselines: bool = True,
    others: Mapping[str, Encoder] | None = None,
    listener: Listener = silent,
    search: Mapping[str, Any] | None = None,
) -> list[TransferRow]:
    """Choose block, time and pooling on each target's training items, and judge heads there on its test items.

    The network before training and the raw items stand beside. Both networks choose for themselves, so that neither is
    given the other's best block.

    Args:
        model: The model.
        targets: Tasks by name.
        heads: Heads to train; those that read maps read the chosen block without pooling.
        few_labels: Labels of each class of the other figure.
        repeats: Choices of items for it.
        seed: Of everything.
        baselines: Add the baselines. Networks that cannot be built anew (of diffusers) go without theirs.
        others: Further encoders by name, such as a vision model of another library behind `Encoder`.
        listener: Hears about progress.
        search: Further arguments of `probe_search`: times, pools, layers, folds, n.

    Raises:
        ValueError: No target, or see `probe_search`.
    """
    if not targets:
        raise ValueError("transfer needs a target: a task with items and labels to learn from and to judge by.")
    models: dict[str, Model] = {"model": model}
    if baselines:
        try:
            models["untrained network"] = untrained(model)
        except UndiffuseError as error:
            listener(Message("transfer", str(error), "warning"))
    rows: list[TransferRow] = []
    for name, target in targets.items():
        for which, held in models.items():
            settings: dict[str, Any] = {"seed": seed, "listener": listener, **(search or {})}
            best = probe_search(held, target.x, target.y, **settings).best
            encoder = FeatureEncoder(held, best.layer, best.t, pool=best.pool, seed=seed)
            chosen = f"{best.layer}, t = {best.t:g}, pool {best.pool}"
            rows += _judge(name, which, chosen, encoder, target, heads, few_labels, repeats, seed)
        given: dict[str, Encoder] = {"raw items": RawItems()} if baselines else {}
        for which, encoder_of in (given | dict(others or {})).items():
            rows += _judge(name, which, "", encoder_of, target, heads, few_labels, repeats, seed)
    return rows


def cells(rows: Sequence[TransferRow]) -> list[tuple[str, ...]]:
    """Return rows as cells under `COLUMNS`."""
    return [
        (
            row.target,
            row.encoder,
            row.chosen,
            row.head,
            f"{row.accuracy:.1%}",
            "" if row.few is None else f"{row.few:.1%}",
        )
        for row in rows
    ]


def _judge(
    name: str,
    which: str,
    chosen: str,
    encoder: Encoder,
    target: Target,
    heads: Sequence[str],
    few_labels: int,
    repeats: int,
    seed: int,
) -> list[TransferRow]:
    classes, labels = number_labels(target.y)
    test = number_as(target.test_y, classes)
    rows = []
    for word in heads:
        options = HeadOptions(head=word, seed=seed)  # type: ignore[arg-type]
        inputs = head_inputs(encoder, target.x, options)
        judged = head_inputs(encoder, target.test_x, options)
        right = accuracy(fit_head(inputs, labels, len(classes), options), judged, test)
        few = None
        if options.head in CLOSED:
            given: dict[str, Any] = {"counts": (few_labels,), "repeats": repeats, "seed": seed, "options": options}
            few = few_label_curve((inputs, labels), (judged, test), **given)[0].accuracy
        rows.append(TransferRow(target=name, encoder=which, chosen=chosen, head=options.head, accuracy=right, few=few))
    return rows


def number_as(y: Any, classes: Sequence[Any]) -> Tensor:
    """Return the number of each label among `classes`, int64 (n,).

    Raises:
        ValueError: A label is not among them.
    """
    import torch

    values = y.tolist() if hasattr(y, "tolist") else list(y)
    place = {value: number for number, value in enumerate(classes)}
    unknown = next((value for value in values if value not in place), None)
    if unknown is not None:
        raise ValueError(f"label {unknown!r} is not among the labels learned from: {', '.join(map(str, classes))}.")
    return torch.tensor([place[value] for value in values], dtype=torch.int64)

"""What a model is asked to make of itself, and among which descriptions its pictures are then told apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undiffuse.analysis.compositionality.layouts.files import rows
from undiffuse.analysis.compositionality.task import Text
from undiffuse.errors import DataError
from undiffuse.models.conditions import class_turns
from undiffuse.spec import DataSpec

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_COUNTS = ("one", "two", "three", "four")
_PLACES = ("left of", "right of", "above", "below")
_MOST_COMBINATIONS = 4096


@dataclass(frozen=True)
class Prompt:
    """A description to draw from, and the descriptions that compete when the picture is read again.

    Args:
        task: Name of the task that its pictures belong to.
        group: What the task asks about.
        candidates: All descriptions.
        answer: Which of them the picture is drawn from.
    """

    task: str
    group: str
    candidates: tuple[Text, ...]
    answer: int

    @property
    def text(self) -> Text:
        """The description to draw from."""
        return self.candidates[self.answer]


def prompts_of(spec: DataSpec) -> list[Prompt]:
    """Return a prompt for each class of a model, or for each combination of its labels.

    Raises:
        ValueError: The model has no labels, or too many combinations of them.
    """
    labels = {name: part.classes for name, part in spec.conditions.items() if part.kind == "label"}
    if not labels:
        raise ValueError(
            f"say what to draw: the model has the conditions {', '.join(spec.conditions) or 'none'} and no labels to "
            "take turns; give prompts."
        )
    if list(labels) == ["label"]:
        names = labels["label"]
        return [Prompt("own-classes", "object", names, number) for number in range(len(names))]
    count = 1
    for classes in labels.values():
        count *= len(classes)
    if count > _MOST_COMBINATIONS:
        raise ValueError(
            f"the labels have {count} combinations; give prompts, for at most {_MOST_COMBINATIONS} are drawn."
        )
    turns = class_turns(spec, count)
    texts = tuple({name: labels[name][turns[name][i]] for name in labels} for i in range(count))
    return [Prompt("own-combinations", "complex", texts, number) for number in range(count)]


def geneval_prompts(path: str | Path) -> list[Prompt]:
    """Return the prompts of GenEval's `evaluation_metadata.jsonl` with candidates of their kind.

    single_object and two_object choose among all objects and pairs of the file; colors among ten colours of the object;
    counting among one to four; position among four places; color_attr among all pairs of two colours.

    Raises:
        DataError: The file is missing or holds something else.

    Source: Ghosh et al. 2023, "GenEval", arXiv:2310.11513; the candidates are those of arXiv:2505.17955, section 4.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise DataError(f"there is no {place}; expected GenEval's evaluation_metadata.jsonl, a JSON object a line.")
    try:
        entries = rows(place)
        known = {tag: list(dict.fromkeys(e["prompt"] for e in entries if e["tag"] == tag)) for tag in _WHOLE}
        return [_geneval(entry, known) for entry in entries]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{place} is not laid out as GenEval's evaluation_metadata.jsonl ({error!r}).") from error


_WHOLE = {"single_object": "object", "two_object": "object"}  # tags whose candidates are all prompts of the file
_GENEVAL = {**_WHOLE, "counting": "counting", "colors": "attribute", "position": "position", "color_attr": "attribute"}


def _geneval(entry: dict[str, Any], known: dict[str, list[str]]) -> Prompt:
    tag, right = entry["tag"], entry["prompt"]
    if tag not in _GENEVAL:
        raise ValueError(f"tag {tag!r} is unknown")
    texts = known[tag] if tag in known else [right, *_others(tag, entry["include"], right)]
    found = list(dict.fromkeys(texts))
    return Prompt(f"own-{tag.replace('_', '-')}", _GENEVAL[tag], tuple(found), found.index(right))


def _others(tag: str, include: Sequence[dict[str, Any]], right: str) -> list[str]:
    """Return the competing prompts, in the words of GenEval's own."""
    first = include[0]["class"]
    if tag == "counting":
        plural = right.split(" ", 4)[-1]  # a photo of NUMBER THINGS
        return [f"a photo of {count} {plural if count != 'one' else first}" for count in _COUNTS]
    if tag == "colors":
        return [f"a photo of {_article(colour)} {first}" for colour in _COLOURS]
    second = include[1]["class"]
    if tag == "position":
        # Not in swapped order: "a cat right of a dog" is as true as "a dog left of a cat".
        return [f"a photo of {_article(second)} {place} {_article(first)}" for place in _PLACES]
    colours = itertools.permutations(_COLOURS, 2)
    return [f"a photo of {_article(a)} {first} and {_article(b)} {second}" for a, b in colours]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def text_prompts(texts: Sequence[Text], task: str = "own-texts", group: str = "complex") -> list[Prompt]:
    """Return a prompt for each of some texts, all of which compete.

    Raises:
        ValueError: Fewer than two texts, or one that comes twice.
    """
    words = [str(text) for text in texts]
    if len(texts) < 2 or len(set(words)) < len(words):
        raise ValueError("prompts must be two or more, each once: they compete with each other.")
    return [Prompt(task, group, tuple(texts), number) for number in range(len(texts))]

"""Two digits side by side, with conditions that say which is where: a compositional world that needs no download.

Pictures (1, 8, 16) are made of the digits of scikit-learn, each bright or at half its brightness. A model is told
the digit and the tone of both places, and what it understands shows on pairs that its training left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.compositionality.task import Item, Task
from undiffuse.data.dataset import TensorDataset
from undiffuse.data.holdout import split
from undiffuse.data.open import open_data
from undiffuse.noise import KeyedNoise, permutation
from undiffuse.spec import ConditionSpec, DataSpec

TONES = ("bright", "dark")
DIGITS = tuple(str(digit) for digit in range(10))
_DARK = 0.5  # brightness of a dark digit
_LEFT_OUT = 0.2

SPEC = DataSpec(
    kind="image",
    shape=(1, 8, 16),
    range=(0.0, 16.0),
    cond={
        "left": ConditionSpec(kind="label", classes=DIGITS),
        "right": ConditionSpec(kind="label", classes=DIGITS),
        "left_tone": ConditionSpec(kind="label", classes=TONES),
        "right_tone": ConditionSpec(kind="label", classes=TONES),
    },
)
"""What one picture is, and what a model is told of it."""


@dataclass(frozen=True)
class Scene:
    """What stands in a picture.

    Args:
        left: Digit on the left, 0 to 9.
        right: Digit on the right.
        left_tone: 0 bright, 1 dark.
        right_tone: Likewise.
    """

    left: int
    right: int
    left_tone: int = 0
    right_tone: int = 0

    @property
    def condition(self) -> dict[str, Any]:
        """The scene in the words of `SPEC`."""
        return {
            "left": DIGITS[self.left],
            "right": DIGITS[self.right],
            "left_tone": TONES[self.left_tone],
            "right_tone": TONES[self.right_tone],
        }

    @property
    def bag(self) -> tuple[str, ...]:
        """Its words without their order: all that a bag-of-words model knows of it."""
        return tuple(sorted(self.condition.values()))


def pairs(seed: int = 0, left_out: float = _LEFT_OUT) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the ordered pairs of digits that training sees, and those that it does not, of all 100.

    A pair and its mirror image are left out together, so that neither order of an unseen pair was ever seen; every
    digit is still seen in both places.
    """
    unordered = [(a, b) for a in range(10) for b in range(a + 1, 10)]
    count = round(len(unordered) * left_out)
    hidden = {unordered[int(i)] for i in permutation(seed, 0, len(unordered))[:count]}
    every = [(a, b) for a in range(10) for b in range(10)]
    seen = [pair for pair in every if tuple(sorted(pair)) not in hidden]
    return seen, [pair for pair in every if tuple(sorted(pair)) in hidden]


def scenes(choices: Sequence[tuple[int, int]], n: int, seed: int = 0) -> list[Scene]:
    """Draw `n` scenes of the pairs in `choices`, tones by chance."""
    drawn = KeyedNoise(seed, range(n)).uniform("class", 0, (3,)).tolist()
    return [Scene(*choices[int(pair * len(choices))], int(left > 0.5), int(right > 0.5)) for pair, left, right in drawn]


def draw(what: Sequence[Scene], seed: int = 0, held_out: bool = False) -> Tensor:
    """Return pictures (n, 1, 8, 16) of scenes, in data units 0..16.

    Args:
        what: The scenes.
        seed: Which scans are taken for their digits.
        held_out: Take them from the 400 digits that models of the digits do not train on, else from the others.
    """
    part = split(open_data("digits"))[int(held_out)]
    items = part.batch(torch.arange(len(part)))
    images, labels = part.spec.from_model(items["x"])[:, 0], items["cond"]["label"]
    rows = [(labels == digit).nonzero()[:, 0] for digit in range(10)]
    chance = KeyedNoise(seed, range(len(what))).uniform("data", 0, (2,)).tolist()

    def one(digit: int, tone: int, u: float) -> Tensor:
        image = images[rows[digit][int(u * len(rows[digit]))]]
        return image * (_DARK if tone else 1.0)

    return torch.stack(
        [
            torch.cat((one(s.left, s.left_tone, u), one(s.right, s.right_tone, v)), dim=1)[None]
            for s, (u, v) in zip(what, chance, strict=True)
        ]
    )


def two_digits(n: int = 20_000, seed: int = 0) -> TensorDataset:
    """Return a data set to train on: `n` pictures of the seen pairs, of digits that are not held out."""
    seen, _ = pairs(seed)
    what = scenes(seen, n, seed)
    columns = {
        "left": [scene.left for scene in what],
        "right": [scene.right for scene in what],
        "left_tone": [scene.left_tone for scene in what],
        "right_tone": [scene.right_tone for scene in what],
    }
    return TensorDataset(
        data=draw(what, seed).half(),  # multiples of a half below 16
        spec=SPEC,
        cond={name: torch.tensor(values, dtype=torch.uint8) for name, values in columns.items()},
        default_holdout=0.02,
    )


# --- what is asked of a model ------------------------------------------------------------------------------------


def two_digit_tasks(n: int = 100, unseen: bool = False, seed: int = 1, split_seed: int = 0) -> list[Task]:
    """Return the tasks of the two digits, on digits that were held out.

    object      which of four pairs of digits it is
    order       "3 left of 5" or "5 left of 3": words alone do not tell
    counting    how often a digit is there: 0, 1 or 2 times
    attribute   which of the two is dark: words alone do not tell
    pairs       two pictures and two orders, as Winoground asks

    Args:
        n: Items of each; half as many of "pairs".
        unseen: Ask of pairs that `two_digits` leaves out, else of those it trains on.
        seed: Of the items.
        split_seed: The seed that `two_digits` was given.
    """
    choices = [pair for pair in pairs(split_seed)[int(unseen)] if pair[0] != pair[1]]
    drawn = scenes(choices, n, seed)
    others = KeyedNoise(seed, range(n)).uniform("order", 0, (2,)).tolist()
    fresh = [_others(scene, u) for scene, u in zip(drawn, others, strict=True)]
    kind = "unseen" if unseen else "seen"
    found = [
        _task("object", kind, "object", drawn, [_objects(s, o) for s, o in zip(drawn, fresh, strict=True)], seed),
        _task("order", kind, "order", drawn, [(s, _swapped(s)) for s in drawn], seed + 1),
        _counting(kind, drawn, fresh, seed + 2),
        _task(
            "attribute", kind, "attribute", toned := list(map(_two_tones, drawn)), list(map(_tones, toned)), seed + 3
        ),
        _pairs(kind, drawn[: n // 2], seed + 4),
    ]
    return found


def _task(
    name: str, kind: str, group: str, shown: Sequence[Scene], texts: Sequence[Sequence[Scene]], seed: int
) -> Task:
    """Return a task whose pictures show the first of each texts."""
    items = []
    turns = KeyedNoise(seed, range(len(shown))).uniform("order", 1, ()).tolist()
    for row, (scene, options) in enumerate(zip(shown, texts, strict=True)):
        turn = int(turns[row] * len(options))  # the right one is not always the first
        ordered = [*options[turn:], *options[:turn]]
        items.append(
            Item(images=(row,), texts=tuple(s.condition for s in ordered), answer=ordered.index(scene), tag=name)
        )
    return Task(name=f"{name}, {kind} pairs", items=tuple(items), group=group, data=draw(shown, seed, held_out=True))


def _others(scene: Scene, chance: Sequence[float]) -> tuple[int, int]:
    """Return two more digits, other than those of the scene and than each other."""
    left = [digit for digit in range(10) if digit not in (scene.left, scene.right)]
    first = left.pop(int(chance[0] * len(left)))
    return first, left[int(chance[1] * len(left))]


def _objects(scene: Scene, other: tuple[int, int]) -> tuple[Scene, ...]:
    return (
        scene,
        replace(scene, left=other[0]),
        replace(scene, right=other[1]),
        replace(scene, left=other[0], right=other[1]),
    )


def _swapped(scene: Scene) -> Scene:
    return Scene(scene.right, scene.left, scene.right_tone, scene.left_tone)


def _two_tones(scene: Scene) -> Scene:
    return replace(scene, right_tone=1 - scene.left_tone)


def _tones(scene: Scene) -> tuple[Scene, Scene]:
    return scene, replace(scene, left_tone=scene.right_tone, right_tone=scene.left_tone)


def _counting(kind: str, drawn: Sequence[Scene], fresh: Sequence[tuple[int, int]], seed: int) -> Task:
    """Return the task of counting the left digit: pictures of 0, 1 and 2 in turn; of unseen pairs always 1."""
    texts = []
    for scene, other in zip(drawn, fresh, strict=True):
        none = replace(scene, left=other[0])
        texts.append((none, scene, replace(none, left=scene.left, right=scene.left)))
    turns = [1 if kind == "unseen" else row % 3 for row in range(len(drawn))]
    shown = [options[turn] for options, turn in zip(texts, turns, strict=True)]
    items = tuple(
        Item(images=(row,), texts=tuple(s.condition for s in options), answer=turn, tag="counting")
        for row, (options, turn) in enumerate(zip(texts, turns, strict=True))
    )
    return Task(name=f"counting, {kind} pairs", items=items, group="counting", data=draw(shown, seed, held_out=True))


def _pairs(kind: str, drawn: Sequence[Scene], seed: int) -> Task:
    shown = [scene for first in drawn for scene in (first, _swapped(first))]
    items = tuple(
        Item(
            images=(2 * row, 2 * row + 1),
            texts=(scene.condition, _swapped(scene).condition),
            type="pair",
            tag="pairs",
        )
        for row, scene in enumerate(drawn)
    )
    return Task(name=f"pairs, {kind} pairs", items=items, group="order", data=draw(shown, seed, held_out=True))


class BagOfWords:
    """A baseline that reads how often each word is true of a picture, and not where: logistic regressions on pixels.

    Args:
        dataset: Pictures of `SPEC` with their conditions, to learn from.
    """

    def __init__(self, dataset: TensorDataset) -> None:
        from sklearn.linear_model import LogisticRegression

        pixels = (dataset.data.float() / 16.0).flatten(1).numpy()
        digits = torch.stack((dataset.cond["left"], dataset.cond["right"]), 1).long()
        tones = torch.stack((dataset.cond["left_tone"], dataset.cond["right_tone"]), 1).long()
        counts = {word: (digits == number).sum(1) for number, word in enumerate(DIGITS)}
        counts |= {word: (tones == number).sum(1) for number, word in enumerate(TONES)}
        self.words = {
            word: LogisticRegression(C=0.1, max_iter=1000).fit(pixels, values.numpy())
            for word, values in counts.items()
        }

    def scores(self, task: Task) -> list[Tensor]:
        """Return log p of the words of each candidate, (I, T) for each item; candidates of equal words tie."""
        assert task.data is not None
        pixels = (task.data.float() / 16.0).flatten(1).numpy()
        chances = {word: model.predict_log_proba(pixels) for word, model in self.words.items()}
        found = []
        for item in task.items:
            bags = [Counter(text.values()) for text in item.texts if not isinstance(text, str)]
            rows = [
                [math.fsum(sorted(float(chances[w][image][bag[w]]) for w in self.words)) for bag in bags]
                for image in item.images
            ]
            found.append(torch.tensor(rows, dtype=torch.float64))
        return found

"""The world of two digits: pictures show what is told, and a bag of words cannot know the order."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from undiffuse.analysis.compositionality.measures import chosen_right
from undiffuse.analysis.compositionality.two_digits import (
    BagOfWords,
    Scene,
    draw,
    pairs,
    two_digit_tasks,
    two_digits,
)


def test_a_fifth_of_the_pairs_is_left_out_in_both_orders():
    seen, unseen = pairs()
    assert len(seen) + len(unseen) == 100 and len(unseen) == 18
    assert {(b, a) for a, b in unseen} == set(unseen)
    assert {a for a, _ in seen} == {b for _, b in seen} == set(range(10))
    dataset = two_digits(2000)
    told = set(zip(dataset.cond["left"].tolist(), dataset.cond["right"].tolist(), strict=True))
    assert told <= set(seen) and len(told) > 70


def test_pictures_show_their_scene():
    bright, dark = draw([Scene(3, 5), Scene(3, 5, 0, 1)], seed=1), draw([Scene(3, 5, 1, 1)] * 2, seed=1)
    assert bright.shape == (2, 1, 8, 16)
    torch.testing.assert_close(bright[0] / 2, dark[0])  # the same scans at half the brightness
    torch.testing.assert_close(bright[1, :, :, :8] / 2, dark[1, :, :, :8])
    torch.testing.assert_close(bright[1, :, :, 8:], dark[1, :, :, 8:])


@pytest.mark.parametrize("unseen", [False, True])
def test_the_tasks_ask_what_they_say(unseen: bool):
    tasks = {task.name.split(",")[0]: task for task in two_digit_tasks(12, unseen)}
    assert list(tasks) == ["object", "order", "counting", "attribute", "pairs"]
    known = set(pairs()[int(unseen)])
    for name in ("object", "order", "attribute"):
        for item in tasks[name].items:
            right = item.texts[item.answer]
            assert (int(right["left"]), int(right["right"])) in known  # type: ignore[index]
    for name in ("order", "attribute"):
        for item in tasks[name].items:
            bags = [Counter(text.values()) for text in item.texts]  # type: ignore[union-attr]
            assert bags[0] == bags[1] and item.texts[0] != item.texts[1]
    assert {item.answer for item in tasks["counting"].items} == ({1} if unseen else {0, 1, 2})
    for item in tasks["counting"].items:
        digit = item.texts[2]["left"]  # type: ignore[index]
        assert [list(text.values())[:2].count(digit) for text in item.texts] == [0, 1, 2]  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_bag_of_words_knows_objects_and_no_order():
    words = BagOfWords(two_digits(600))
    tasks = {task.name.split(",")[0]: task for task in two_digit_tasks(40)}
    for name in ("order", "attribute"):
        scores = torch.cat(words.scores(tasks[name]))
        assert bool((scores[:, 0] == scores[:, 1]).all())
    objects = torch.cat(words.scores(tasks["object"]))
    right = chosen_right(objects, torch.tensor(tasks["object"].answers))[0]
    assert float(right.double().mean()) > 0.7

"""Word order: COCO-Order and Flickr30k-Order of ARO, from captions and shuffled copies of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from undiffuse.analysis.compositionality.layouts.files import choice, need, picture, rows, task
from undiffuse.analysis.compositionality.task import Item, Task
from undiffuse.noise import KeyedNoise

_MOST_WORDS = 30  # of a caption, as in the published harness


def coco_order(folder: Path) -> list[Task]:
    """ARO: captions of COCO against shuffles of their words."""
    return [_order(folder, "coco-order", ("coco_order.json", "coco_karpathy_test.json", "coco_karpathy_val.json"))]


def flickr_order(folder: Path) -> list[Task]:
    """ARO: captions of Flickr30k against shuffles of their words."""
    return [_order(folder, "flickr30k-order", ("flickr30k_order.json", "flickr30k_test.json", "flickr30k_val.json"))]


def _order(folder: Path, name: str, files: tuple[str, ...]) -> Task:
    items = []
    for row in rows(need(folder, *files)):
        image = picture(folder, row.get("image_path") or row["image"], (".",))
        if "caption_options" in row:  # as ARO's own data set holds them, taggers and all
            items.append(choice(image, row["caption_options"]))
            continue
        for caption in row["caption"]:
            item = _shuffled(caption, len(items))
            if item:
                items.append(Item(images=(image,), texts=tuple(item)))
    return task(name, items, "order", folder)


def _shuffled(caption: str, number: int) -> list[str]:
    """Return a caption and the shuffles of it that differ from it and from each other; nothing for a single word."""
    words = caption.split()[:_MOST_WORDS]
    texts = [" ".join(words)]
    for k, shuffle in enumerate(SHUFFLES):
        texts.append(" ".join(shuffle(words, partial(_permutation, item=number, which=k))))
    found = list(dict.fromkeys(texts))
    return found if len(found) > 1 else []


Permute = Callable[[int], list[int]]


def _permutation(n: int, item: int, which: int) -> list[int]:
    """Return a random order of n things that is not the one they are in, where there is another."""
    order = torch.argsort(KeyedNoise(0, [item]).uniform("order", which, (n,))[0]).tolist()
    return order if order != list(range(n)) else order[1:] + order[:1]


def _trigrams(words: list[str]) -> list[list[str]]:
    return [words[low : low + 3] for low in range(0, len(words), 3)]


def _within_trigrams(words: list[str], permute: Permute) -> list[str]:
    return [part[i] for part in _trigrams(words) for i in permute(len(part))]


def _of_trigrams(words: list[str], permute: Permute) -> list[str]:
    parts = _trigrams(words)
    return [word for i in permute(len(parts)) for word in parts[i]]


def _all_words(words: list[str], permute: Permute) -> list[str]:
    return [words[i] for i in permute(len(words))]


SHUFFLES = (_within_trigrams, _of_trigrams, _all_words)
"""Those of ARO's shuffles that need no tagger of words, and one of all words."""

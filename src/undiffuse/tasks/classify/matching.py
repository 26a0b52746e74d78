"""Image-text matching: a score for every pair, all with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.compositionality.measures import pair_scores
from undiffuse.analysis.subject import Wrap
from undiffuse.events import Finished, Listener, silent
from undiffuse.metrics.shares import Share, share
from undiffuse.tasks.classify.errors import TASK, error_options, open_ledger
from undiffuse.tasks.classify.table import ErrorTable, Weight
from undiffuse.words import plain_json


@dataclass(frozen=True, kw_only=True)
class TextMatches:
    """Scores of I items and T texts.

    Args:
        scores: float64 (I, T), higher fits better: minus the error, or with `contrast` what the text takes off the
            error without a text. Without contrast only the texts of one item can be compared.
        table: All errors.
        contrast: Whether the error without a text was subtracted.
    """

    scores: Tensor
    table: ErrorTable
    contrast: bool

    @property
    def texts(self) -> tuple[str, ...]:
        """The T texts."""
        return self.table.names

    @property
    def best_text(self) -> Tensor:
        """Text of each item, int64 (I,); of several that tie the first."""
        return self.scores.argmax(1)

    @property
    def best_item(self) -> Tensor:
        """Item of each text, int64 (T,).

        Raises:
            ValueError: The scores hold no contrast, so items cannot be compared.
        """
        self._check_contrast()
        return self.scores.argmax(0)

    def pairs(self, interval: str = "normal") -> dict[str, Share]:
        """Return text, image and group score of Winoground with 95 % intervals.

        Items 2k and 2k + 1 are a pair, and belong to texts 2k and 2k + 1. The text score counts pairs in which both
        items take their own text, the image score those in which both texts take their own item, the group score both.

        Args:
            interval: See `metrics.shares.share`: "normal", as the paper prints it, or "wilson".

        Raises:
            ValueError: Other numbers of items and texts than twice the number of pairs, or scores without contrast.
        """
        items, texts = self.scores.shape
        if items != texts or items % 2:
            raise ValueError(
                f"{items} items and {texts} texts are no pairs; give two of each, in order, for every pair."
            )
        self._check_contrast()
        blocks = torch.stack([self.scores[k : k + 2, k : k + 2] for k in range(0, items, 2)])
        return {name: share(hits, interval) for name, hits in pair_scores(blocks).items()}

    def to_json(self) -> dict[str, Any]:
        """Return scores and choices as plain JSON types."""
        return plain_json(
            {
                "texts": self.texts,
                "scores": self.scores.tolist(),
                "best_text": self.best_text.tolist(),
                "contrast": self.contrast,
            }
        )

    def _check_contrast(self) -> None:
        if not self.contrast:
            raise ValueError(
                "items are compared by what a text adds, and these scores hold no contrast; match with contrast=True."
            )


def match_texts(
    model: Any,
    x: Tensor,
    texts: Any = None,
    *,
    times: int | Sequence[float] | Tensor = 40,
    weight: Weight = "uniform",
    contrast: bool = True,
    condition: str | None = None,
    template: str | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    listener: Listener = silent,
    **options: Any,
) -> TextMatches:
    """Return how well every text fits every item, with the same times and noise for all pairs.

    Args:
        model: A model with conditions; labels and vectors are matched as texts are.
        x: Items in data units (I, *shape), or token ids.
        texts: T of them; see `candidates.read_candidates`.
        times: How many, or the times themselves.
        weight: What the error of each time counts; see `ErrorTable.weights`.
        contrast: Subtract each item's error without a text, for p(item) differs between items. It costs one text more.
        condition, template, cond, wrap, listener: As in `classify`.
        options: See `ErrorOptions`.

    Raises:
        ValueError: See `error_table`; several prompts of one text.
        UndiffuseError: An error is not a number.

    Source: Li et al. 2023, arXiv:2303.16203; the contrast is that of Krojer et al. 2023, arXiv:2305.16397.
    """
    chosen = error_options(options | {"contrast": contrast})
    spacing = "logsnr" if isinstance(weight, str) and weight == "elbo" else "t"
    asked: dict[str, Any] = {"condition": condition, "template": template, "cond": cond, "wrap": wrap}
    ledger = open_ledger(model, x, texts, chosen, times=times, usual_spacing=spacing, listener=listener, **asked)
    table = ledger.table()
    if len(table.names) != len(table.class_names):
        raise ValueError("texts are matched one by one; give each as a string of its own, without lists of prompts.")
    table.weights(weight)  # refuses before anything is measured
    ledger.start()
    ledger.measure_all(range(len(table.times)))
    listener(Finished(TASK))
    table = ledger.table()
    return TextMatches(scores=table.scores(weight, contrast), table=table, contrast=contrast)

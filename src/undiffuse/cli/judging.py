"""Options of the commands that judge by denoising errors, `classify`, `bench-compose` and `learn-weights`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from undiffuse.tasks.classify.table import Weight

Spacing = Annotated[
    str, typer.Option("--spacing", help="Where the times lie: t, logsnr, shifted (SD3), later or logit-normal.")
]
Loss = Annotated[str, typer.Option("--loss", help="l2, l1, huber or rms, the root of the mean square.")]
WeightWord = Annotated[
    str,
    typer.Option(
        "--weight",
        metavar="NAME|FILE",
        help="Of the times: uniform, elbo, x0, v, velocity, or a file of undiffuse learn-weights.",
    ),
]
Questions = Annotated[int, typer.Option("--batch-size", help="Questions asked at once; changes speed and memory only.")]


def read_weight(word: str) -> Weight:
    """Return the weights that a word means: a name, or a file.

    Raises:
        ValueError: Neither a name nor a file.
        UndiffuseError: The file is missing or holds something else.
    """
    from undiffuse.tasks.classify.table import WEIGHTS
    from undiffuse.tasks.classify.weights import TimeWeights
    from undiffuse.words import did_you_mean

    if word in WEIGHTS:
        return word
    if not Path(word).suffix and not Path(word).exists():
        raise ValueError(
            f"--weight {word!r} is neither one of {', '.join(WEIGHTS)} nor a file.{did_you_mean(word, WEIGHTS)}"
        )
    return TimeWeights.load(word)

"""The papers whose main claims `undiffuse papers NAME` reproduces: one literal table. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from undiffuse.papers.study import Study


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper and its reproduction.

    Args:
        title: Its title.
        source: Authors, year, arXiv number.
        claim: What is reproduced, in a sentence.
        minutes: How long that takes on two cores.
        location: "module:function"; the function takes quick, seed, listener and keep, and returns a `Study`.
    """

    title: str
    source: str
    claim: str
    minutes: int
    location: str


PAPERS: dict[str, Paper] = {
    "principles": Paper(
        title="The Principles of Diffusion Models",
        source="Lai, Song, Kim, Mitsufuji, Ermon 2025, arXiv:2510.21890",
        claim="Every solver converges at its order, the grid is worth more than the order, likelihoods are exact, "
        "and a flow map does in one call what a denoiser does in several.",
        minutes=14,
        location="undiffuse.papers.principles:reproduce",
    ),
    "mmd-ddm": Paper(
        title="Fast inference in denoising diffusion models via MMD finetuning",
        source="Aiello, Valsesia, Magli 2023, arXiv:2301.07969",
        claim="Minutes of fine-tuning through the sampler make samples of 3 or 5 calls better than those of the best "
        "untuned solver, and than more training.",
        minutes=30,
        location="undiffuse.papers.mmd_ddm:study",
    ),
}
"""Name -> paper."""


def find_paper(name: str) -> Paper:
    """Return the paper of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in PAPERS:
        raise ValueError(f"paper {name!r} is unknown; choose one of {', '.join(PAPERS)}.{did_you_mean(name, PAPERS)}")
    return PAPERS[name]


def load_reproduction(paper: Paper) -> Callable[..., Study]:
    """Return the function that reproduces a paper."""
    module, _, name = paper.location.partition(":")
    return getattr(import_module(module), name)

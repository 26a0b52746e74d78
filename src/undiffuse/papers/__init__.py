"""Floor 6: one short module per paper that reproduces its main claim at small scale."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "PAPERS": "undiffuse.papers.catalogue",
        "Paper": "undiffuse.papers.catalogue",
        "Part": "undiffuse.papers.study",
        "Study": "undiffuse.papers.study",
        "find_paper": "undiffuse.papers.catalogue",
    },
)

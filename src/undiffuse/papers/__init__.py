"""Floor 6: one short module per paper that reproduces its main claim at small scale."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "PAPERS": "undiffuse.papers.catalogue:PAPERS",
        "Paper": "undiffuse.papers.catalogue:Paper",
        "Part": "undiffuse.papers.study:Part",
        "Study": "undiffuse.papers.study:Study",
        "find_paper": "undiffuse.papers.catalogue:find_paper",
    },
)

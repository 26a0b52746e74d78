"""Correspondence: which point of another picture is the same part? By features of diffusion models, DINO, or both."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DenseMatch": "undiffuse.tasks.match.results:DenseMatch",
        "MatchBench": "undiffuse.tasks.match.bench:MatchBench",
        "MatchOptions": "undiffuse.tasks.match.options:MatchOptions",
        "Matcher": "undiffuse.tasks.match.matcher:Matcher",
        "Matches": "undiffuse.tasks.match.results:Matches",
        "Swap": "undiffuse.tasks.match.swapping:Swap",
        "bench_match": "undiffuse.tasks.match.bench:bench_match",
        "copca": "undiffuse.tasks.match.fusion:copca",
        "draw_matches": "undiffuse.tasks.match.drawing:draw_matches",
        "fuse": "undiffuse.tasks.match.fusion:fuse",
        "match": "undiffuse.tasks.match.run:match",
        "match_dense": "undiffuse.tasks.match.run:match_dense",
        "swap": "undiffuse.tasks.match.swapping:swap",
        "transfer": "undiffuse.tasks.match.run:transfer",
    },
)

"""Restoration: given y = A(x) + noise and a prior, draw x. Every method is a `Restorer`, by name in `RESTORERS`."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BenchRow": "undiffuse.tasks.restore.bench_results:BenchRow",
        "Problem": "undiffuse.tasks.restore.restorer:Problem",
        "RESTORERS": "undiffuse.tasks.restore.registry:RESTORERS",
        "RedDiff": "undiffuse.tasks.restore.red_diff:RedDiff",
        "RestoreBench": "undiffuse.tasks.restore.bench_results:RestoreBench",
        "RestoreResult": "undiffuse.tasks.restore.restorer:RestoreResult",
        "Restorer": "undiffuse.tasks.restore.restorer:Restorer",
        "Solution": "undiffuse.tasks.restore.restorer:Solution",
        "bench_restore": "undiffuse.tasks.restore.bench:bench_restore",
        "make_restorer": "undiffuse.tasks.restore.registry:make_restorer",
        "restore": "undiffuse.tasks.restore.run:restore",
    },
)

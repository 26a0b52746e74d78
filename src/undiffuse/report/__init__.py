"""Floor 5: self-contained HTML reports of runs and evaluations."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Measure": "undiffuse.report.measures:Measure",
        "Report": "undiffuse.report.html:Report",
        "Results": "undiffuse.report.measures:Results",
        "Section": "undiffuse.report.elements:Section",
        "bench_report": "undiffuse.report.bench:bench_report",
        "evaluation_section": "undiffuse.report.evaluation:evaluation_section",
        "run_report": "undiffuse.report.run:run_report",
        "run_sections": "undiffuse.report.run:run_sections",
    },
)

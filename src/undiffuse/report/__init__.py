"""Floor 5: self-contained HTML reports of runs and evaluations."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Measure": "undiffuse.report.measures:Measure",
        "Report": "undiffuse.report.html:Report",
        "Results": "undiffuse.report.measures:Results",
        "Section": "undiffuse.report.elements:Section",
        "acceleration_report": "undiffuse.report.acceleration:acceleration_report",
        "acceleration_section": "undiffuse.report.acceleration:acceleration_section",
        "bench_report": "undiffuse.report.bench:bench_report",
        "comparison_section": "undiffuse.report.probes:comparison_section",
        "evaluation_section": "undiffuse.report.evaluation:evaluation_section",
        "likelihood_section": "undiffuse.report.likelihood:likelihood_section",
        "probe_sections": "undiffuse.report.probes:probe_sections",
        "run_report": "undiffuse.report.run:run_report",
        "run_sections": "undiffuse.report.run:run_sections",
        "solver_section": "undiffuse.report.solvers:solver_section",
    },
)

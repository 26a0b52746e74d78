"""`undiffuse report`: the HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undiffuse.cli.shared import Json


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    json: Json = False,
) -> None:
    """Write report.html into a run's folder: one file with pictures, figures and the recipe, and nothing to fetch."""
    from undiffuse.cli.output import Output
    from undiffuse.report import run_report

    path = run_report(run)
    Output(json).finish(f"The report is {path}", {"report": path})

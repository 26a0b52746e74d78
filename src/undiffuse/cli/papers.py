"""`undiffuse papers`: list the papers, or reproduce the main claim of one and write its page."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Json

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.papers.catalogue import Paper
    from undiffuse.papers.study import Study

_UNUSED = {
    "data": "makes its own data",
    "seeds": "takes one seed",
    "device": "chooses for itself where to compute",
    "large": "has one size",
}

EPILOG = """\b
Examples:
  undiffuse papers
  undiffuse papers principles
  undiffuse papers masked-diffusion --data tinyshakespeare.txt
  undiffuse papers vq-diffusion --large --device cuda --data photos/
  undiffuse papers mmd-ddm --seeds 2 --out results/mmd --json
"""


def papers(
    name: Annotated[
        str | None, typer.Argument(help="Paper to reproduce; default: list them.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the result; default: papers/NAME.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="What to train on, of papers that train on given data, such as a text.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", min=1, help="How many seeds, of papers with a table for each; default: 1.", show_default=False
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="auto, cpu, cuda, cuda:1, of papers on tokens; default: auto.", show_default=False
        ),
    ] = None,
    large: Annotated[
        bool,
        typer.Option("--large", help="Larger networks and longer trainings, of papers on tokens: for a GPU."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small version: to try it, not for figures.")] = False,
    json: Json = False,
) -> None:
    """List the papers whose claims can be reproduced at small scale, or reproduce one and write its page.

    Writes report.html and results.json, anew after each part: what is stopped has not been for nothing. Networks
    that a paper keeps are taken from its folder when the same command is given again.
    """
    from undiffuse.cli.output import Output
    from undiffuse.papers.catalogue import PAPERS

    output = Output(json)
    if name is not None:
        wanted = {"data": data, "seeds": seeds, "device": device, "large": large or None}
        _reproduce(output, name, out or Path("papers") / name, seed, quick, **wanted)
        return
    rows = [(key, paper.title, f"{paper.minutes} min", paper.source) for key, paper in PAPERS.items()]
    output.table(("name", "paper", "takes", "source"), rows, (2,))
    output.finish(
        "undiffuse papers NAME reproduces one", {"papers": {key: vars(paper) for key, paper in PAPERS.items()}}
    )


def _reproduce(output: Output, name: str, out: Path, seed: int, quick: bool, **wanted: Any) -> None:
    from undiffuse.papers.catalogue import find_paper, load_reproduction
    from undiffuse.training.folder import make_folder

    paper = find_paper(name)
    reproduction = load_reproduction(paper)
    known = signature(reproduction).parameters
    given = {key: value for key, value in wanted.items() if value is not None}
    for key, value in given.items():
        if key not in known:
            told = f"--{key}" if value is True else f"--{key} {value}"
            raise ValueError(f"{told} has no use for {name}, which {_UNUSED[key]}; leave it out.")
    folder = make_folder(out)
    if "folder" in known:
        given["folder"] = folder / "networks"

    def keep(study: Study) -> None:
        part = study.parts[-1]
        output.say(part.title, "bold")
        if part.columns:
            output.table(part.columns, part.rows, part.numeric)
        _write(study, name, paper, folder)

    takes = "" if given.get("large") else f" About {paper.minutes} minutes on two cores."
    output.say(f"{paper.title}. {paper.claim}{takes}")
    with output.progress() as listener:
        study = reproduction(quick=quick, seed=seed, listener=listener, keep=keep, **given)
    output.say(study.tally())
    written = _write(study, name, paper, folder)
    output.finish(f"The page is {written['report']}", {"paper": name, **written, **study.to_json()})


def _write(study: Study, name: str, paper: Paper, folder: Path) -> dict[str, Path]:
    import json

    from undiffuse.training.folder import write_text

    results = folder / "results.json"
    write_text(results, json.dumps(study.to_json(), indent=1) + "\n")
    return {"results": results, "report": study.report(name, paper).write(folder / "report.html")}

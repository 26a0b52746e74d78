"""`undiffuse solvers`: the solvers there are, and which of them suits a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.asking import given, named
from undiffuse.cli.shared import Device, Json, Load, Out, Seed

if TYPE_CHECKING:
    from undiffuse.analysis.solver_results import SolverChoice
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import Found

EPILOG = """\b
Examples:
  undiffuse solvers
  undiffuse solvers --on digits
  undiffuse solvers --restore
  undiffuse solvers --on runs/photos --evaluations 8 --guidance 2 --save 8
"""
_COLUMNS = ("solver", "order", "evaluations a step", "random", "for", "needs", "what it is", "source")


SECTIONS = {
    "What to list": ("restore", "on"),
    "Trials, with --on": (
        "evaluations",
        "solver",
        "grid",
        "tune",
        "n",
        "set_size",
        "label",
        "cond",
        "guidance",
        "threshold",
        "save",
        "out",
        "seed",
        "device",
        "load",
    ),
}


def solvers(
    context: typer.Context,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="MODEL", help="Try them on this model, and recommend one.", show_default=False),
    ] = None,
    evaluations: Annotated[str, typer.Option(help="Network evaluations per sample.")] = "5,10,20",
    solver: Annotated[
        str | None, typer.Option(help="Solvers to try, such as ddim,dpm++2m.", show_default=False)
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Grids to try, such as logsnr,karras.", show_default=False)] = None,
    tune: Annotated[bool, typer.Option(help="Fit a grid to the model too.")] = True,
    n: Annotated[int, typer.Option("-n", "--count", help="Samples behind each error.")] = 32,
    set_size: Annotated[
        int, typer.Option(help="Samples to compare solvers with random steps by; 0 leaves them out.")
    ] = 256,
    label: Annotated[
        list[str] | None,
        typer.Option(help="One for all, as in sample; default: classes take turns.", show_default=False),
    ] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A condition, as in sample.", show_default=False),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; it costs two evaluations.", show_default=False)
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="As in sample.", show_default=False)] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="List the methods of undiffuse restore: needs and costs.")
    ] = False,
    save: Annotated[
        int | None,
        typer.Option(
            metavar="EVALUATIONS",
            help="Make what is recommended there the model's default.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """List the solvers, or with --on find the one that samples a model best at few evaluations.

    --on compares each with a run of 500 steps from the same noise; those with random steps by the distance of their
    samples to those of that run. Writes solvers.html and solvers.json beside the model, or into --out.
    """
    from undiffuse.cli.output import Output

    output = Output(json)
    for word in named(context, *SECTIONS["Trials, with --on"]) if on is None else ():
        raise ValueError(f"{word} needs --on MODEL, the model to try solvers on.")
    if restore:
        if on is not None:
            raise ValueError("--restore lists methods and --on tries solvers of sampling; bench-restore tries methods.")
        return _list_restorers(output)
    if on is None:
        return _list(output)
    from undiffuse.cli.conditions import load_conditions, words_of_each
    from undiffuse.cli.places import find_model

    budgets = _numbers(evaluations)
    if save is not None and save not in budgets:
        raise ValueError(f"--save {save} was not measured; choose among --evaluations {evaluations}.")
    found = find_model(on, device, load=load)
    if save is not None and found.folder is None:
        raise ValueError(f"{on} is built in and keeps its defaults; save a copy with Model.save and name its folder.")
    spec = found.model.spec
    told = words_of_each(",".join(label) if label else None, cond or [], spec)
    asked = None if told is None else load_conditions(told, spec) or {}
    choice = _choose(
        found,
        output,
        budgets=budgets,
        solvers=_words(solver),
        grids=_words(grid),
        tune=tune,
        n=n,
        set_size=set_size,
        seed=seed,
        cond=asked,
        **given(guidance=guidance, threshold=threshold),
    )
    if told:  # with the names of files in place of what they hold
        choice = replace(choice, settings=choice.settings | {"cond": told})
    _show(choice, output)
    saved = None if save is None else _save(found, choice, save)
    written = _write(choice, out if out is not None else found.home)
    line = f"The report is {written['report']}" + (f"; {saved}: now the model's defaults" if saved else "")
    output.finish(line, choice.to_json() | written | {"saved": saved})


def _list_restorers(output: Output) -> None:
    """Print the table of restoration methods, without torch."""
    from dataclasses import asdict

    from undiffuse.tasks.restore.catalogue import FACTS

    rows = []
    for name, f in FACTS.items():
        what = f"{f.what} (experimental)" if f.experimental else f.what
        needs = ", ".join(need for need in f.needs if need != "codec")
        needs = f"latent model{', ' if needs else ''}{needs}" if "codec" in f.needs else needs
        marks = ("yes" if f.noise else "", "yes" if f.gradient else "")
        rows.append((name, needs, *marks, f.cost, what, f.source.split(", ")[-1]))
    columns = ("method", "operator", "noise", "gradient", "passes a step", "what it is", "source")
    output.table(columns, rows)
    facts = [{"name": name} | asdict(row) for name, row in FACTS.items()]
    output.finish(f"{len(rows)} methods; undiffuse restore MODEL PICTURE --method NAME uses one", {"methods": facts})


def _list(output: Output) -> None:
    """Print the table of all solvers, without torch."""
    from dataclasses import asdict

    from undiffuse.sampling.catalogue import CATALOGUE

    rows = [
        (name, str(f.order), f.evaluations, "yes" if f.stochastic else "", f.data, f.needs, f.what, f.short_source)
        for name, f in CATALOGUE.items()
    ]
    output.table(_COLUMNS, rows, numeric=(1,))
    facts = [{"name": name} | asdict(row) for name, row in CATALOGUE.items()]
    output.finish(f"{len(rows)} solvers; undiffuse solvers --on MODEL says which suits a model", {"solvers": facts})


def _choose(found: Found, output: Output, **options: Any) -> SolverChoice:
    from undiffuse.analysis.solver_choice import choose_solver

    with output.progress() as listener:
        return choose_solver(found.model, name=found.name, listener=_of_solvers(listener), **options)


def _of_solvers(listener: Any) -> Any:
    """Pass on what is said about trials, and not about each of their samplings."""
    return lambda event: listener(event) if event.task == "solvers" else None


def _show(choice: SolverChoice, output: Output) -> None:
    output.table(choice.columns, choice.table(), numeric=(0, 2, 4, 5, 6))
    for budget in choice.budgets:
        output.say(choice.recommendation(budget))
        if command := choice.command(budget):
            output.say(f"  {command}")
    floor = (
        ""
        if choice.distance_floor is None
        else f"; energy distances as small as {abs(choice.distance_floor):.4f} are chance"
    )
    output.say(f"Errors mean little below {choice.reference_error:.2g}, that of the reference{floor}.")


def _save(found: Found, choice: SolverChoice, budget: int) -> str:
    """Make a recommendation the model's default and return it in words."""
    from undiffuse.models.bundle import save_defaults

    kept = choice.defaults(budget)
    if not kept:
        raise ValueError(f"nothing that a model can keep was found at {budget} evaluations; allow more.")
    assert found.folder is not None
    save_defaults(found.folder, kept)
    return ", ".join(f"{name} {value}" for name, value in kept.items())


def _write(choice: SolverChoice, folder: Path) -> dict[str, Any]:
    import json

    from undiffuse.report import Report, solver_section
    from undiffuse.training.folder import write_text

    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "solvers.json"
    write_text(figures, json.dumps(choice.to_json(), indent=1) + "\n")
    report = Report(f"Solvers for {choice.model}", "Which sampler at which budget.", [solver_section(choice)])
    return {"figures": figures, "report": report.write(folder / "solvers.html")}


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--evaluations {text!r} holds something else than whole numbers; write 5,10,20.") from None

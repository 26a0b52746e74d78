"""`undiffuse likelihood`: how likely data are under a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.asking import named
from undiffuse.cli.shared import Device, Json, Load, ModelName, Out, Seed

if TYPE_CHECKING:
    from undiffuse.analysis.items import Chosen
    from undiffuse.analysis.results import Likelihood
    from undiffuse.cli.places import Found
    from undiffuse.models.model import Model

EPILOG = """\b
Examples:
  undiffuse likelihood digits
  undiffuse likelihood runs/photos new-photos/ -n 64 --probes 4
  undiffuse likelihood runs/photos --method elbo --json
  undiffuse likelihood runs/text
"""

SECTIONS = {
    "What to ask": ("n", "method", "conditional"),
    "The probability-flow ODE": ("divergence", "probes", "integrator", "steps", "grid", "tolerance", "t_min"),
    "The evidence bound": ("draws", "levels"),
}


def likelihood(
    context: typer.Context,
    model: ModelName,
    data: Annotated[
        str | None,
        typer.Argument(help="Data; default: what the model's training held out.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--count", help="Items, chosen by the seed.")] = 100,
    method: Annotated[
        str, typer.Option(help="ode: probability-flow ODE; elbo: evidence bound; auto: ode, for tokens elbo.")
    ] = "auto",
    divergence: Annotated[
        str, typer.Option(help="exact, or hutchinson: random probes; auto: exact up to 32 elements.")
    ] = "auto",
    probes: Annotated[int, typer.Option(help="Random probes per item of hutchinson; its error needs 2 or more.")] = 2,
    integrator: Annotated[
        str, typer.Option(help="dormand-prince with adaptive steps, or heun on a grid of steps.")
    ] = "dormand-prince",
    steps: Annotated[int, typer.Option(help="Steps of heun, two evaluations each.")] = 64,
    grid: Annotated[str, typer.Option(help="Spacing of heun's steps: quadratic, logsnr, karras or t.")] = "quadratic",
    tolerance: Annotated[float, typer.Option(help="Relative and absolute tolerance of dormand-prince.")] = 1e-4,
    t_min: Annotated[
        float | None,
        typer.Option("--t-min", help="Time that stands for the data; default: the schedule's.", show_default=False),
    ] = None,
    draws: Annotated[int, typer.Option(help="Noise draws per item of the bound.")] = 16,
    levels: Annotated[
        int | None, typer.Option(help="Noise levels of the discrete bound; default: continuous.", show_default=False)
    ] = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Given the labels and other conditions of the data.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Items computed at once; changes speed and memory only.")] = 64,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Say how likely data are under a model: log p of each item and bits per dimension, with standard errors.

    Writes likelihood.json and likelihood.html, with the most and least likely items, into the run's folder or --out.
    """
    from undiffuse.analysis.items import choose_items
    from undiffuse.analysis.likelihood import log_likelihood
    from undiffuse.analysis.options import LikelihoodOptions
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model, open_held_out

    output = Output(json)
    options: dict[str, Any] = {
        "method": method,
        "divergence": divergence,
        "probes": probes,
        "integrator": integrator,
        "steps": steps,
        "grid": grid,
        "rtol": tolerance,
        "atol": tolerance,
        "t_min": t_min,
        "draws": draws,
        "levels": levels,
        "batch_size": batch_size,
    }
    if not tolerance > 0:
        raise ValueError(f"--tolerance {tolerance:g} must be positive; 1e-4 is usual.")
    LikelihoodOptions(**options)  # refuses at once, before anything is loaded
    found = find_model(model, device, load=load)
    _refuse_idle(context, found.model, method, integrator, divergence)
    dataset, what = open_held_out(found, data)
    items = choose_items(dataset, n, seed)
    output.say(f"{len(items.data)} of {len(dataset)} items{what}")
    with output.progress() as listener:
        result = log_likelihood(
            found.model, dataset, n=n, seed=seed, conditional=conditional, listener=listener, **options
        )
    if "probes" not in result.settings and any(named(context, "probes")):
        output.warn("--probes had no effect: auto took the exact divergence; --divergence hutchinson has probes.")
    output.table(result.columns, result.table(), numeric=(1, 2))
    written = _write(found, result, items, out if out is not None else found.home)
    output.finish(f"The report is {written['report']}", result.to_json() | {"model": model} | written)


def _refuse_idle(context: typer.Context, model: Model, method: str, integrator: str, divergence: str) -> None:
    """Refuse options that were given and would change nothing.

    Raises:
        ValueError: One was.
    """
    discrete = model.spec.is_discrete or model.state_spec.is_discrete
    of_bound = method == "elbo" or (method == "auto" and discrete)
    of_ode = [name for name in SECTIONS["The probability-flow ODE"] if discrete or name != "t_min"]  # bounds end there
    idle: dict[str, Sequence[str]]
    idle = {"--method ode": of_ode} if of_bound else {"--method elbo": SECTIONS["The evidence bound"]}
    if not of_bound:
        idle |= {"--integrator dormand-prince": ("tolerance",)} if integrator == "heun" else {}
        idle |= {"--integrator heun": ("steps", "grid")} if integrator == "dormand-prince" else {}
        idle |= {"--divergence hutchinson": ("probes",)} if divergence == "exact" else {}
    for owner, names in idle.items():
        for word in named(context, *names):
            cure = "leave it out" if discrete else f"leave it out, or add {owner}"
            raise ValueError(f"{word} has no effect here, it belongs to {owner}; {cure}.")


def _write(found: Found, result: Likelihood, items: Chosen, folder: Path) -> dict[str, Any]:
    """Write likelihood.json and likelihood.html and return where."""
    import json

    from undiffuse.report import Report, likelihood_section
    from undiffuse.training.folder import write_text

    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "likelihood.json"
    write_text(figures, json.dumps(result.to_json(), indent=1) + "\n")
    section = likelihood_section(result, items.data, found.model.spec)
    report = Report(f"Likelihood under {found.name}", repr(found.model), [section])
    return {"likelihood": figures, "report": report.write(folder / "likelihood.html")}

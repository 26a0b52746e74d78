"""`undiffuse distill`: from a model of many steps to a model of few."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Json, Out
from undiffuse.distillation.methods import METHODS

if TYPE_CHECKING:
    from undiffuse.training.run import Run

_WIDEST = max(map(len, METHODS))
_LIST = "\n".join(f"  {name:<{_WIDEST}}  {row.summary}" for name, row in METHODS.items())

EPILOG = f"""\b
Methods (undiffuse distill digits --method help prints this list):
{_LIST}

\b
The most used keys (undiffuse train --keys lists all):
  train.steps=10000         optimizer steps; the same as --train-steps
  train.lr=3e-4             peak learning rate
  objective.guidance=2      guidance of the teacher, folded into the student
  objective.last_steps=4    progressive: stop at 4 steps
  objective.last_levels=160 consistency: noise levels at the end

\b
Ctrl-C writes a checkpoint; the same command goes on from it.
  undiffuse distill digits --method progressive --train-steps 4000
  undiffuse distill runs/photos --method consistency --data photos/ --out runs/fast
  undiffuse sample runs/fast --steps 2
"""


def distill(
    model: Annotated[str, typer.Argument(help="The teacher: a run's folder, or a built-in model (digits, cifar10).")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Changes to the recipe.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option(help="How; the list is below.")] = "consistency",
    data: Annotated[
        str | None, typer.Option(help="Data; default: what the teacher was trained on.", show_default=False)
    ] = None,
    train_steps: Annotated[int | None, typer.Option(help="The same as train.steps=N.", show_default=False)] = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="The same as train.seed=N.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="The same as train.device=...", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Train a few-step generator that starts as MODEL, by one of several methods.

    The folder (default runs/MODEL-METHOD) holds the student, its recipe, log, previews, checkpoints and report.html.
    """
    from undiffuse.cli.failures import Interrupted
    from undiffuse.cli.output import Output
    from undiffuse.distillation.few_steps import distill_run

    output = Output(json)
    if method == "help":
        return _list(output, METHODS)
    options = {"train.steps": train_steps, "train.seed": seed, "train.device": device}
    given = [*(keys or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
    for word in given:
        if "=" not in word:
            raise typer.BadParameter(f"{word!r} is no change to the recipe; write KEY=VALUE, and data as --data {word}")
    output.say("Looking at the teacher and its data ...")
    with output.progress() as listener:
        run = distill_run(model, method, data, out, listener=listener, overrides=given)
    if not run.finished:
        raise Interrupted(f"{run.step} steps are in {run.folder}; the same command goes on with it.")
    command = ["undiffuse", "distill", model, "--method", method, *(["--data", data] if data else []), *given]
    _finish(output, run, method, shlex.join([*command, "--out", str(run.folder)]))


def _list(output: Any, methods: dict[str, Any]) -> None:
    output.pairs({name: row.summary for name, row in methods.items()})
    output.result({name: row.summary for name, row in methods.items()})


def _finish(output: Any, run: Run, method: str, command: str) -> None:
    from undiffuse.models import load
    from undiffuse.models.world import speaks
    from undiffuse.report import run_report

    if not speaks():
        return
    steps = load(run.folder).defaults.get("steps") or 1
    calls = f"{steps} network call{'s' if steps > 1 else ''} each"
    report = run_report(run.folder, command=command)
    output.say(f"The report is {report}. Draw samples, {calls}: undiffuse sample {shlex.quote(str(run.folder))} -n 64")
    facts = {"folder": run.folder, "model": run.folder / "model.safetensors", "report": report}
    loss = run.losses[-1] if run.losses else None
    facts |= {"method": method, "steps": run.step, "evaluations": steps, "loss": loss}
    output.finish(f"The student is in {run.folder}", facts)

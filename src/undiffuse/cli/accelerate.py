"""`undiffuse accelerate`: tune a trained model for few steps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undiffuse.cli.shared import Device, Json, ModelName, Out, Seed

if TYPE_CHECKING:
    from undiffuse.distillation.acceleration import Accelerated

EPILOG = """\b
Examples:
  undiffuse accelerate runs/photos --steps 5
  undiffuse accelerate digits --steps 3 --features classifier --out runs/fast
  undiffuse accelerate runs/photos --data more-photos/ --steps 4,8 --train-steps 800
  undiffuse accelerate runs/photos objective.queue=1024 train.lr=1e-5 train.accumulate=4
Ctrl-C writes a checkpoint; the same command goes on from it.
The result is a model like any other, whose default sampler is the one it was tuned for.
For one or two steps see undiffuse distill.
"""


def accelerate(
    model: ModelName,
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]", help="Changes to the recipe.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Real data; default: what the model was trained on.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="mmd: match data in features, through the sampler.")] = "mmd",
    steps: Annotated[
        str, typer.Option(help="Sampling steps to tune for; several, such as 4,8, are tuned in turn.")
    ] = "5",
    solver: Annotated[str, typer.Option(help="Rule that steps.")] = "ddim",
    grid: Annotated[str, typer.Option(help="Spacing of the steps.")] = "t",
    train_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 400,
    features: Annotated[
        str,
        typer.Option(
            help="What samples and data are compared in: pixels, classifier, classifier:FOLDER, random, dinov2:FOLDER, "
            "inception:FILE.safetensors, clip:FOLDER, model:FOLDER."
        ),
    ] = "pixels",
    kernel: Annotated[
        str, typer.Option(help="rbf-mix, cubic, linear, gaussian, rational-quadratic or energy.")
    ] = "rbf-mix",
    guidance: Annotated[float, typer.Option(help="Guidance scale that sampling will have; 1 is none.")] = 1.0,
    n: Annotated[
        int, typer.Option("-n", "--count", help="Samples of the comparison before and after; 0 leaves it out.")
    ] = 2000,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Tune MODEL through a sampler of few steps until its samples match the data, and compare before and after.

    The folder (default runs/MODEL-N-steps) holds the model, log, checkpoints and acceleration.html.
    """
    from undiffuse.cli.failures import Interrupted
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.distillation.acceleration import accelerate as tune

    output = Output(json)
    counts = read_steps(steps)
    for word in keys or []:
        if "=" not in word:
            raise ValueError(f"{word!r} is no KEY=VALUE; give the data with --data {word}.")
    found = find_model(model, "cpu")
    with output.progress() as listener:
        result = tune(
            found.folder if found.folder is not None else found.name,
            data,
            method=method,
            steps=counts,
            solver=solver,
            grid=grid,
            train_steps=train_steps,
            features=features,
            kernel=kernel,
            guidance=guidance,
            out=out if out is not None else Path("runs") / f"{Path(model).name}-{counts[0]}-steps",
            seed=seed,
            device=device,
            samples=n,
            overrides=keys or (),
            listener=listener,
        )
    if not result.run.finished:
        raise Interrupted(f"{result.run.step} steps are in {result.folder}; run the same command to go on.")
    _finish(output, result, model, n)


def _finish(output: object, result: Accelerated, model: str, samples: int) -> None:
    from undiffuse.cli.output import Output
    from undiffuse.models.world import speaks

    assert isinstance(output, Output)
    if not speaks():
        return
    made: dict[str, object] = {"model": result.folder, "untuned": model, "steps": result.run.step}
    if result.rows:
        import json

        from undiffuse.report.acceleration import COLUMNS, NUMERIC, acceleration_report, acceleration_rows
        from undiffuse.training.folder import write_text
        from undiffuse.words import plain_json

        output.table(COLUMNS, acceleration_rows(result), NUMERIC)
        for what, note in result.notes.items():
            output.say(f"Features {what}: {note}.")
        write_text(result.folder / "acceleration.json", json.dumps(plain_json(result.to_json()), indent=1) + "\n")
        made |= result.to_json() | {"report": acceleration_report(result)}
        output.say(f"The report is {made['report']}.")
    output.say(f"Draw samples with: undiffuse sample {shlex.quote(str(result.folder))} -n 64")
    output.finish(f"The model is in {result.folder}", made)


def read_steps(text: str) -> list[int]:
    """Return numbers of steps from "4,8".

    Raises:
        ValueError: Something in it is no number of steps.
    """
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--steps {text!r} holds something else than whole numbers; write 5, or 4,8.") from None
    if not counts or min(counts) < 1:
        raise ValueError(f"--steps {text!r} must hold numbers of at least 1, such as 5.")
    return counts

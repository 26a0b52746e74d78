"""`undiffuse learn-weights`: weights of times from a few labelled items, tested on others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from warnings import catch_warnings

import typer

from undiffuse.cli.compose_tasks import WORDS, Count, Template, Times
from undiffuse.cli.judging import Questions, Spacing
from undiffuse.cli.shared import Device, Json, Load, ModelName, Resize, Seed

EPILOG = f"""{WORDS}
\b
Examples:
  undiffuse learn-weights digits labelled:digits --shots 30
  undiffuse bench-compose digits labelled:digits --weight weights.json
"""


def learn_weights(
    model: ModelName,
    task: Annotated[str, typer.Argument(help="Task to learn from, see below.", show_default=False)],
    shots: Annotated[
        int | None, typer.Option(help="Items to learn from; default: all that are not held out.", show_default=False)
    ] = None,
    holdout: Annotated[float, typer.Option(help="Share of the items that is held out, to test on.")] = 0.5,
    degree: Annotated[
        str, typer.Option(help="Of a polynomial in log-SNR, or free: one weight a time; auto: 3 below 50 shots.")
    ] = "auto",
    ridge: Annotated[float, typer.Option(help="Pull towards equal weights.")] = 0.1,
    times: Times = 30,
    spacing: Spacing = "t",
    resize: Resize = "crop",
    template: Template = None,
    n: Count = None,
    batch_size: Questions = 256,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("weights.json"),
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Learn how much each noise level shall count, from a few labelled items, and test it on items held out.

    The file holds weights on log-SNR; bench-compose and classify take it as --weight, for any times and any model.
    """
    from undiffuse.analysis.compositionality.learned import choose_shots, learn_on
    from undiffuse.analysis.compositionality.score import score_task
    from undiffuse.cli.compose_tasks import open_tasks
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model

    output = Output(json)
    polynomial = _degree(degree, times)
    found = find_model(model, device, load=load)
    chosen = open_tasks([task], found, n, seed)
    if len(chosen) != 1:
        names = ", ".join(part.name for part in chosen)
        raise ValueError(f"{task} holds {len(chosen)} tasks ({names}); name the folder of one.")
    with catch_warnings(action="ignore"):  # said once, below
        choose_shots(chosen[0], shots, holdout, seed)  # refuses before anything is scored
    with output.progress() as listener:
        errors = score_task(
            found.model,
            chosen[0],
            times=times,
            spacing=spacing,
            resize=resize,  # type: ignore[arg-type]
            template=template,
            seed=seed,
            batch_size=batch_size,
            listener=listener,
        )
    learned = learn_on(errors, shots=shots, holdout=holdout, seed=seed, degree=polynomial, ridge=ridge)
    shares = {"equal weights": learned.uniform, f"learned from {learned.shots}": learned.learned}
    rows = [
        (name, f"{100 * found.value:.1f}", f"{100 * found.low:.1f} to {100 * found.high:.1f}", str(found.n))
        for name, found in shares.items()
    ]
    output.table(("weights", "accuracy", "95 %", "held out"), rows, (1, 3))
    output.say(f"McNemar's test of the difference: p = {learned.paired.p:.3g}")
    out.parent.mkdir(parents=True, exist_ok=True)
    path = learned.weights.save(out)
    result = {"weights": path, "shots": learned.shots, "held_out": learned.uniform.n, "p": learned.paired.p}
    result |= {"uniform": learned.uniform.value, "learned": learned.learned.value, **learned.weights.to_json()}
    output.finish(f"The weights are in {path}", result)


def _degree(word: str, times: int) -> int | str | None:
    if word == "free":
        return None
    if word == "auto":
        return word
    if word.isdecimal() and int(word) < times:
        return int(word)
    raise ValueError(f"--degree {word!r} is unknown; give auto, free or a whole number below --times {times}.")

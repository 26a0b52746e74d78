"""`undiffuse ema`: averages of other widths, after the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undiffuse.cli.shared import Device, Json, Out

if TYPE_CHECKING:
    from undiffuse.cli.output import Output

EPILOG = """\b
Examples:
  undiffuse ema runs/photos --sweep
  undiffuse ema runs/photos --width 0.03 --out models/photos
The run needs snapshots of its averages: train with train.snapshot_every=N.
"""


def ema(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    width: Annotated[
        float | None, typer.Option(help="Width of the average, as a share of the run: 0.03.", show_default=False)
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Compare the held-out loss of several widths.")] = False,
    widths: Annotated[
        str | None, typer.Option(help="Widths to compare, such as 0.02,0.05,0.1.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("-n", "--count", help="Held-out draws per width.")] = 2048,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Average a run's weights over another width than the run did, from its snapshots.

    --width writes that model, by default into the run's folder; --sweep says which width has the least held-out loss.
    """
    from undiffuse.cli.output import Output

    if (width is None) == (not (sweep or widths)):
        raise ValueError("give either --width 0.03, to write that model, or --sweep, to compare widths.")
    output = Output(json)
    if width is not None:
        _write(output, run, width, out)
    else:
        _sweep(output, run, _read_widths(widths), n, device)


def _write(output: Output, run: Path, width: float, out: Path | None) -> None:
    import shutil

    from undiffuse.training.posthoc import GOOD_FIT, SNAPSHOTS, reconstruct_ema

    model = reconstruct_ema(run, width)
    misfit = model.info["ema_misfit"]
    if misfit > GOOD_FIT:
        output.warn(
            f"the snapshots miss the profile of width {width:g} by {100 * misfit:.0f} %; take a width nearer to those "
            f"of train.ema, or train with snapshots that are closer together."
        )
    folder = model.save(out if out is not None else run / SNAPSHOTS / f"width-{width:g}")
    shutil.copyfile(run / "recipe.yaml", folder / "recipe.yaml")  # names the data, for evaluate
    output.finish(f"The model is in {folder}", {"model": folder, "width": width, "misfit": misfit})


def _sweep(output: Output, run: Path, widths: list[float] | None, n: int, device: str) -> None:
    from dataclasses import asdict

    from undiffuse.cli.places import choose_device
    from undiffuse.training.ema_sweep import SWEEP, WIDTHS, sweep_ema
    from undiffuse.training.posthoc import GOOD_FIT

    with output.progress() as listener:
        rows = sweep_ema(run, widths or WIDTHS, items=n, device=choose_device(device), listener=listener)
    shown = [(f"{row.width:g}", f"{row.loss:.6g}", f"{row.misfit:.1g}") for row in rows]
    output.table(("width", "held-out loss", "misfit of the profile"), shown, numeric=(0, 1, 2))
    met = [row for row in rows if row.misfit <= GOOD_FIT] or rows
    best = min(met, key=lambda row: row.loss)
    output.say(f"Best, of those missed by {100 * GOOD_FIT:.0f} % at most: undiffuse ema {run} --width {best.width:g}")
    found = {"run": run, "best": best.width, "rows": [asdict(row) for row in rows]}
    output.finish(f"The figures are in {run / SWEEP}; undiffuse report {run} draws them", found)


def _read_widths(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--widths {text!r} holds something else than numbers; write 0.02,0.05,0.1.") from None

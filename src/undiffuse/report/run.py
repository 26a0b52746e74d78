"""The report of a training run: what it learned, how it went, and how to make it again.

A run folder may be unfinished, or lack any of its files: the report shows what there is and names what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.errors import DataError
from undiffuse.metrics.results import Evaluation
from undiffuse.report.codebook import training_codebook
from undiffuse.report.elements import Section
from undiffuse.report.evaluation import evaluation_section
from undiffuse.report.html import Report
from undiffuse.report.plots import loss_by_logsnr, loss_curve, width_curve
from undiffuse.training.log import read_log
from undiffuse.words import human_duration

REPORT_NAME = "report.html"
SWEEP = "ema/sweep.json"  # where `undiffuse.training.ema_sweep` puts it
_PREVIEWS_SHOWN = 4
_LEVELS_SHOWN = 3
_TEXTS_SHOWN = 4
_MEASURED = (
    " With it the averaged model on held-out and on training items, at the same noise levels each time: where the two "
    "part, it learns its data by heart."
)
_TEXT_RULE = "\n\n----\n\n"  # what stands between the texts of a preview


def run_report(
    folder: str | os.PathLike[str],
    *,
    evaluation: Evaluation | dict[str, Any] | None = None,
    command: str | None = None,
) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        folder: The run: any of recipe.yaml, run.json, config.json, log.jsonl, samples/ and metrics.json.
        evaluation: The evaluation to show; None takes metrics.json, if it is there.
        command: The command that made the run; None gives the one that makes it again from its recipe.

    Raises:
        DataError: There is no such folder, or nothing of a run in it.
        OSError: The report cannot be written.
    """
    root = Path(folder)
    sections = run_sections(root, evaluation=evaluation, command=command)
    return Report(f"Run {root.resolve().name}", _subtitle(root), sections).write(root / REPORT_NAME)


def run_sections(
    folder: str | os.PathLike[str],
    *,
    evaluation: Evaluation | dict[str, Any] | None = None,
    command: str | None = None,
) -> list[Section]:
    """Return the sections of `run_report`, to be put into a report of several runs.

    Raises:
        DataError: There is no such folder, or nothing of a run in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no run folder {root}; give the folder that `undiffuse train` wrote.")
    found = evaluation if evaluation is not None else _read_json(root / "metrics.json")
    parts = [
        samples_section(root),
        evaluation_section(found) if found else None,
        training_section(root),
        training_codebook(read_log(root / "log.jsonl") + read_log(root / "codec" / "log.jsonl")),
        making_section(root, command),
    ]
    sections = [part for part in parts if part is not None]
    if not sections:
        raise DataError(
            f"{root} holds no recipe.yaml, log.jsonl or samples/; give the folder that `undiffuse train` wrote."
        )
    return sections


def samples_section(root: Path) -> Section | None:
    """Show the previews of the run in order of their step: the last one large, then some before it."""
    pictures, texts = _in_order(root / "samples", ".png"), _in_order(root / "samples", ".txt")
    if not pictures and not texts:
        return None
    section = Section("Samples")
    for path in pictures[-1:]:
        _add_picture(section, path, f"{path.stem}, the last preview")
    if texts:
        shown = texts[-1].read_text(encoding="utf-8", errors="replace").strip("\n").split(_TEXT_RULE)[:_TEXTS_SHOWN]
        section.texts(shown).text(f"{texts[-1].stem}, the last preview", "note")
    for path in _spread(pictures[:-1], _PREVIEWS_SHOWN - 1):
        _add_picture(section, path, path.stem)
    return section


def training_section(root: Path) -> Section | None:
    """Show the course of the training from its log."""
    log = read_log(root / "log.jsonl")
    rows = [row for row in log if "loss" in row]
    if not rows:
        return None
    measured = [row for row in log if "validation" in row]
    section = Section("Training").pairs(_course(rows) | _held_out(measured))
    bad = rows[-1].get("bad_steps") or 0
    if bad:
        section.text(f"{bad} step(s) had a loss or gradient that was not finite and were skipped.", "warning")
    section.figure(
        loss_curve([row["step"] for row in rows], [row["loss"] for row in rows], measured=_measured(measured)),
        "Training loss: means between log lines, and their moving average." + (_MEASURED if measured else ""),
    )
    levels = [row for row in log if "levels" in row]
    if levels:
        caption = "Loss by noise level, at several points of the run. Where it stays high is what the model finds hard."
        section.figure(_levels_figure(levels), caption)
    levels = [row["validation"] | {"step": row["step"]} for row in measured if "levels" in row["validation"]]
    if levels:
        section.figure(_levels_figure(levels), "Loss of the averaged model by noise level, on held-out items.")
    _add_sweep(section, _read_json(root / SWEEP))
    return section


def making_section(root: Path, command: str | None = None) -> Section | None:
    """Show the command, the data, the machine and the full recipe."""
    recipe, facts = root / "recipe.yaml", _read_json(root / "run.json") or {}
    spec = (_read_json(root / "config.json") or {}).get("spec")
    if not recipe.exists() and not facts and not spec:
        return None
    section = Section("How it was made")
    section.code(command or shlex.join(["undiffuse", "train", str(recipe), "--out", str(root)]))
    for line in facts.get("data", ()):
        section.text(line, "warning" if line.startswith("warning") else "plain")
    section.pairs(_data_summary(spec if isinstance(spec, dict) else {}) | _machine(facts))
    if recipe.exists():
        section.text("The resolved recipe, defaults included:").code(
            recipe.read_text(encoding="utf-8", errors="replace")
        )
    return section


def _subtitle(root: Path) -> str:
    rows = [row for row in read_log(root / "log.jsonl") if "loss" in row]
    return f"{rows[-1]['step']:,} steps in {human_duration(rows[-1].get('seconds') or 0.0)}" if rows else ""


def _course(rows: list[dict[str, Any]]) -> dict[str, str]:
    last = rows[-1]
    facts = {"steps": f"{last['step']:,}"}
    if last.get("images"):
        facts["items seen"] = f"{last['images']:,}"
    if last.get("seconds"):
        facts["time"] = human_duration(last["seconds"])
        facts["speed"] = f"{last['step'] / last['seconds']:.3g} steps per second"
    for name, label in (("loss", "last loss"), ("grad_norm", "last gradient norm"), ("lr", "last learning rate")):
        if last.get(name) is not None:
            facts[label] = f"{last[name]:.4g}"
    return facts


def _held_out(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the last held-out loss, and the lowest one where that was earlier."""
    known = [(row["validation"]["loss"], row["step"]) for row in rows if row["validation"].get("loss") is not None]
    if not known:
        return {}
    facts = {"held-out loss": f"{known[-1][0]:.4g}"}
    lowest, step = min(known)
    if step != known[-1][1]:
        facts["lowest held-out loss"] = f"{lowest:.4g} at step {step:,}"
    return facts


def _measured(rows: list[dict[str, Any]]) -> dict[str, tuple[list[float], list[float | None]]]:
    """Return the curves of what was measured on fixed items."""
    labels = {"loss": "held-out items", "train_loss": "training items, measured alike"}
    steps = [row["step"] for row in rows]
    return {
        label: (steps, [row["validation"].get(name) for row in rows])
        for name, label in labels.items()
        if any(name in row["validation"] for row in rows)
    }


def _add_sweep(section: Section, sweep: dict[str, Any] | None) -> None:
    """Show the held-out loss by width of the average, where `undiffuse ema --sweep` measured it."""
    rows = (sweep or {}).get("rows") or []
    if rows:
        columns = [[row.get(name) for row in rows] for name in ("width", "loss", "misfit")]
        caption = "Held-out loss by the width of the average; hollow where the snapshots lie too far apart for it."
        section.figure(width_curve(*columns), caption)


def _levels_figure(rows: list[dict[str, Any]]) -> Any:
    """Draw the first, some middle and the last table of loss by half log-SNR; the outer bins are open."""
    shown = _spread(rows, _LEVELS_SHOWN)
    edges = np.asarray(shown[-1]["levels"]["edges"], dtype=np.float64)
    step = edges[1] - edges[0]
    middles = np.append(edges, edges[-1] + step) - step / 2
    return loss_by_logsnr(middles.tolist(), {f"step {row['step']:,}": row["levels"]["loss"] for row in shown})


def _data_summary(spec: dict[str, Any]) -> dict[str, str]:
    facts = {}
    if spec.get("kind") and spec.get("shape"):
        facts["one item"] = f"{spec['kind']}, {' x '.join(map(str, spec['shape']))}"
    for name in ("classes", "vocabulary"):
        if spec.get(name):
            facts[name] = str(len(spec[name]))
    if spec.get("range"):
        facts["range"] = "{:g} to {:g}".format(*spec["range"])
    return facts


def _machine(facts: dict[str, Any]) -> dict[str, str]:
    """Return what run.json says beside the data: counts, seed, device, versions."""
    names = ("items", "held_out", "parameters", "seed", "device", "threads", "processes")
    known = {name.replace("_", " "): _thousands(facts[name]) for name in names if name in facts}
    return known | {str(name): str(number) for name, number in dict(facts.get("versions", {})).items()}


def _thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _add_picture(section: Section, path: Path, caption: str) -> None:
    """Add a picture file; a damaged one (a run killed while writing) is named instead."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        section.text(f"{path.name} cannot be read: {error}.", "warning")
        return
    section.picture(pixels, caption)


def _in_order(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder, numbers in their names compared as numbers."""
    files = [path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")]
    return sorted(
        files, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]
    )


def _spread(items: list[Any], count: int) -> list[Any]:
    """Return at most `count` items, first and last among them, evenly spaced."""
    if len(items) <= count:
        return items
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, count)]


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None where the file is missing, damaged or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

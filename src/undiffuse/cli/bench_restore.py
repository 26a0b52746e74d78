"""`undiffuse bench-restore`: every restorer on every operator, measured on data whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Device, Json, Load, Seed

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.cli.output import Output
    from undiffuse.models import Model
    from undiffuse.tasks.restore.bench_results import RestoreBench

EPILOG = """\b
Operators: denoise, inpaintN, boxN, srN, bicubicN, blurN, motionN, colourise, jpegN, hdr, csN with a number N, or texts
as `undiffuse degrade` takes them, separated by ";"; standard stands for seven of them, for pictures in colour. The
model digits-mixture is a prior of the digits whose posterior is known exactly, so that rows show how far they are from
it.
\b
Examples:
  undiffuse bench-restore digits-mixture --operators inpaint50,sr2,blur --steps 20,100 -n 24
  undiffuse bench-restore digits digits --methods ddrm,diffpir,red-diff
  undiffuse bench-restore runs/photos new-photos/ --operators "blur:gaussian,sigma=3;downsample:4" --methods all
  undiffuse bench-restore runs/photos new-photos/ --operators standard --methods mmps,dps,ddrm --steps 20 -n 8
"""
_MIXTURE = "digits-mixture"


@dataclass(frozen=True)
class Loaded:
    """A prior and clean items (B, *) in model units, with the numbers (B,) and names of their classes if any."""

    prior: Model
    clean: Tensor
    label: Tensor | None = None
    classes: tuple[str, ...] = ()


def bench_restore(
    model: Annotated[str, typer.Argument(help="A run's folder, a built-in model, or digits-mixture.")],
    data: Annotated[
        str | None,
        typer.Argument(help="Clean data; default: what the model's training held out.", show_default=False),
    ] = None,
    operators: Annotated[str, typer.Option(help="What to undo, see below.")] = "inpaint50,sr2,blur1",
    methods: Annotated[str, typer.Option(help="all, or names such as mmps,diffpir,red-diff.")] = "all",
    steps: Annotated[str, typer.Option(help="Numbers of steps, a row each.")] = "20,100",
    n: Annotated[int, typer.Option("-n", "--count", help="Items, chosen by the seed.")] = 64,
    samples: Annotated[int, typer.Option(help="Samples of each item; 1 has no spread.")] = 8,
    noise_std: Annotated[
        float, typer.Option(help="Standard deviation of the noise, in image units: black to white is 1.")
    ] = 0.025,
    perceptual: Annotated[
        str | None,
        typer.Option(
            help="Add a distance in features: lpips, or a classifier's folder or shipped name.", show_default=False
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Add top-1 accuracy: how often a classifier, a folder or a shipped name, sees the right class.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples computed at once; changes speed and memory only.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results; default: bench-restore/MODEL.", show_default=False),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Measure restoration methods: distortion, calibration and cost of each, on every operator.

    Writes results.json and results.md, anew after each row, and report.html; the same command goes on where it stopped.
    """
    from undiffuse.cli.failures import goes_on
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import safe_name
    from undiffuse.report.restore_bench import restore_bench_page
    from undiffuse.tasks.restore.bench import bench_restore as measure
    from undiffuse.tasks.restore.bench_words import operator_text, split_operators
    from undiffuse.training.folder import make_folder

    output = Output(json)
    counts = _numbers(steps)
    words = split_operators(operators)
    for word in words:
        operator_text(word)  # refuses before the model is read
    loaded = _load(model, data, n, seed, device, output, load)
    prior, clean = loaded.prior, loaded.clean
    built, std = _build(words, prior, clean, seed, noise_std)
    labels = None if classifier is None else _labels(classifier, loaded, output)
    folder = make_folder(out or Path("bench-restore") / safe_name(model))
    settings = {"model": model, "data": data or "held out", "items": len(clean), "samples": samples, "seed": seed}
    settings |= {"noise, image units": noise_std, "noise, model units": std}
    settings |= {"perceptual": perceptual, "classifier": classifier, "load": load}
    before = _before(folder, settings, output)

    with output.progress() as listener, goes_on(f"the rows that were done are in {folder}"):
        found = measure(
            prior,
            clean,
            built,
            None if methods == "all" else [word.strip() for word in methods.split(",") if word.strip()],
            counts,
            noise_std=std,
            samples=samples,
            seed=seed,
            perceptual=perceptual,
            classifier=classifier,
            labels=labels,
            before=before,
            settings=settings,
            keep=partial(_write_rows, folder=folder),
            listener=listener,
            batch_size=batch_size,
        )
    output.table(found.columns, found.table(), [i for i, key in enumerate(found.shown) if key in found.numeric])
    for method, where, reason in found.failures():
        output.say(f"{method} on {where}: {reason}", "yellow")
    page = restore_bench_page(found, f"Restoration with {model}").write(folder / "report.html")
    written = {**_write_rows(found, folder), "report": page}
    output.finish(f"The page is {written['report']}", {**written, **found.to_json()})


def _load(
    model: str, data: str | None, n: int, seed: int, device: str, output: Output, load: list[str] | None
) -> Loaded:
    """Return the prior and clean items.

    Raises:
        ValueError: Options of loading for the mixture, which is computed.
    """
    from undiffuse.analysis.items import choose_items
    from undiffuse.cli.places import choose_device, find_model, open_held_out

    if model == _MIXTURE:
        if load:
            raise ValueError(
                f"--load says how a pipeline of diffusers is loaded, and {_MIXTURE} is none; leave it out."
            )
        from undiffuse.data import open_data
        from undiffuse.models import Model
        from undiffuse.tasks.restore.exact import digits_prior

        prior, held_out = digits_prior()
        assert prior.spec is not None
        made = Model(prior, prior.spec).to(choose_device(device))
        if data is None:
            return Loaded(made, held_out[:n].to(choose_device(device)))
        opened = open_data(data, spec=prior.spec)
        items = choose_items(opened, n, seed)
        return Loaded(made, prior.spec.to_model(items.data.double()), items.cond.get("label"), opened.spec.classes)
    found = find_model(model, device, load=load)
    dataset, what = open_held_out(found, data)
    items = choose_items(dataset, n, seed)
    output.say(f"{len(items.data)} of {len(dataset)} items{what}")
    clean = found.model.spec.to_model(items.data.to(found.model.device))
    return Loaded(found.model, clean, items.cond.get("label"), dataset.spec.classes)


def _labels(classifier: str, loaded: Loaded, output: Output) -> Tensor | None:
    """Return the right classes of the items as numbers of the classifier's; None where their classes are others."""
    import torch

    from undiffuse.metrics import load_classifier

    known = load_classifier(classifier).config.classes
    if loaded.label is not None and set(loaded.classes) <= set(known):
        return torch.tensor([known.index(loaded.classes[number]) for number in loaded.label.tolist()])
    why = "has no classes" if loaded.label is None else f"has other classes than {classifier}"
    output.say(f"the data {why}: right is the class that it sees in the true picture", "yellow")
    return None


def _build(words: list[str], prior: Model, clean: Tensor, seed: int, noise_std: float) -> tuple[dict[str, Any], float]:
    """Return the operators by name, and the noise in model units."""
    from undiffuse.operators.parse import parse_noise, parse_operator
    from undiffuse.tasks.restore.bench_words import operator_text

    if noise_std < 0:
        raise ValueError(f"--noise-std {noise_std} is negative; give 0 for none, or up to 1, in image units.")
    std = parse_noise(f"gaussian:{noise_std}", prior.spec).std if noise_std else 0.0  # type: ignore[attr-defined]
    items = range(len(clean))
    built = {
        word: parse_operator(operator_text(word), prior.spec, seed=seed, items=items).to(clean.device) for word in words
    }
    return built, std


def _before(folder: Path, settings: dict[str, Any], output: Output) -> RestoreBench | None:
    """Return the rows of an earlier run into this folder.

    Raises:
        UndiffuseError: They were measured with other settings.
    """
    import json

    from undiffuse.errors import UndiffuseError
    from undiffuse.tasks.restore.bench_results import RestoreBench

    path = folder / "results.json"
    if not path.is_file():
        return None
    found = RestoreBench.from_json(json.loads(path.read_text(encoding="utf-8")))
    other = [key for key in settings if found.settings.get(key) != settings[key]]
    if other:
        raise UndiffuseError(
            f"{path} was measured with another {', '.join(other)}; give another --out, or remove it to begin anew."
        )
    output.say(f"{len(found.done)} rows are there already")
    kept = tuple(row for row in found.rows if not row.failure)  # what failed may work now
    return RestoreBench(rows=kept, settings=found.settings)


def _write_rows(found: RestoreBench, folder: Path) -> dict[str, Path]:
    import json

    from undiffuse.training.folder import write_text

    results, table = folder / "results.json", folder / "results.md"
    write_text(results, json.dumps(found.to_json(), indent=1) + "\n")
    write_text(table, found.markdown())
    return {"results": results, "table": table}


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--steps {text!r} holds something else than whole numbers; write 20,100.") from None

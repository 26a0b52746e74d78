"""`undiffuse restore`: restore pictures, with a map of how sure the answer is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.asking import Guidance, Threshold
from undiffuse.cli.shared import Device, Json, Load, ModelName, Seed

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.events import Listener
    from undiffuse.models import Model
    from undiffuse.operators.base import Operator
    from undiffuse.operators.noise import NoiseModel
    from undiffuse.tasks import RestoreResult

EPILOG = """\b
Examples:
  undiffuse restore runs/photos scratched.png --mask scratches.png
  undiffuse restore runs/photos small.png --operator "blur:gaussian,sigma=2|downsample:4" --noise-std 0.02
  undiffuse restore digits degraded/*.safetensors --method mmps --samples 16 --out restored
`undiffuse degrade` makes measurements to try; `undiffuse solvers --restore` lists the methods.
"""
SECTIONS = {
    "What was done to the pictures": ("operator", "mask", "invert_mask", "noise_std", "noise"),
    "What they show": ("label", "cond", "guidance"),
    "How to restore": ("method", "method_option", "samples", "seed", "steps", "budget", "threshold", "start", "tile"),
}
_FACTORS = range(2, 17)
_MEASURED = ".safetensors"


@dataclass(frozen=True)
class Job:
    """One picture or measurement, ready to restore; model units."""

    name: str
    y: Tensor
    operator: Operator
    noise: NoiseModel


def restore(
    model: ModelName,
    images: Annotated[list[Path], typer.Argument(help="Pictures, measurements (.safetensors) of degrade, or folders.")],
    operator: Annotated[
        str | None,
        typer.Option(help='What was done to the pictures, as in "blur:gaussian,sigma=2".', show_default=False),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture or .npy: white (1) is known, black is missing.", show_default=False),
    ] = None,
    invert_mask: Annotated[bool, typer.Option("--invert-mask", help="In the mask, white is missing.")] = False,
    noise_std: Annotated[
        float | None,
        typer.Option(help="Noise of the pictures, in [0, 1] (5 of 255 is 0.02); default 0.", show_default=False),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help='Other noise, as in "poisson,scale=30".', show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="See undiffuse solvers --restore; auto chooses and says why.")] = "auto",
    method_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the method.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Answers per picture; their spread is the uncertainty.")] = 8,
    steps: Annotated[int | None, typer.Option(help="Steps; default: the method's own.", show_default=False)] = None,
    budget: Annotated[int | None, typer.Option(help="For auto: forward passes per sample.", show_default=False)] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of the pictures by name or number, where it is known; several take turns.", show_default=False
        ),
    ] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Another condition of the model, written as for sample; several take turns.",
            show_default=False,
        ),
    ] = None,
    guidance: Guidance = None,
    threshold: Threshold = None,
    start: Annotated[float, typer.Option(help="Time to begin at, from a rough answer: 0.3 is quicker than 1.")] = 1.0,
    tile: Annotated[
        int | None,
        typer.Option(help="Side of tiles for large pictures; 0: none; default: the model's.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples computed at once; changes speed and memory only.")] = 32,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("restored"),
    seed: Seed = 0,
    device: Device = "auto",
    load: Load = None,
    json: Json = False,
) -> None:
    """Restore pictures: holes, blur, low resolution, noise, and all else that degrade can do.

    Writes for each picture the mean of the samples, the uncertainty map, the samples, before and after side by side,
    and what was learned of the degradation where it was unknown; and restored.html and result.json.
    """
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model

    output = Output(json)
    if mask is not None and operator is not None:
        raise ValueError("--mask and --operator both say what was done; give one of them.")
    if invert_mask and mask is None:
        raise ValueError("--invert-mask needs --mask.")
    law = _noise(noise_std, noise)
    options = _options(method_option or [])
    found = find_model(model, device, load=load)
    jobs = [_job(path, name, found.model, operator, mask, invert_mask, law) for path, name in _find(images)]
    if drawn := _drawn(operator):
        output.warn(
            f"{drawn} is drawn at random, here as `undiffuse degrade --seed 0` draws it; if it was drawn otherwise, "
            "give the .safetensors file that degrade wrote, or the mask by --mask."
        )
    conditions = _conditions(label or [], cond or [], guidance, len(jobs), found.model)
    settings: dict[str, Any] = {"samples": samples, "steps": steps, "budget": budget, "start": start, "tile": tile}
    settings |= {"batch_size": batch_size, "seed": seed, "options": options, "method": method, "threshold": threshold}
    sections, items = [], []
    for job, own in zip(jobs, conditions, strict=True):
        with output.progress() as listener:
            result = _restored(found.model, job, settings | {"cond": own or None} | _guided(guidance), listener)
        section, written = _write(result, job, out)
        sections.append(section)
        items.append(result.to_json() | {"image": job.name} | written)
        output.say(_line(job.name, result))
    settings |= {"label": label, "cond": cond, "guidance": guidance}
    told = {key: value for key, value in settings.items() if value is not None and value != {}}
    report = _report(sections, found.name, out, items, told)
    output.finish(f"The report is {report}", {"model": model, "out": str(out), "report": str(report), "items": items})


def _restored(model: Model, job: Job, settings: dict[str, Any], listener: Listener) -> RestoreResult:
    from undiffuse.tasks.restore.run import restore as solve

    return solve(model, job.y, job.operator, noise=job.noise, listener=listener, **settings)


def _conditions(
    labels: list[str], conds: list[str], guidance: float | None, count: int, model: Model
) -> list[dict[str, Any]]:
    """Return the conditions of each picture, empty where none were asked for.

    Raises:
        ValueError: Guidance without a condition.
    """
    from undiffuse.cli.conditions import load_conditions, of_sample, read_conditions

    if not labels and not conds:
        if guidance is not None:
            raise ValueError(f"--guidance {guidance:g} needs a condition; give --label or --cond, or leave it out.")
        return [{} for _ in range(count)]
    found = load_conditions(read_conditions(labels, conds, count, model.spec), model.spec)
    return [of_sample(found, number, model.spec) for number in range(count)]


def _guided(guidance: float | None) -> dict[str, Any]:
    from undiffuse.guidance import ClassifierFreeGuidance

    return {} if guidance is None else {"wrap": lambda denoiser: ClassifierFreeGuidance(denoiser, guidance)}


def _line(name: str, result: RestoreResult) -> str:
    residual, std = float(result.residual_rms.mean()) / 2, float(result.std.mean()) / 2
    return (
        f"{name}: {result.method}, residual {residual:.4f} (noise {result.noise_std / 2:.4f}), uncertainty {std:.4f}, "
        f"{result.nfe} evaluations a sample"
    )


def _noise(noise_std: float | None, noise: str | None) -> NoiseModel | None:
    """Return the noise in model units; None where nothing was said.

    Raises:
        ValueError: Both were given, or the number is in other units.
    """
    from undiffuse.operators import GaussianNoise, NoNoise, parse_noise

    if noise is not None:
        if noise_std is not None:
            raise ValueError("--noise-std and --noise both say what disturbs the picture; give one of them.")
        return parse_noise(noise)
    if noise_std is None:
        return None
    if not 0 <= noise_std <= 1:
        raise ValueError(
            f"--noise-std {noise_std:g} is outside [0, 1], the picture's range; a noise of 5 in 0..255 is 0.02."
        )
    return GaussianNoise(2 * noise_std) if noise_std else NoNoise()


def _options(words: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE words as options; values are read as JSON where they are that."""
    import json

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"--method-option {word!r} is not of the form NAME=VALUE, such as scale=50.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _find(paths: list[Path]) -> list[tuple[Path, str]]:
    """Return the files to restore with names; of a folder with measurements those alone, not the pictures of them.

    Raises:
        DataError: A path is missing, or a folder has nothing to restore.
    """
    from undiffuse.cli.files import different, find_files
    from undiffuse.images.read import PICTURE_SUFFIXES

    found: list[tuple[Path, str]] = []
    for path in paths:
        inside = find_files([path], PICTURE_SUFFIXES | {_MEASURED}, "pictures and no measurements")
        measured = [entry for entry in inside if entry[0].suffix.lower() == _MEASURED]
        found += measured or inside
    return list(zip([file for file, _ in found], different([name for _, name in found]), strict=True))


def _job(
    path: Path, name: str, model: Model, operator: str | None, mask: Path | None, invert: bool, law: NoiseModel | None
) -> Job:
    """Read one picture or measurement.

    Raises:
        DataError: It cannot be read.
        ValueError: It does not fit the model, or what was done to it was not said or said twice.
    """
    from undiffuse.operators import Identity, Measurement, NoNoise

    if model.spec.kind != "image":
        raise ValueError(
            f"this command restores pictures and the model makes {model.spec.noun}; use undiffuse.restore in "
            "Python, or for tokens `undiffuse inpaint`."
        )
    if path.suffix.lower() == _MEASURED:
        if operator is not None or mask is not None:
            raise ValueError(f"{path} says itself how it was measured; leave --operator and --mask out.")
        measured = Measurement.load(path)
        return Job(name, measured.y, measured.operator, measured.noise if law is None else law)
    if operator is None and mask is None:
        raise ValueError("say what was done to the picture: --mask FILE, or --operator; see undiffuse degrade --list.")
    y, fitting = _picture(path, model, operator, mask, invert)
    if isinstance(fitting, Identity) and (law is None or isinstance(law, NoNoise)):
        raise ValueError("denoise without noise leaves the picture as it is; say how noisy it is: --noise-std 0.05.")
    return Job(name, y, fitting, law or NoNoise())


def _drawn(text: str | None) -> str:
    """Return the part of an operator's text that is drawn at random; "" where none is."""
    from undiffuse.operators.parse import find_facts

    parts = [] if text is None else text.replace("&", "|").split("|")
    return next((part.strip() for part in parts if find_facts(part)[1].has("random")), "")


def _picture(path: Path, model: Model, text: str | None, mask: Path | None, invert: bool) -> tuple[Tensor, Operator]:
    """Return a picture in model units (1, C, H, W) and the operator that fits it."""
    if mask is not None or text is None:
        assert mask is not None
        y = _read(path, model.spec.channels)
        return y, _mask(mask, tuple(y.shape[1:]), invert)
    from undiffuse.operators import parse_operator

    spec = model.spec
    y = _read(path, _out_channels(text, spec))
    _, height, width = y.shape[1:]
    sizes = [spec.shape[1:], (height, width), *((height * f, width * f) for f in _FACTORS)]
    refused: ValueError | None = None
    for size in sizes:
        try:
            built = parse_operator(text, (spec.channels, *size))
        except ValueError as error:
            refused = refused or error
            continue
        if built.out_shape == tuple(y.shape[1:]):
            return y, built
    if refused is not None:  # why it does not fit pictures of the model's size, or of the first other one
        raise refused
    raise ValueError(
        f"{text!r} gives no picture of {width} x {height} pixels, as {path} is, from any size tried; what is no "
        "picture stands in the .safetensors file that undiffuse degrade writes."
    )


def _out_channels(text: str, spec: Any) -> int:
    """Return how many channels the measurement of a model's picture has."""
    from undiffuse.operators import parse_operator

    try:
        shape = parse_operator(text, spec).out_shape
    except ValueError as error:
        if "unknown" in str(error):
            raise
        return int(spec.channels)
    return shape[0] if len(shape) == 3 else int(spec.channels)


def _read(path: Path, channels: int) -> Tensor:
    """Return a picture (1, C, H, W) in [-1, 1].

    Raises:
        DataError: It cannot be read, or has an alpha channel.
        ValueError: The model wants other channels than pictures have.
    """
    import torch

    from undiffuse.errors import DataError
    from undiffuse.images.read import read_image

    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels and {channels} are wanted; use undiffuse.restore in Python.")
    if read_image(path).shape[2] in (2, 4):
        raise DataError(f"{path} has an alpha channel; lay it over a colour, and give what is missing by --mask.")
    array = read_image(path, "grey" if channels == 1 else "rgb")
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


def _mask(path: Path, shape: tuple[int, ...], invert: bool) -> Operator:
    """Return the mask of a file as an operator on pictures of `shape`.

    Raises:
        ValueError: It has another size, is not black and white, or hides all or nothing.
    """
    import torch

    from undiffuse.operators import Mask
    from undiffuse.operators.parse import read_array

    values = read_array(str(path), "--mask")
    if tuple(values.shape[-2:]) != shape[-2:]:
        raise ValueError(
            f"the mask {path} is {values.shape[-1]} x {values.shape[-2]} pixels and the picture {shape[-1]} x "
            f"{shape[-2]}; make them the same size."
        )
    values = torch.where((values - values.round()).abs() < 0.1, values.round(), values)  # what JPEG does to a mask
    values = 1 - values if invert else values
    if bool((values == 0).all()):
        raise ValueError(
            f"the mask {path} is black everywhere, so nothing is known; --invert-mask if white is missing."
        )
    if bool((values == 1).all()):
        raise ValueError(f"the mask {path} is white everywhere, so nothing is missing; use --operator denoise.")
    return Mask(shape, values)


def _write(result: RestoreResult, job: Job, out: Path) -> tuple[Any, dict[str, Any]]:
    """Write the pictures of one restoration; return its section of the report and where they are."""
    import numpy as np

    from undiffuse.cli.learned import write_learned
    from undiffuse.files import write_whole
    from undiffuse.images import image_grid, write_image
    from undiffuse.operators.view import pictures_of
    from undiffuse.report.restoration import restoration_section, strip, uncertainty

    shown = pictures_of(job.operator, job.y[0])
    before = shown[0] if shown else None
    made = {"operator": job.operator.describe(), "method": result.method}
    files = {name: out / f"{job.name}-{name}.png" for name in ("mean", "std", "samples", "strip")}
    files["mean"].parent.mkdir(parents=True, exist_ok=True)
    write_image(files["mean"], image_grid(result.mean[:1].float(), pad=0, scale=1), made)
    write_image(files["std"], image_grid(uncertainty(result)[None], pad=0, scale=1), made)
    write_image(files["samples"], image_grid(result.samples[:, 0].float()), made)
    write_image(files["strip"], strip(result, before), made)
    array = out / f"{job.name}-samples.npy"
    samples = result.samples[:, 0].float().cpu().numpy()
    write_whole(array, lambda file: _save(file, samples, np))
    files |= write_learned(result, job.name, out, made)
    section = restoration_section(result, before, job.operator.describe(), job.name)
    return section, {"files": {name: str(path) for name, path in files.items()} | {"array": str(array)}}


def _save(file: Path, samples: Any, np: Any) -> None:
    with open(file, "wb") as stream:
        np.save(stream, samples, allow_pickle=False)


def _report(sections: list[Any], name: str, out: Path, items: list[dict[str, Any]], settings: dict[str, Any]) -> Path:
    import json

    from undiffuse.report import Report
    from undiffuse.training.folder import write_text

    write_text(out / "result.json", json.dumps({"model": name, "settings": settings, "items": items}, indent=1) + "\n")
    return Report(f"Restored by {name}", f"{len(items)} picture{'s' if len(items) != 1 else ''}", sections).write(
        out / "restored.html"
    )

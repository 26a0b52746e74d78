"""`undiffuse degrade`: measure pictures as an operator does, with noise; what `undiffuse restore` undoes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Json, Seed

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.cli.output import Output
    from undiffuse.events import Listener
    from undiffuse.operators import Measurement
    from undiffuse.operators.noise import NoiseModel

EPILOG = """\b
Examples:
  undiffuse degrade photo.png --operator inpaint:box,16
  undiffuse degrade photos/ --operator "blur:gaussian,sigma=2|downsample:4" --noise gaussian:0.02
  undiffuse degrade scan.npy --operator mri:radial,coils=4 --noise gaussian:0.01 --out measured
  undiffuse degrade --list
"""
_COLUMNS = ("operator", "what", "linear", "svd", "gradient", "options")


@dataclass(frozen=True)
class Source:
    """One item to measure: where it is from, and which of the items of its file."""

    path: Path
    name: str
    row: int = -1


def degrade(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures, .npy arrays (H, W), (C, H, W) or (N, C, H, W), or folders.", show_default=False),
    ] = None,
    operator: Annotated[
        str, typer.Option(help='What is done, as in "blur:gaussian,sigma=2|downsample:4".')
    ] = "denoise",
    noise: Annotated[
        str, typer.Option(help='Noise, as in "gaussian:0.05" or "poisson,scale=30"; widths are in [0, 1].')
    ] = "none",
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture or .npy for --operator mask: white (1) is known.", show_default=False),
    ] = None,
    per_image: Annotated[bool, typer.Option("--per-image", help="Draw a new mask for every picture.")] = False,
    channels: Annotated[str, typer.Option(help="Read pictures as auto, grey or rgb.")] = "auto",
    bounds: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="LOW,HIGH", help="Range of .npy arrays; default: by dtype.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("degraded"),
    seed: Seed = 0,
    show: Annotated[bool, typer.Option("--list", help="List the operators and noises, and stop.")] = False,
    json: Json = False,
) -> None:
    """Measure pictures: for each, a picture to look at and a .safetensors file with the exact measurement.

    The file holds y in model units ([-1, 1] for pictures), the operator with its mask or kernel, and the noise.
    """
    from undiffuse.cli.output import Output

    output = Output(json)
    if show:
        return _list(output)
    if not images:
        raise ValueError("give pictures, .npy arrays or a folder; `undiffuse degrade --list` lists what can be done.")
    if channels not in ("auto", "grey", "rgb"):
        raise ValueError(f"--channels {channels!r} is unknown; choose auto, grey or rgb.")
    with output.progress() as listener:
        made = _degrade(_find(images), operator, noise, mask, per_image, channels, _bounds(bounds), out, seed, listener)
    output.finish(
        f"{len(made)} measurement{'s are' if len(made) != 1 else ' is'} in {out}: {made[0]['operator']}",
        {"out": str(out), "seed": seed, "operator": operator, "noise": noise, "items": made},
    )
    return None


def _degrade(
    sources: list[Source],
    operator: str,
    noise: str,
    mask: Path | None,
    per_image: bool,
    channels: str,
    bounds: tuple[float, float] | None,
    out: Path,
    seed: int,
    listener: Listener,
) -> list[dict[str, Any]]:
    from undiffuse.events import Advanced, Finished, Started
    from undiffuse.operators import parse_noise, parse_operator
    from undiffuse.operators.parse import read_array

    law = parse_noise(noise)
    tensors = {} if mask is None else {"mask": read_array(str(mask), "--mask")}
    if mask is not None:
        operator = _with_mask(operator)
    built: dict[tuple[int, ...], Any] = {}
    made = []
    listener(Started("degrade", len(sources), "image"))
    for number, source in enumerate(sources):
        x, scale = _read(source, channels, bounds)
        shape = tuple(x.shape)
        if per_image or shape not in built:
            items = [number] if per_image else None
            built[shape] = parse_operator(operator, shape, seed=seed, items=items, tensors=tensors)
        about = {"source": str(source.path), "item": number, "range": list(scale), "seed": seed}
        measured = _measure(x, built[shape], law, number, seed, about | {"operator": operator, "noise": noise})
        made.append(_write(measured, out, source.name))
        listener(Advanced("degrade", number + 1))
    listener(Finished("degrade"))
    return made


def _with_mask(operator: str) -> str:
    """Return the operators' text with a mask in it.

    Raises:
        ValueError: It has none, so that the mask would do nothing.
    """
    if operator == "denoise":
        return "mask"
    if not any(part.strip().partition(":")[0] == "mask" for part in operator.replace("&", "|").split("|")):
        raise ValueError(
            f"--mask has no use for --operator {operator!r}; leave --operator out, or put the mask into it: "
            f'"mask|{operator}".'
        )
    return operator


def _measure(x: Tensor, operator: Any, law: NoiseModel, number: int, seed: int, about: dict[str, Any]) -> Measurement:
    import torch

    from undiffuse.noise import KeyedNoise
    from undiffuse.operators import Measurement

    with torch.no_grad():
        y = operator.measured(law.sample(operator(x[None]), KeyedNoise(seed, [number])))
    return Measurement(y, operator, law, about)


def _write(measured: Measurement, out: Path, name: str) -> dict[str, Any]:
    """Write the exact measurement and its pictures; return what was written."""
    from undiffuse.images import image_grid, write_image
    from undiffuse.operators.view import pictures_of

    exact = out / f"{name}.safetensors"
    measured.save(exact)
    files = []
    pictures = pictures_of(measured.operator, measured.y[0])
    for part, picture in enumerate(pictures):
        files.append(out / (f"{name}.png" if len(pictures) == 1 else f"{name}-{part}.png"))
        pixels = image_grid(picture[None].float(), pad=0, scale=1, bounds=(-1.0, 1.0))
        write_image(files[-1], pixels, measured.about | {"measurement": exact.name})
    return {
        "measurement": str(exact),
        "pictures": [str(file) for file in files],
        "source": measured.about["source"],
        "shape": list(measured.y.shape[1:]),
        "operator": measured.operator.describe(),
    }


def _find(paths: list[Path]) -> list[Source]:
    """Return the items of files and folders in order, with names of their own.

    Raises:
        DataError: A path is missing, or a folder has nothing to measure.
    """
    import numpy as np

    from undiffuse.cli.files import different, find_files
    from undiffuse.images.read import PICTURE_SUFFIXES

    found: list[Source] = []
    for file, name in find_files(paths, PICTURE_SUFFIXES | {".npy"}, "pictures and no .npy arrays"):
        count = 0
        if file.suffix.lower() == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            count = array.shape[0] if array.ndim == 4 else 0
        found.extend(Source(file, f"{name}-{row:05d}", row) for row in range(count))
        if not count:
            found.append(Source(file, name))
    names = different([source.name for source in found])
    return [Source(source.path, name, source.row) for source, name in zip(found, names, strict=True)]


def _read(source: Source, channels: str, bounds: tuple[float, float] | None) -> tuple[Tensor, tuple[float, float]]:
    """Return one item (C, H, W) in model units, and the range of its data units.

    Raises:
        DataError: It has an alpha channel, values that are not finite or out of range, or another shape.
    """
    import numpy as np
    import torch

    from undiffuse.errors import DataError
    from undiffuse.images import read_image

    if source.path.suffix.lower() == ".npy":
        array = np.load(source.path, mmap_mode="r", allow_pickle=False)
        array = np.array(array[source.row] if source.row >= 0 else array)
        if array.ndim == 2:
            array = array[None]
        if array.ndim != 3 or array.dtype.kind not in "fiub":
            raise DataError(
                f"{source.path} has shape {array.shape} and dtype {array.dtype}; give real (H, W), (C, H, W) "
                "or (N, C, H, W)."
            )
    else:
        array = read_image(source.path, channels).transpose(2, 0, 1)  # type: ignore[arg-type]
        if array.shape[0] == 4:
            raise DataError(f"{source.path} has an alpha channel; --channels rgb lays it over white.")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise DataError(f"{source.path} has {bad} values that are not finite (NaN); mend them, or hide them by a mask.")
    is_array = source.path.suffix.lower() == ".npy"
    low, high = (bounds or _range_of(array, source.path)) if is_array else (0.0, 255.0)
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return (x - low) * (2 / (high - low)) - 1, (low, high)


def _range_of(array: Any, path: Path) -> tuple[float, float]:
    from undiffuse.errors import DataError

    if array.dtype.kind in "ub" and array.dtype.itemsize <= 2:
        return (0.0, 1.0) if array.dtype.kind == "b" else (0.0, float(256**array.dtype.itemsize - 1))
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if array.dtype.kind == "f" and low >= -1 and high <= 1:
        return -1.0, 1.0
    raise DataError(
        f"{path} holds values from {low:.4g} to {high:.4g}; say their range, for example --range 0,{high:.4g}."
    )


def _bounds(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--range {text!r} must be two numbers, LOW,HIGH.") from None
    if not low < high:
        raise ValueError(f"--range {text} is empty; give LOW,HIGH with LOW below HIGH.")
    return low, high


def _list(output: Output) -> None:
    from undiffuse.operators.catalogue import NOISES, OPERATORS

    rows = []
    for name, facts in OPERATORS.items():
        options = ", ".join(f"{key}={option.default}" for key, option in facts.options.items())
        what = f"{facts.what} ({facts.needs})" if facts.needs else facts.what
        marks = ["yes" if facts.has(word) else "" for word in ("linear", "svd", "differentiable")]
        rows.append((name, what, *marks, options))
    output.table(_COLUMNS, rows)
    noises = [
        (name, facts.what, ", ".join(f"{key}={option.default}" for key, option in facts.options.items()))
        for name, facts in NOISES.items()
    ]
    output.table(("noise", "what", "options"), noises)
    output.result(
        {
            "operators": [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
            "noises": [dict(zip(("noise", "what", "options"), row, strict=True)) for row in noises],
        }
    )

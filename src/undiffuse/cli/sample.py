"""`undiffuse sample`: samples from a model, as files."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.conditions import load_conditions, read_conditions
from undiffuse.cli.guides import GuidanceWords, read_guides
from undiffuse.cli.shared import Device, Json, Out, Seed, Solver, Steps

if TYPE_CHECKING:
    import torch

    from undiffuse.cli.places import Found

EPILOG = """\b
Examples:
  undiffuse sample runs/photos -n 64
  undiffuse sample digits --label 3 --guidance 2 --steps 20
  undiffuse sample digits --label 3 --guidance 2 --negative label=8 --threshold dynamic
  undiffuse sample digits --guidance 3 --guidance-interval 0.3,3 --solver ddim --solver-option eta=1
  undiffuse sample runs/text --prefix "The river " --length 1000
  undiffuse sample runs/text --solver first-hitting --steps 32 --solver-option order=2
  undiffuse sample runs/captioned --cond caption="a red square" --guidance 3
  undiffuse sample runs/videos --format mp4
  undiffuse sample models/stable-diffusion --prompt "a red square" -n 4
  undiffuse sample runs/vq --label 3 --guidance 3 --truncation 0.86 --purity 1 --tokens-per-call 10 --steps 25
"""


def sample(
    model: Annotated[str, typer.Argument(help="A run's folder, or a built-in model: digits.")],
    n: Annotated[int, typer.Option("-n", "--count", help="How many samples.")] = 16,
    out: Out = None,
    seed: Seed = 0,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class by name or number; several (3,4 or repeated) take turns, none is unconditional; default: each "
            "class in turn, of several labels each combination (Model.sample in Python: unconditional).",
            show_default=False,
        ),
    ] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A condition: caption='a red square', a label: colour=red, a vector: pose=0.1,0.2, a map or an "
            "embedding: depth=FILE; repeated, values of one name take turns.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Short for --cond prompt=TEXT; repeated, they take turns.", show_default=False),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.", show_default=False)
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Guide only where noise over signal (texts: time) lies between these.",
            show_default=False,
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(help="Share in [0, 1] of the contrast that guidance adds to take back.", show_default=False),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A condition to move away from, by --guidance: label=3; repeatable, written as --cond is.",
            show_default=False,
        ),
    ] = None,
    autoguide: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A weaker model to move away from, by --guidance.", show_default=False),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A classifier of clean images that pulls each sample to its label.",
            show_default=False,
        ),
    ] = None,
    classifier_scale: Annotated[float, typer.Option(help="How hard it pulls; 0 is not at all.")] = 1.0,
    classifier_label: Annotated[
        list[str] | None,
        typer.Option(help="Class to pull to, by name or number; default: the label asked for.", show_default=False),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(help="Bound every answer to the data's range: static, dynamic or none.", show_default=False),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(
            help="Tokens: keep the likeliest classes that together reach this share; 1 is all.", show_default=False
        ),
    ] = None,
    purity: Annotated[
        float | None,
        typer.Option(
            help="Tokens: sharpen sure ones so strongly and open them first, by token-budget.", show_default=False
        ),
    ] = None,
    tokens_per_call: Annotated[
        int | None,
        typer.Option(help="Tokens: most that open with one evaluation, by token-budget.", show_default=False),
    ] = None,
    solver: Solver = None,
    solver_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the solver: eta=0.5; repeatable.", show_default=False),
    ] = None,
    steps: Steps = None,
    grid: Annotated[
        str | None, typer.Option(help="Spacing of the steps: logsnr, t, karras, ...", show_default=False)
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="Compute so many steps at once: fewer, larger calls, for GPUs.", show_default=False
        ),
    ] = None,
    parallel_tol: Annotated[
        float | None,
        typer.Option(help="When a step is final there, in units of its noise; default 0.1.", show_default=False),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Text that every sample begins with.", show_default=False)] = None,
    length: Annotated[
        int | None, typer.Option(help="Texts: tokens of a sample; more than in training is fine.", show_default=False)
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Longer texts: new tokens per window; default: half of it.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Tokens: below 1 sharper than the model, above 1 flatter.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Tokens: keep the likeliest so many classes of each.", show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Images: height and width in pixels, such as 96x64.", show_default=False),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Videos: gif (default), mp4, or png for strips of frames.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples computed at once; changes speed and memory only.")] = 256,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, float64 or bfloat16.")] = "float32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network: slow to start, then faster; for many samples.")
    ] = False,
    json: Json = False,
) -> None:
    """Draw samples: pictures as PNG files and a grid of them, texts as .txt, all else as .npy; videos also as GIF or
    MP4, volumes as .nii.gz and slices, signals as .wav and plots.

    A model with classes draws each in turn unless --label says otherwise; --label none draws without a class.
    """
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import find_model
    from undiffuse.cli.saving import check_format, save_samples
    from undiffuse.models.parallel import idle_processes, sample_split
    from undiffuse.models.processes import Processes

    output = Output(json)
    cond = [*(cond or []), *(f"prompt={text}" for text in prompt or [])]
    weights = weight_dtype(dtype)
    processes = Processes.join()
    with processes.agree():
        found = find_model(model, device, weights)
        check_format(format, found.model.spec)
        if compile:
            found.model.compile()
        conditions = read_conditions(label or [], cond or [], n, found.model.spec)
        settings = {"guidance": guidance, "solver": solver, "steps": steps, "grid": grid, "prefix": prefix} | read_more(
            guidance_interval, guidance_rescale, solver_option or []
        )
        pull = (classifier, classifier_scale, classifier_label or [])
        asked = GuidanceWords(negative or [], autoguide, *pull, threshold)
        guides = read_guides(asked, found.model, n, conditions, device, weights)
        settings |= {"size": read_size(size)} if size else {}
        settings |= read_parallel(parallel, parallel_tol)
        tokens: dict[str, Any] = {"truncation": truncation, "purity": purity, "tokens_per_call": tokens_per_call}
        tokens |= {"length": length, "stride": stride, "temperature": temperature, "top_k": top_k}
        settings |= {key: value for key, value in tokens.items() if value is not None}
        loaded = load_conditions(conditions, found.model.state_spec_at(settings.get("size")))
    with output.progress() as listener:
        result = sample_split(
            found.model,
            n,
            processes=processes,
            seed=seed,
            cond=loaded,
            dtype=state_dtype(weights),
            batch_size=batch_size,
            listener=listener,
            **settings,
            **guides,
        )
    if not processes.is_main:
        return
    settings |= asked.said() | {"dtype": None if dtype == "float32" else dtype, "compile": compile or None}
    made_by = _made_by(found, n, seed, conditions, settings, result.nfe)
    made_by |= {} if result.calls is None else {"sweeps": result.sweeps, "calls": result.calls}
    folder = out if out is not None else found.home / folder_name(seed, label or [], cond or [], settings)
    saved = save_samples(result.x, found.model.spec, folder, made_by, format)
    labels = ", each class in turn" if conditions and not (label or cond) else ""
    batched = "" if result.calls is None else f" in {result.calls} batched calls ({result.sweeps} sweeps)"
    output.say(f"{n} samples{labels}, {result.nfe} network evaluations each{batched}")
    if idle := idle_processes(n, batch_size, processes):
        output.warn(f"{idle} of {processes.size} processes had no batch to compute; a smaller --batch-size has more.")
    output.finish(f"The result is {saved.main}", made_by | {"folder": folder, "files": saved.files, "main": saved.main})


def read_more(interval: str | None, rescale: float | None, options: list[str]) -> dict[str, Any]:
    """Return the settings behind --guidance-interval, --guidance-rescale and --solver-option, as far as given.

    Raises:
        ValueError: One is not of its form.
    """
    found: dict[str, Any] = {} if rescale is None else {"guidance_rescale": rescale}
    if interval is not None:
        found["guidance_interval"] = _interval(interval)
    if options:
        found["solver_options"] = dict(map(_solver_option, options))
    return found


def read_parallel(steps: int | None, tol: float | None) -> dict[str, Any]:
    """Return the settings behind --parallel and --parallel-tol, as far as given.

    Raises:
        ValueError: The second without the first.
    """
    if steps is None and tol is not None:
        raise ValueError(f"--parallel-tol {tol} belongs to --parallel; give the number of steps too.")
    return ({} if steps is None else {"parallel": steps}) | ({} if tol is None else {"parallel_tol": tol})


def read_size(text: str) -> tuple[int, int]:
    """Return height and width from "96x64".

    Raises:
        ValueError: It is not of that form.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size {text!r} is not a height and a width; write HxW, such as 96x64.")
    return int(parts[0]), int(parts[1])


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--guidance-interval {text!r} is not two numbers; write LOW,HIGH, such as 0.3,3.") from None
    return low, high


def _solver_option(text: str) -> tuple[str, Any]:
    """Return name and value: a number where it reads as one, true or false, else text."""
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise ValueError(f"--solver-option {text!r} says nothing; write NAME=VALUE, for example eta=0.5.")
    for read in (int, float):
        with suppress(ValueError):
            return name, read(value)
    return name, {"true": True, "false": False}.get(value, value)


def weight_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name.

    Raises:
        ValueError: The weights are not computed in it.
    """
    import torch

    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ValueError(f"dtype {name!r} is unknown; use {', '.join(known)}.")
    return known[name]


def state_dtype(weights: torch.dtype) -> torch.dtype:
    """Return the dtype of the state: at least float32, since in bfloat16 the small last steps would be rounded away."""
    import torch

    return torch.promote_types(weights, torch.float32)


def _made_by(
    found: Found, n: int, seed: int, conditions: dict[str, Any] | None, settings: dict[str, Any], nfe: int
) -> dict[str, Any]:
    """Return what makes the same samples again: it goes into every file."""
    from undiffuse import __version__
    from undiffuse.config import to_dict

    chosen = found.model.defaults | {key: value for key, value in settings.items() if value is not None}
    return {
        "undiffuse": __version__,
        "model": found.name,
        "n": n,
        "seed": seed,
        "cond": conditions,
        "sampling": chosen,
        "evaluations": nfe,
        "recipe": to_dict(found.recipe) if found.recipe is not None else None,
    }


def folder_name(seed: int, labels: list[str], conds: list[str], settings: dict[str, Any]) -> str:
    """Return samples-seed0-label3-guidance2: what was asked for, so that other settings go elsewhere."""
    from undiffuse.cli.places import safe_name

    numbers = {key: f"{value:g}" if isinstance(value, float) else value for key, value in settings.items()}
    numbers |= {"size": "x".join(map(str, settings["size"]))} if settings.get("size") else {}
    asked = [f"{key}{value}" for key, value in numbers.items() if value is not None]
    words = [f"seed{seed}", *(f"label{label}" for label in labels), *conds, *asked]
    return "-".join(["samples", *map(safe_name, words)])[:120]

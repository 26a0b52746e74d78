"""`undiffuse sample`: samples from a model, as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli import asking
from undiffuse.cli.asking import given, read_grid, read_interval, read_options, read_size, read_tol
from undiffuse.cli.conditions import load_conditions, read_conditions
from undiffuse.cli.guides import GuidanceWords, read_guides
from undiffuse.cli.shared import Device, Json, Load, ModelName, Out, Seed, Solver, Steps

if TYPE_CHECKING:
    import torch

    from undiffuse.cli.places import Found
    from undiffuse.models.parallel import SplitSamples

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
  undiffuse sample models/stable-diffusion --prompt "a red square" -n 4 --load lora=ink.safetensors
  undiffuse sample runs/vq --label 3 --guidance 3 --truncation 0.86 --purity 1 --tokens-per-call 10 --steps 25
"""

SECTIONS = {
    "What to draw": ("n", "seed", "label", "cond", "prompt", "size", "prefix", "length", "stride"),
    "Guidance": (
        "guidance",
        "guidance_interval",
        "guidance_rescale",
        "negative",
        "autoguide",
        "classifier",
        "classifier_scale",
        "classifier_label",
        "threshold",
    ),
    "Steps": ("solver", "solver_option", "steps", "grid", "parallel", "parallel_tol"),
    "Tokens": ("temperature", "top_k", "truncation", "purity", "tokens_per_call"),
}


def sample(
    model: ModelName,
    n: Annotated[int, typer.Option("-n", "--count", help="How many samples.")] = 16,
    out: Out = None,
    seed: Seed = 0,
    label: asking.Labels = None,
    cond: asking.Conditions = None,
    prompt: asking.Prompts = None,
    guidance: asking.Guidance = None,
    guidance_interval: asking.GuidanceInterval = None,
    guidance_rescale: asking.GuidanceRescale = None,
    negative: asking.Negative = None,
    autoguide: asking.Autoguide = None,
    classifier: asking.Classifier = None,
    classifier_scale: asking.ClassifierScale = 1.0,
    classifier_label: asking.ClassifierLabel = None,
    threshold: asking.Threshold = None,
    truncation: asking.Truncation = None,
    purity: asking.Purity = None,
    tokens_per_call: asking.TokensPerCall = None,
    solver: Solver = None,
    solver_option: asking.SolverOptions = None,
    steps: Steps = None,
    grid: asking.Grid = None,
    parallel: asking.Parallel = None,
    parallel_tol: asking.ParallelTol = None,
    prefix: asking.Prefix = None,
    length: asking.Length = None,
    stride: asking.Stride = None,
    temperature: asking.Temperature = None,
    top_k: asking.TopK = None,
    size: asking.Size = None,
    format: Annotated[
        str | None, typer.Option(help="Videos: gif (default), mp4, or png for strips of frames.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples computed at once; changes speed and memory only.")] = 256,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, float64, bfloat16 or float16.")] = "float32",
    load: Load = None,
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
    conds = [*(cond or []), *(f"prompt={text}" for text in prompt or [])]
    settings = given(  # in the order in which the folder's name says them
        guidance=guidance,
        solver=solver,
        steps=steps,
        grid=read_grid(grid),
        prefix=prefix,
        guidance_rescale=guidance_rescale,
        guidance_interval=read_interval(guidance_interval),
        solver_options=read_options(solver_option),
        size=read_size(size),
        parallel=parallel,
        parallel_tol=read_tol(parallel_tol, parallel),
        truncation=truncation,
        purity=purity,
        tokens_per_call=tokens_per_call,
        length=length,
        stride=stride,
        temperature=temperature,
        top_k=top_k,
    )
    pull = (classifier, classifier_scale, classifier_label or [])
    asked = GuidanceWords(negative or [], autoguide, *pull, threshold)
    weights = weight_dtype(dtype)
    processes = Processes.join()
    with processes.agree():
        found = find_model(model, device, weights, load)
        check_format(format, found.model.spec)
        if compile:
            found.model.compile()
        conditions = read_conditions(label or [], conds, n, found.model.spec)
        guides = read_guides(asked, found.model, n, conditions, device, weights)
        loaded = load_conditions(conditions, found.model.state_spec_at(settings.get("size")))
    with output.progress() as listener:
        drawn = sample_split(
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
    settings |= given(**asked.said(), dtype=None if dtype == "float32" else dtype, compile=compile or None, load=load)
    made_by = _made_by(found, n, seed, conditions, settings, drawn)
    folder = out if out is not None else found.home / folder_name(seed, label or [], conds, settings)
    saved = save_samples(drawn.x, found.model.spec, folder, made_by, format)
    output.say(_line(n, drawn, turns=bool(conditions) and not (label or conds)))
    if idle := idle_processes(n, batch_size, processes):
        output.warn(f"{idle} of {processes.size} processes had no batch to compute; a smaller --batch-size has more.")
    output.finish(f"The result is {saved.main}", made_by | {"folder": folder, "files": saved.files, "main": saved.main})


def weight_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name.

    Raises:
        ValueError: The weights are not computed in it.
    """
    import torch

    known = ("float32", "float64", "bfloat16", "float16")
    if name not in known:
        raise ValueError(f"dtype {name!r} is unknown; use {', '.join(known)}.")
    return getattr(torch, name)


def state_dtype(weights: torch.dtype) -> torch.dtype:
    """Return the dtype of the state: at least float32, since in bfloat16 the small last steps would be rounded away."""
    import torch

    return torch.promote_types(weights, torch.float32)


def _line(n: int, drawn: SplitSamples, turns: bool) -> str:
    """Return what was drawn, and its cost."""
    labels = ", each class in turn" if turns else ""
    batched = "" if drawn.calls is None else f" in {drawn.calls} batched calls ({drawn.sweeps} sweeps)"
    return f"{n} samples{labels}, {drawn.nfe} network evaluations each{batched}"


def _made_by(
    found: Found, n: int, seed: int, conditions: dict[str, Any] | None, settings: dict[str, Any], drawn: SplitSamples
) -> dict[str, Any]:
    """Return what makes the same samples again: it goes into every file."""
    from undiffuse import __version__
    from undiffuse.config import to_dict

    made_by = {
        "undiffuse": __version__,
        "model": found.name,
        "n": n,
        "seed": seed,
        "cond": conditions,
        "sampling": found.model.defaults | settings,
        "evaluations": drawn.nfe,
        "recipe": to_dict(found.recipe) if found.recipe is not None else None,
    }
    return made_by | ({} if drawn.calls is None else {"sweeps": drawn.sweeps, "calls": drawn.calls})


def folder_name(seed: int, labels: list[str], conds: list[str], settings: dict[str, Any]) -> str:
    """Return samples-seed0-label3-guidance2: what was asked for, so that other settings go elsewhere."""
    from undiffuse.cli.places import safe_name

    numbers = {key: f"{value:g}" if isinstance(value, float) else value for key, value in settings.items()}
    numbers |= {"size": "x".join(map(str, settings["size"]))} if settings.get("size") else {}
    numbers |= {"grid": "-".join(f"{t:g}" for t in settings["grid"])} if isinstance(settings.get("grid"), list) else {}
    asked = [f"{key}{value}" for key, value in numbers.items() if value is not None]
    words = [f"seed{seed}", *(f"label{label}" for label in labels), *conds, *asked]
    return "-".join(["samples", *map(safe_name, words)])[:120]

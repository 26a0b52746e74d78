"""Options of `undiffuse sample` by concern, and what their words mean for `Model.sample_result`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

# -- what to draw -------------------------------------------------------------------------------------

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="CLASS",
        help="Class by name or number; several (3,4 or repeated) take turns, none is unconditional; default: each "
        "class in turn, of several labels each combination (Model.sample in Python: unconditional).",
        show_default=False,
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--cond",
        metavar="NAME=VALUE",
        help="A condition: caption='a red square', a label: colour=red, a vector: pose=0.1,0.2, a map or an "
        "embedding: depth=FILE; repeated, values of one name take turns.",
        show_default=False,
    ),
]
OneLabel = Annotated[
    str | None, typer.Option("--label", help="Class by name or number; default: none.", show_default=False)
]
OneCondition = Annotated[
    list[str] | None,
    typer.Option("--cond", metavar="NAME=VALUE", help="A condition; as for undiffuse sample.", show_default=False),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", metavar="TEXT", help="Short for --cond prompt=TEXT; repeated, they take turns.", show_default=False
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="HxW", help="Images: height and width in pixels, such as 96x64.", show_default=False
    ),
]
Prefix = Annotated[str | None, typer.Option("--prefix", help="Text that every sample begins with.", show_default=False)]
Length = Annotated[
    int | None,
    typer.Option("--length", help="Texts: tokens of a sample; more than in training is fine.", show_default=False),
]
Stride = Annotated[
    int | None,
    typer.Option("--stride", help="Longer texts: new tokens per window; default: half of it.", show_default=False),
]

# -- guidance -----------------------------------------------------------------------------------------

Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance scale; 1 is none.", show_default=False)
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval",
        metavar="LOW,HIGH",
        help="Guide only where noise over signal (texts: time) lies between these.",
        show_default=False,
    ),
]
GuidanceRescale = Annotated[
    float | None,
    typer.Option(
        "--guidance-rescale",
        help="Share in [0, 1] of the contrast that guidance adds to take back.",
        show_default=False,
    ),
]
Negative = Annotated[
    list[str] | None,
    typer.Option(
        "--negative",
        metavar="NAME=VALUE",
        help="A condition to move away from, by --guidance: label=3; repeatable, written as --cond is.",
        show_default=False,
    ),
]
Autoguide = Annotated[
    str | None,
    typer.Option(
        "--autoguide", metavar="MODEL", help="A weaker model to move away from, by --guidance.", show_default=False
    ),
]
Classifier = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        metavar="FOLDER",
        help="A classifier of clean images that pulls each sample to its label.",
        show_default=False,
    ),
]
ClassifierScale = Annotated[float, typer.Option("--classifier-scale", help="How hard it pulls; 0 is not at all.")]
ClassifierLabel = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier-label",
        metavar="CLASS",
        help="Class to pull to, by name or number; default: the label asked for.",
        show_default=False,
    ),
]
Threshold = Annotated[
    str | None,
    typer.Option(
        "--threshold", help="Bound every answer to the data's range: static, dynamic or none.", show_default=False
    ),
]

# -- steps --------------------------------------------------------------------------------------------

SolverOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--solver-option",
        metavar="NAME=VALUE",
        help="An option of the solver: eta=0.5; repeatable.",
        show_default=False,
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        help="Spacing of the steps: logsnr, t, published, ...; or their times: 1,0.6,0.2,0.",
        show_default=False,
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        "--parallel",
        metavar="STEPS",
        help="Compute so many steps at once: fewer, larger calls, for GPUs.",
        show_default=False,
    ),
]
ParallelTol = Annotated[
    float | None,
    typer.Option(
        "--parallel-tol", help="When a step is final there, in units of its noise; default 0.1.", show_default=False
    ),
]

# -- tokens -------------------------------------------------------------------------------------------

Temperature = Annotated[
    float | None,
    typer.Option("--temperature", help="Tokens: below 1 sharper than the model, above 1 flatter.", show_default=False),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Tokens: keep the likeliest so many classes of each.", show_default=False)
]
Truncation = Annotated[
    float | None,
    typer.Option(
        "--truncation",
        help="Tokens: keep the likeliest classes that together reach this share; 1 is all.",
        show_default=False,
    ),
]
Purity = Annotated[
    float | None,
    typer.Option(
        "--purity",
        help="Tokens: sharpen sure ones so strongly and open them first, by token-budget.",
        show_default=False,
    ),
]
TokensPerCall = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-call", help="Tokens: most that open with one evaluation, by token-budget.", show_default=False
    ),
]


def given(**settings: Any) -> dict[str, Any]:
    """Return the settings that were given: those that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def named(context: typer.Context, *names: str) -> Iterator[str]:
    """Yield the options that the command line gives among parameters of these names, as words such as --set-size."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            yield parameter.opts[-1]


def read_interval(text: str | None) -> tuple[float, float] | None:
    """Return the two numbers of "0.3,3".

    Raises:
        ValueError: It is not of that form.
    """
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--guidance-interval {text!r} is not two numbers; write LOW,HIGH, such as 0.3,3.") from None
    return low, high


def read_grid(text: str | None) -> str | list[float] | None:
    """Return the name of a spacing, or the times of "1,0.6,0.2,0".

    Raises:
        ValueError: It is a list of something else.
    """
    if text is None or "," not in text:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--grid {text!r} is no list of times; write falling ones, such as 1,0.6,0.2,0, or a name such as logsnr."
        ) from None


def read_options(words: list[str] | None) -> dict[str, Any] | None:
    """Return a solver's options by name: a number where the value reads as one, true or false, else text.

    Raises:
        ValueError: A word is not NAME=VALUE.
    """
    return dict(_named_value("--solver-option", word, "eta=0.5") for word in words) if words else None


def read_load(words: list[str] | None) -> dict[str, Any]:
    """Return the options of `undiffuse.load` by name.

    Raises:
        ValueError: A word is not NAME=VALUE, or has an option of its own.
    """
    found = dict(_named_value("--load", word, "lora=ink.safetensors") for word in words or [])
    for name in ("dtype", "device", "compile"):
        if name in found:
            raise ValueError(f"--load {name}={found[name]} has an option of its own: --{name}, where a command has it.")
    return found


def read_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width from "96x64"; "64" is both.

    Raises:
        ValueError: It is not of that form.
    """
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size {text!r} is not a height and a width; write HxW, such as 96x64.")
    return int(parts[0]), int(parts[-1])


def read_tol(tol: float | None, steps: int | None) -> float | None:
    """Return --parallel-tol.

    Raises:
        ValueError: It was given without --parallel.
    """
    if steps is None and tol is not None:
        raise ValueError(f"--parallel-tol {tol} belongs to --parallel; give the number of steps too.")
    return tol


def _named_value(option: str, text: str, example: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise ValueError(f"{option} {text!r} says nothing; write NAME=VALUE, for example {example}.")
    for read in (int, float):
        with suppress(ValueError):
            return name, read(value)
    return name, {"true": True, "false": False}.get(value, value)

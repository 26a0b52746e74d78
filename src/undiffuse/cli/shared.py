"""Options that mean the same in every sub-command, under the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run's folder, a built-in model (digits, cifar10), or a pipeline of diffusers.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and all else on stderr.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", help="Any integer; the same seed gives the same result.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Load = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        metavar="NAME=VALUE",
        help="How a pipeline of diffusers is loaded: lora=FILE, lora_scale=0.8, network=FILE, slicing=true, "
        "offload=model, size=512, scheduler=FILE; repeatable.",
        show_default=False,
    ),
]
Solver = Annotated[
    str | None, typer.Option("--solver", help="Rule that steps; default: the model's own.", show_default=False)
]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Sampling steps; default: the model's own.", show_default=False)
]
Resize = Annotated[
    str, typer.Option("--resize", help="How pictures of another size are made to fit: crop, pad or stretch.")
]
MaxBad = Annotated[
    float, typer.Option("--max-bad", help="Share of files that may be unreadable; they are listed and left out.")
]

"""`undiffuse convert`: write a model as a folder that diffusers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undiffuse.cli.shared import Json

EPILOG = """\b
Examples:
  undiffuse convert models/stable-diffusion OUT
  undiffuse convert models/stable-diffusion OUT --dtype bfloat16 --lora styles/ink.safetensors
"""


def convert(
    model: Annotated[str, typer.Argument(help="The folder of a diffusers pipeline or network, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, empty or new.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    lora: Annotated[
        str, typer.Option(metavar="FILE", help="LoRA weights to fuse in; needs peft.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """Write a model that came from diffusers as a folder that diffusers reads, and read it back.

    Weights are safetensors in the dtype asked for. Networks trained here have no counterpart in diffusers and are
    refused; the message says why.
    """
    from undiffuse.cli.output import Output
    from undiffuse.models import load
    from undiffuse.pretrained.convert import write_diffusers
    from undiffuse.pretrained.loading import is_diffusers

    output = Output(json)
    options = {"dtype": dtype, "lora": lora} if is_diffusers(model) else {}
    folder = write_diffusers(load(model, **options), out)
    again = load(folder)
    output.say(f"{again.info['pipeline']}, {again.parameters:,} parameters, read back")
    output.finish(f"The result is {folder}", {"folder": str(folder), "parameters": again.parameters, "dtype": dtype})

"""`undiffuse convert`: write a model as a folder that diffusers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undiffuse.cli.shared import Json

EPILOG = """\b
Examples:
  undiffuse convert runs/photos OUT
  undiffuse convert runs/ink OUT
  undiffuse convert models/stable-diffusion OUT
  undiffuse convert models/stable-diffusion OUT --dtype bfloat16 --lora styles/ink.safetensors
"""


def convert(
    model: Annotated[
        str,
        typer.Argument(help="A pipeline or network of diffusers, or a run that trained or tuned one."),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write, empty or new.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    lora: Annotated[
        str, typer.Option(metavar="FILE", help="LoRA weights to fuse in; needs peft.", show_default=False)
    ] = "",
    lora_scale: Annotated[float, typer.Option(help="How much of them.")] = 1.0,
    json: Json = False,
) -> None:
    """Write a model whose network is one of diffusers as a folder that diffusers reads, and read it back.

    Weights are safetensors in the dtype asked for. Our own networks have no counterpart in diffusers and are refused;
    the message says why.
    """
    import torch

    from undiffuse.cli.output import Output
    from undiffuse.models import load
    from undiffuse.pretrained.convert import write_diffusers
    from undiffuse.pretrained.loading import is_diffusers
    from undiffuse.pretrained.options import PretrainedOptions

    output = Output(json)
    options = PretrainedOptions(dtype=dtype, lora=lora, lora_scale=lora_scale)
    if is_diffusers(model):
        chosen = load(model, dtype=dtype, lora=lora, lora_scale=lora_scale)
    elif options.lora:
        raise ValueError(f"--lora {lora} is for pipelines of diffusers; {model} is none. Leave it out.")
    else:
        chosen = load(model).to(dtype=getattr(torch, dtype))
    folder = write_diffusers(chosen, out)
    again = load(folder)
    output.say(f"{again.info['pipeline']}, {again.parameters:,} parameters, read back")
    if chosen.codec is not None and again.codec is None:
        output.say(f"it makes latents, for the codec of {model}, which diffusers does not have")
    output.finish(f"The result is {folder}", {"folder": str(folder), "parameters": again.parameters, "dtype": dtype})

"""Options of `undiffuse.load` for models of diffusers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from undiffuse.words import did_you_mean

Offload = Literal["none", "model", "sequential"]


@dataclass(frozen=True, kw_only=True)
class PretrainedOptions:
    """How a pipeline of diffusers is loaded.

    Args:
        dtype: Of network, encoders and codec: "float32", "bfloat16" or "float16".
        device: Where they go; None leaves them on the CPU.
        offload: Keep on the accelerator only the part that runs ("model") or the layer ("sequential"); by accelerate.
        compile: Compile the network in place.
        slicing: Compute attention, and the decoder's batch, slice by slice: slower, less memory.
        network: Safetensors file, or the folder of one, with other weights of the network than the folder's.
        lora: Folder or file of LoRA weights (safetensors), read by diffusers' own loader and added to the weights;
            needs peft.
        lora_scale: How much of it; 0 is none.
        scheduler: The config of another scheduler than the folder's: its dict, or the path of its JSON file. A network
            without a pipeline has none, so it must be given here.
        size: Height and width of images in pixels, where the pipeline's own are not meant; 0 for those.

    Raises:
        ValueError: An unknown word, or a number that is none.
    """

    dtype: str = "float32"
    device: Any = None
    offload: Offload = "none"
    compile: bool = False
    slicing: bool = False
    network: str = ""
    lora: str = ""
    lora_scale: float = 1.0
    scheduler: Any = None
    size: int = 0

    @classmethod
    def of(cls, **options: Any) -> PretrainedOptions:
        """Return the options of these names.

        Raises:
            TypeError: There is no such option; the message names the nearest.
            ValueError: See above.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = did_you_mean(name, known)
                raise TypeError(f"load() knows no option {name!r} of pipelines; use {', '.join(known)}.{near}")
        return cls(**options)

    def __post_init__(self) -> None:
        dtypes = ("float32", "bfloat16", "float16")
        if str(self.dtype).removeprefix("torch.") not in dtypes:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(dtypes)}.")
        if self.offload not in get_args(Offload):
            raise ValueError(f"offload={self.offload!r} is unknown; choose one of {', '.join(get_args(Offload))}.")
        for name in ("compile", "slicing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} is neither true nor false.")
        if not isinstance(self.lora_scale, int | float) or not math.isfinite(self.lora_scale):
            raise ValueError(f"lora_scale={self.lora_scale} must be a finite number.")
        if self.lora_scale != 1.0 and not self.lora:
            raise ValueError(f"lora_scale={self.lora_scale} scales LoRA weights; give lora too, or leave it out.")
        if not isinstance(self.size, int) or self.size < 0:
            raise ValueError(f"size={self.size} must be a number of pixels, or 0 for the model's own.")

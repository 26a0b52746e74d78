"""Options of `undiffuse.load` for models of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

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
        lora: Folder or file of LoRA weights (safetensors), read by diffusers' own loader; needs peft.
        lora_scale: How much of it.
        scheduler: The config of another scheduler than the folder's: its dict, or the path of its JSON file. A network
            without a pipeline has none, so it must be given here.
        size: Height and width of images in pixels, where the pipeline's own are not meant; 0 for those.

    Raises:
        ValueError: An unknown word.
    """

    dtype: str = "float32"
    device: Any = None
    offload: Offload = "none"
    compile: bool = False
    slicing: bool = False
    lora: str = ""
    lora_scale: float = 1.0
    scheduler: Any = None
    size: int = 0

    def __post_init__(self) -> None:
        dtypes = ("float32", "bfloat16", "float16")
        if str(self.dtype).removeprefix("torch.") not in dtypes:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(dtypes)}.")
        if self.offload not in get_args(Offload):
            raise ValueError(f"offload={self.offload!r} is unknown; choose one of {', '.join(get_args(Offload))}.")
        if self.size < 0:
            raise ValueError(f"size={self.size} must be a number of pixels, or 0 for the model's own.")

"""A network of diffusers as a network of ours, with named blocks for hooks. Wrapped, never rewritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.conditioners import Conditioners
from undiffuse.networks.embedded import Embedded

Ask = Callable[[Any, Tensor, Tensor, Embedded], Tensor]
"""(network, x, timesteps (B,), conditions) -> output (B, C or 2C, H, W)."""


class DiffusersNetwork(Backbone):
    """Calls a network of diffusers with what our conditions hold.

    The network stays in its mode of evaluation while it trains: its dropout, and the dropping of labels inside a DiT,
    draw from the global generator; labels are dropped by our objectives.

    Args:
        network: The network.
        ask: How it is called.
        channels: Channels of the states. A network that puts out twice as many predicts its variance, too.
        conditioners: What reads conditions; none where another part does, as in pipelines.

    Attributes:
        learns_variance: Whether it does.
        patch: How many elements of the state a token spans on an axis, 1 for a U-Net; Flux counts packed latents.
    """

    counts_steps = True

    def __init__(self, network: nn.Module, ask: Ask, channels: int, conditioners: Conditioners | None = None) -> None:
        super().__init__(conditioners or Conditioners())
        self.network = network.eval()
        self.ask, self.channels = ask, channels
        config: Any = network.config
        self.learns_variance = getattr(config, "out_channels", channels) == 2 * channels
        packed = type(network).__name__ == "FluxTransformer2DModel"
        self.patch = 2 if packed else int(getattr(config, "patch_size", None) or 1)
        self._blocks = named_blocks(network)

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Return "out" (B, C, H, W), and "variance" in [0, 1] where it is learned.

        Args:
            x: (B, C, H, W), in the network's dtype.
            noise_level: (B,), float32: the step of training, as diffusers counts them.
            cond: Embedded conditions.
        """
        assert noise_level is not None
        cond = self.conditioners.embed(None, len(x)) if cond is None else cond
        raw = self.ask(self.network, x, noise_level, cond).to(x.device)
        if not self.learns_variance:
            return {"out": raw}
        out, rest = raw.split(self.channels, dim=1)
        return {"out": out, "variance": (rest + 1) / 2}

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named blocks; see `named_blocks`."""
        return self._blocks

    def train(self, mode: bool = True) -> DiffusersNetwork:
        """Set the mode of all but the wrapped network."""
        super().train(mode)
        self.network.eval()
        return self

    def recompute(self, on: bool) -> None:
        """Let diffusers compute activations again in the backward pass, or not."""
        network: Any = self.network
        network.enable_gradient_checkpointing() if on else network.disable_gradient_checkpointing()

    def compile_network(self) -> bool:
        """Compile the network in place, as diffusers does; hooks then see only what runs uncompiled."""
        self.network.compile()
        return True


_SIDE_BY_SIDE = (
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)  # return (text, picture)


def named_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a network in order of execution: down0..., mid, up0... of a U-Net, with their resnets and
    transformer blocks as "down0.resnet0", "mid.attention0"; block0..., single0... of a transformer.

    A block that returns several tensors is read and edited at the one of the picture.
    """
    found: dict[str, nn.Module] = {}
    for kind, short in (("down_blocks", "down"), ("mid_block", "mid"), ("up_blocks", "up")):
        part = getattr(network, kind, None)
        parts = {short: part} if kind == "mid_block" else {f"{short}{i}": one for i, one in enumerate(part or [])}
        for name, block in parts.items():
            if block is not None:
                found |= _inside(name, block)
                found[name] = block
    for kind, short in (("transformer_blocks", "block"), ("single_transformer_blocks", "single")):
        for i, block in enumerate(getattr(network, kind, None) or []):
            found[f"{short}{i}"] = block
    for block in found.values():
        block.main_output = 1 if type(block).__name__ in _SIDE_BY_SIDE else 0  # type: ignore[assignment]
    return found


def _inside(name: str, block: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for kind, short in (("resnets", "resnet"), ("attentions", "attention")):
        for i, layer in enumerate(getattr(block, kind, None) or []):
            if layer is not None:
                found[f"{name}.{short}{i}"] = layer
    return found


def ask_unet(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """UNet2DModel: labels where it has them."""
    labels = None if cond.vector is None else cond.vector[:, 0]
    return network(x, timestep, class_labels=labels, return_dict=False)[0]


def ask_dit(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """DiTTransformer2DModel, or Transformer2DModel with labels."""
    assert cond.vector is not None
    return network(x, timestep=timestep, class_labels=cond.vector[:, 0], return_dict=False)[0]

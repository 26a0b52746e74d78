"""Networks of diffusers from options of ours, and options from their configurations.

What the data decide (size, channels, number of classes) is no option. A class more than the data have stands for "no
class", as in our own networks; a DiT of diffusers has that row by itself.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.errors import ConfigError
from undiffuse.networks.conditioners import Conditioners
from undiffuse.networks.diffusers_network import DiffusersNetwork, ask_dit, ask_unet
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.options import DiffusersDiTOptions, DiffusersUNetOptions, check_settings
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

Options = DiffusersUNetOptions | DiffusersDiTOptions
CLASSES = {"diffusers-unet": "UNet2DModel", "diffusers-dit": "DiTTransformer2DModel"}
_OF_DATA = ("sample_size", "in_channels", "out_channels", "num_class_embeds", "num_embeds_ada_norm")
_FIXED = {  # what may not be set otherwise: other clocks, other conditions, other ways to fold patches
    "time_embedding_type": "positional",
    "class_embed_type": None,
    "num_train_timesteps": None,
    "norm_type": "ada_norm_zero",
    "dropout": 0.0,
}
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


class ClassNumbers(nn.Module):
    """Hands class numbers on to a network that has the table of them.

    Args:
        null: The number of no class; None where each item needs one.
    """

    where: Tensor

    def __init__(self, null: int | None) -> None:
        super().__init__()
        self.number = null
        self.register_buffer("where", torch.zeros(0), persistent=False)

    def forward(self, labels: Tensor, drop: Tensor | None = None) -> Embedded:
        """Return the numbers of labels (B,) as an integer vector (B, 1), those of rows to `drop` as the null.

        Raises:
            ValueError: There is no null, or a label lies outside 0 .. null - 1.
        """
        labels = labels.to(self.where.device).long()
        if self.number is not None and labels.device.type == "cpu":  # elsewhere looking would wait for the device
            outside = labels[(labels < 0) | (labels >= self.number)]
            if outside.numel():
                raise ValueError(f"label {int(outside[0])} does not exist; this model knows 0 to {self.number - 1}.")
        if drop is not None:
            labels = torch.where(drop.to(labels.device), self._null(), labels)
        return Embedded(vector=labels[:, None])

    def null(self, batch: int) -> Embedded:
        """Return the null for each row, (batch, 1).

        Raises:
            ValueError: There is none.
        """
        return Embedded(vector=torch.full((batch, 1), self._null(), device=self.where.device))

    def _null(self) -> int:
        if self.number is None:
            raise ValueError(
                "this model was trained with a label for every item, so none can be left out (nor guided by leaving it "
                "out); give cond={'label': ...}."
            )
        return self.number


def build_diffusers(options: Options, spec: DataSpec, variance: bool = False) -> DiffusersNetwork:
    """Return a freshly initialised network of diffusers.

    Args:
        options: Which, and how large.
        spec: The data: images, with a class label or without.
        variance: Whether it puts out the variance of a step beside.

    Raises:
        ConfigError: diffusers is not there.
        ValueError: The network does not fit the data, or a setting is unknown or not possible.
    """
    made = _class(CLASSES[options.kind])
    _check_data(options, spec)
    arguments = _of_unet(options, spec) if isinstance(options, DiffusersUNetOptions) else _of_dit(options, spec)
    arguments |= _checked(options, made)
    arguments |= {"in_channels": spec.channels, "out_channels": spec.channels * (2 if variance else 1)}
    try:
        network = made(**arguments)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:  # diffusers checks no types
        raise ValueError(
            f"model={options.kind} cannot be built ({error}); change settings={options.settings!r}, or the options "
            f"beside it."
        ) from error
    last = network.conv_out if isinstance(options, DiffusersUNetOptions) else network.proj_out_2
    for part in last.parameters():
        nn.init.zeros_(part)  # as in our own networks: the first answer is zero
    null = len(spec.classes) if spec.classes or isinstance(options, DiffusersDiTOptions) else None
    reads = {} if null is None else {"label": ClassNumbers(null)}
    ask = ask_unet if isinstance(options, DiffusersUNetOptions) else ask_dit
    return DiffusersNetwork(network, ask, spec.channels, Conditioners(reads))


def options_of(config: Mapping[str, Any]) -> Options:
    """Return the options of a network that has the configuration of one of diffusers; what the data decide aside.

    Raises:
        ValueError: It is another class, or set as those trained here cannot be.
    """
    name = config.get("_class_name")
    if name not in CLASSES.values():
        raise ValueError(f"networks of class {name} are not trained here; {' and '.join(CLASSES.values())} are")
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in _OF_DATA}
    if name == "UNet2DModel":
        named, implied = _name_unet(given)
        options: Options = DiffusersUNetOptions(**named)
    else:
        heads, head = given.pop("num_attention_heads", 16), given.pop("attention_head_dim", 72)
        named = {"width": heads * head, "heads": heads}
        named |= {"depth": given.pop("num_layers", 28), "patch": given.pop("patch_size", 2)}
        options, implied = DiffusersDiTOptions(**named), {}
    usual = {key: part.default for key, part in inspect.signature(_class(str(name)).__init__).parameters.items()}
    rest = {key: value for key, value in given.items() if _plain(implied.get(key, usual.get(key))) != _plain(value)}
    rest.pop("dropout", None)  # it is off in training here
    options = type(options)(**named, settings=json.dumps(rest, sort_keys=True) if rest else "")
    _checked(options, _class(str(name)))
    return options


def _of_unet(options: DiffusersUNetOptions, spec: DataSpec) -> dict[str, Any]:
    sides = spec.shape[1:]
    attending = {level % len(options.multipliers) for level in options.attention}
    kinds = [level in attending for level in range(len(options.multipliers))]
    return {
        "sample_size": sides[0] if sides[0] == sides[1] else sides,
        "block_out_channels": tuple(options.channels * part for part in options.multipliers),
        "layers_per_block": options.blocks,
        "down_block_types": tuple(_DOWN[kind] for kind in kinds),
        "up_block_types": tuple(_UP[kind] for kind in reversed(kinds)),
        "attention_head_dim": options.head,
        "norm_num_groups": options.groups,
        "num_class_embeds": len(spec.classes) + 1 if spec.classes else None,
    }


def _name_unet(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options of ours for a configuration, and what they imply of it; what they do not is left to `settings`."""
    widths = given.get("block_out_channels", (224, 448, 672, 896))
    downs = given.get("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3))
    named: dict[str, Any] = {
        "channels": widths[0],
        "multipliers": tuple(max(1, width // widths[0]) for width in widths),
        "blocks": given.get("layers_per_block", 2),
        "attention": tuple(level for level, kind in enumerate(downs) if kind == _DOWN[1]),
        "head": given.get("attention_head_dim", 8) or 8,
        "groups": given.get("norm_num_groups", 32),
    }
    options = DiffusersUNetOptions(**named)
    return named, _of_unet(options, DataSpec(kind="image", shape=(1, options.patch, options.patch)))


def _of_dit(options: DiffusersDiTOptions, spec: DataSpec) -> dict[str, Any]:
    return {
        "sample_size": spec.shape[1],
        "num_attention_heads": options.heads,
        "attention_head_dim": options.width // options.heads,
        "num_layers": options.depth,
        "patch_size": options.patch,
        "num_embeds_ada_norm": len(spec.classes),
    }


def _checked(options: Options, made: Any) -> dict[str, Any]:
    """Return the further settings.

    Raises:
        ValueError: One is unknown, follows from the data, or cannot be trained here.
    """
    found = check_settings(options.settings)
    known = [name for name in inspect.signature(made.__init__).parameters if name != "self"]
    for name, value in found.items():
        if name in _OF_DATA:
            raise ValueError(f"settings: {name} follows from the data; leave it out.")
        if name not in known:
            raise ValueError(f"settings: {made.__name__} knows no {name!r}.{did_you_mean(name, known)}")
        if name in _FIXED and value != _FIXED[name]:
            raise ValueError(f"settings: {name}={value!r} cannot be trained here; it is {_FIXED[name]!r}.")
    return found


def _check_data(options: Options, spec: DataSpec) -> None:
    others = sorted(spec.conditions.keys() - {"label"})
    if others:
        raise ValueError(
            f"model={options.kind} reads a class label and nothing else, but these data have {', '.join(others)}; use "
            f"model=unet or dit, or leave the conditions out (data.cond=none)."
        )
    if len(spec.shape) != 3 or any(side % options.patch for sides in (spec.shape[1:], *spec.sizes) for side in sides):
        raise ValueError(
            f"model={options.kind} needs sides that are multiples of {options.patch}, and these data have shape "
            f"{spec.shape}; set data.size."
        )
    if isinstance(options, DiffusersDiTOptions) and (spec.shape[1] != spec.shape[2] or spec.sizes):
        raise ValueError(f"model={options.kind} needs square images of one size; these have shape {spec.shape}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            f"networks of class {name} need diffusers: pip install 'undiffuse[pretrained]' ({error})."
        ) from error
    return getattr(diffusers, name)

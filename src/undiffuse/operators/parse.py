"""Operators and noises from a line of text, as the command and recipes write them.

    blur:gaussian,sigma=2 | downsample:4          first the blur
    colourise & downsample:4                      two measurements of one item
    inpaint:random,0.7                            options by place or by name

The names and options are those of `catalogue`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse._lazy import resolve
from undiffuse.operators.base import Operator, Shape
from undiffuse.operators.catalogue import NOISES, OPERATORS, OperatorFacts, Option
from undiffuse.operators.compose import chain, per_frame, stack
from undiffuse.operators.noise import NoiseModel
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean


def parse_operator(
    text: str,
    spec: DataSpec | Shape,
    *,
    seed: int = 0,
    items: Sequence[int] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Operator:
    """Build the operator that a text describes.

    Args:
        text: See the module.
        spec: The data, or the shape of one item. On videos, operators for pictures act on every frame alike.
        seed: Of what is drawn at random.
        items: Numbers of the items of a batch: kinds that can be drawn for each picture then are.
        tensors: Values of file options that are given here instead of as a path, such as {"mask": mask}.

    Raises:
        ValueError: A name, option or value is unknown or does not fit, with the nearest known one.
    """
    if isinstance(spec, DataSpec) and spec.is_discrete:
        raise ValueError(
            "operators measure continuous data; this model makes tokens. Known tokens are given to `undiffuse inpaint`."
        )
    shape = spec.shape if isinstance(spec, DataSpec) else tuple(spec)
    video = isinstance(spec, DataSpec) and spec.kind == "video"
    sides = []
    for side in text.split("&"):
        built: list[Operator] = []
        for part in side.split("|"):
            built.append(
                _build(part.strip(), built[-1].out_shape if built else shape, video, seed, items, tensors or {})
            )
        sides.append(chain(*built))
    return sides[0] if len(sides) == 1 else stack(sides)


def parse_noise(text: str, spec: DataSpec | None = None, *, units: str = "image") -> NoiseModel:
    """Build the noise model that a text such as "poisson,scale=30" or "gaussian:0.05" describes.

    Args:
        text: A name and its options, by place or by name.
        spec: The data, for its units; pictures by default.
        units: "image": standard deviations and widths are in [0, 1], black to white (in data units where the data have
            no range), and are converted. "model": in model units, as the classes take them.

    Raises:
        ValueError: A name, option or value is unknown or out of range.
    """
    if units not in ("image", "model"):
        raise ValueError(f"units={units!r} of a noise are unknown; choose image or model.")
    name, given = _split(text)
    name = name.replace("-", "_")
    if name not in NOISES:
        raise ValueError(f"noise {name!r} is unknown; choose {', '.join(NOISES)}.{did_you_mean(name, NOISES)}")
    facts = NOISES[name]
    values = _options(f"noise {name!r}", given, facts.options, {})
    values = {key: values.get(key, option.default) for key, option in facts.options.items()}
    make = resolve(facts.location)
    written = make(**values)  # refuses numbers as they were written, before they are converted
    if units == "model" or not facts.image:
        return written  # type: ignore[no-any-return]
    if spec is None or spec.range is not None:
        _check_image_units(name, {key: values[key] for key in facts.image})
    values = {key: value * image_units(spec) if key in facts.image else value for key, value in values.items()}
    return make(**values)  # type: ignore[no-any-return]


def _check_image_units(name: str, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        if value > 1:
            raise ValueError(
                f"{key}={value:g} of {name} noise is more than the whole range of the data, which counts as [0, 1]; 5 "
                "in 0..255 is 0.02."
            )


def noise_from_json(fields: Mapping[str, Any]) -> NoiseModel:
    """Rebuild a noise model from its `to_json`, in model units."""
    name = str(fields["name"])
    if name not in NOISES:
        raise ValueError(f"noise {name!r} is unknown to this version, which knows {', '.join(NOISES)}.")
    return resolve(NOISES[name].location)(**{key: value for key, value in fields.items() if key != "name"})  # type: ignore[no-any-return]


def find_facts(text: str) -> tuple[str, OperatorFacts, list[str]]:
    """Return name, facts and the options still unread of one part of a text.

    Raises:
        ValueError: The name, or the kind within a family, is unknown.
    """
    name, given = _split(text)
    if given and f"{name}:{given[0]}" in OPERATORS:
        name, given = f"{name}:{given[0]}", given[1:]
    if name in OPERATORS:
        return name, OPERATORS[name], given
    kinds = [known for known in OPERATORS if known.startswith(f"{name}:")]
    if kinds:
        said = f"{name}:{given[0]}" if given else name
        raise ValueError(f"operator {said!r} is unknown; choose {', '.join(kinds)}.{did_you_mean(said, kinds)}")
    raise ValueError(
        f"operator {name!r} is unknown; `undiffuse degrade --list` lists them all.{did_you_mean(name, OPERATORS)}"
    )


def _build(
    text: str, shape: Shape, video: bool, seed: int, items: Sequence[int] | None, tensors: Mapping[str, Tensor]
) -> Operator:
    name, facts, given = find_facts(text)
    values = _options(f"operator {name!r}", given, facts.options, tensors)
    for key, option in facts.options.items():
        if option.file and option.default == "" and key not in values:
            raise ValueError(f"operator {name!r} needs {key}: {option.help}, as {name}:{key}=FILE.")
    if items is not None and facts.has("per-image") and not video:
        values["items"] = list(items)
    make = resolve(facts.location)
    if video and not facts.has("video"):
        return per_frame(make(shape[1:], seed=seed, **values), shape[0])
    return make(shape, seed=seed, **values)  # type: ignore[no-any-return]


def _split(text: str) -> tuple[str, list[str]]:
    """Split "name:a,b=c" or "name,a,b=c" into the name and its options."""
    cut = min((text.find(mark) for mark in ":," if mark in text), default=len(text))
    rest = text[cut + 1 :].strip()
    return text[:cut].strip(), [part.strip() for part in rest.split(",")] if rest else []


def _options(what: str, given: list[str], known: Mapping[str, Option], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    values: dict[str, Any] = {key: tensors[key] for key in known if key in tensors}
    for place, part in enumerate(given):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            if place >= len(known):
                raise ValueError(
                    f"{what} has {len(known)} options ({', '.join(known) or 'none'}); {part!r} is one more."
                )
            key, value = list(known)[place], part
        if key not in known:
            listed = ", ".join(f"{name}={option.default}" for name, option in known.items()) or "none"
            raise ValueError(f"{what} has no option {key!r}; its options are {listed}.{did_you_mean(key, known)}")
        if key in values:
            raise ValueError(f"{what} is given {key} twice.")
        values[key] = _value(what, key, value.strip(), known[key])
    return values


def _value(what: str, key: str, text: str, option: Option) -> Any:
    if option.file:
        return _file_value(what, key, text, option)
    kind = type(option.default)
    if kind is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError(f"{what}: {key}={text!r} must be true or false.")
        return text.lower() in ("true", "yes", "1")
    if kind is str:
        return text
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{what}: {key}={text!r} must be a number ({option.help}).") from None
    if kind is int and number != int(number):
        raise ValueError(f"{what}: {key}={text} must be a whole number ({option.help}).")
    return int(number) if kind is int else number


def _file_value(what: str, key: str, text: str, option: Option) -> Any:
    if isinstance(option.default, float):
        try:
            return float(text)
        except ValueError:
            pass
    return read_array(text, f"{what}: {key}")


def read_array(path: str, what: str) -> Tensor:
    """Read a .npy array as it is, or a picture as grey (H, W) in [0, 1], in float64 or complex128.

    Raises:
        ValueError: The file cannot be read.
    """
    import numpy as np

    from undiffuse.errors import DataError
    from undiffuse.images import read_image

    file = Path(path).expanduser()
    try:
        if file.suffix.lower() == ".npy":
            array = torch.from_numpy(np.load(file, allow_pickle=False))
            return array.to(torch.complex128 if array.is_complex() else torch.float64)
        return torch.from_numpy(read_image(file, "grey")[..., 0]).double() / 255
    except (OSError, ValueError, DataError) as error:
        raise ValueError(f"{what}: cannot read {path}: {error}") from None


def image_units(spec: DataSpec | None) -> float:
    """Return model units per image unit (per data unit where the data have no range)."""
    if spec is None or spec.range is not None:
        return 2.0
    return len(spec.std) / sum(spec.std) if spec.std else 1.0

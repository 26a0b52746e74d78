"""`--label` and `--cond` of `undiffuse sample`: words to conditions, and file names to maps and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from undiffuse.images.read import Channels
    from undiffuse.spec import ConditionSpec, DataSpec

_CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb", 4: "rgba"}
_FILES = ("embedding", "map")


def read_conditions(labels: list[str], conds: list[str], n: int, spec: DataSpec) -> dict[str, Any] | None:
    """Return the conditions that `--label` and `--cond` ask for, as plain values; several of a name take turns.

    Labels are one per sample. Of texts, vectors and names of files there is one, or one per sample.

    Raises:
        ValueError: A condition is not of the form NAME=VALUE, or a vector holds something else than numbers.
    """
    known = spec.conditions
    words: dict[str, list[str]] = {}
    for text in [f"label={label}" for label in labels] + conds:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ValueError(f"--cond {text!r} says nothing; write NAME=VALUE, for example label=3.")
        words.setdefault(name, []).append(value)
    if not words:
        from undiffuse.models.conditions import class_turns

        return class_turns(spec, n) or None
    found = {name: _read(name, values, n, known.get(name)) for name, values in words.items()}
    return {name: value for name, value in found.items() if value is not None} or None


def one_of_each(label: str | None, conds: list[str], spec: DataSpec) -> dict[str, Any] | None:
    """Return one value for each condition that `--label` and `--cond` name, for all items; None where they name none.

    Raises:
        ValueError: A condition has several.
    """
    told = words_of_each(label, conds, spec)
    return None if told is None else load_conditions(told, spec)


def words_of_each(label: str | None, conds: list[str], spec: DataSpec) -> dict[str, Any] | None:
    """Return what `one_of_each` returns with the names of files, which are not loaded; {} where a label is "none".

    Raises:
        ValueError: A condition has several.
    """
    if label is None and not conds:
        return None
    names = [words.partition("=")[0] for words in conds] + ["label"] * (label is not None)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or (label is not None and "," in label and label not in spec.classes):
        raise ValueError(f"{twice[0] if twice else 'label'} has several values; all items share one.")
    return read_conditions([label] if label is not None else [], conds, 1, spec) or {}


def load_conditions(cond: dict[str, Any] | None, spec: DataSpec) -> dict[str, Any] | None:
    """Return `cond` with the contents of files in place of their names.

    A .npy file holds an embedding, or a map in model units; where the model knows its text encoder, other words are
    captions. Pictures become maps: cut and resized to the data's size and mapped to [-1, 1], as the pictures of a data
    set are.

    Raises:
        ValueError: A file cannot be read as what the condition needs.
        DataError: A picture is broken.
    """
    known, loaded = spec.conditions, dict(cond or {})
    for name, value in loaded.items():
        if name in known and known[name].kind in _FILES:
            files = [value] if isinstance(value, str) else value
            once = {file: _load_or_keep(name, file, known[name], spec) for file in files}
            loaded[name] = once[value] if isinstance(value, str) else [once[file] for file in files]
    return loaded or None


def of_sample(cond: dict[str, Any] | None, number: int, spec: DataSpec) -> dict[str, Any]:
    """Return the conditions of sample `number`, from those that `read_conditions` gave for all."""
    own = {}
    for name, value in (cond or {}).items():
        part = spec.conditions.get(name)
        single = part is not None and part.kind == "vector" and not isinstance(value[0], list)
        own[name] = value[number] if isinstance(value, list) and not single else value
    return own


def _read(name: str, values: list[str], n: int, part: ConditionSpec | None) -> Any:
    if part is None:
        return values[0]  # the model refuses its name
    if part.kind == "label":
        if values == ["none"] and "none" not in part.classes:
            return None
        asked = [_class(word, part) for value in values for word in value.split(",") if word]
        return [asked[i % len(asked)] for i in range(n)] if asked else None
    read = [_numbers(name, value) if part.kind == "vector" else value for value in values]
    return read[0] if len(read) == 1 else [read[i % len(read)] for i in range(n)]


def _class(text: str, part: ConditionSpec) -> str | int:
    """Names of classes go before their numbers: the digits' class "3" is number 3 anyway."""
    return int(text) if text not in part.classes and text.lstrip("-").isdecimal() else text


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--cond {name}={text} holds something else than numbers; write {name}=0.1,0.2.") from None


def _load_or_keep(name: str, text: str, part: ConditionSpec, spec: DataSpec) -> torch.Tensor | str:
    is_caption = bool(part.encoder) and not text.endswith(".npy")
    return text if is_caption else _load(name, text, part, spec)


def _load(name: str, file: str, part: ConditionSpec, spec: DataSpec) -> torch.Tensor:
    import numpy as np
    import torch

    if not Path(file).is_file():
        raise ValueError(f"--cond {name}={file}: there is no such file; give a .npy file or, for a map, a picture.")
    if Path(file).suffix != ".npy":
        return _picture(name, file, part, spec)
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--cond {name}={file} cannot be read as an array: {error}") from None
    return torch.from_numpy(array if part.kind == "map" else array.astype(np.float32))


def _picture(name: str, file: str, part: ConditionSpec, spec: DataSpec) -> torch.Tensor:
    import numpy as np
    import torch

    from undiffuse.images.fit import fit
    from undiffuse.images.read import load_picture, to_array

    if part.kind != "map" or spec.kind not in ("image", "video") or part.width not in _CHANNELS:
        raise ValueError(
            f"--cond {name}={file}: a picture cannot be this condition, which is {part.kind} data of width "
            f"{part.width} for {spec.kind} data; give a .npy file."
        )
    channels = _CHANNELS[part.width]
    height, width = spec.shape[-2:]
    with open(file, "rb") as opened:
        picture = load_picture(opened, file, channels, side=None)
    pixels = to_array(fit(picture, height, width, "crop"), channels).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)

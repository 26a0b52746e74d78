"""Results that take long and depend on nothing but their inputs: kept in files named by a hash of those inputs.

A cache is never invalidated: whoever changes a tensor or an option asks for another name. `ContentHash` takes tensors
one by one, so that data sets which do not fit in memory can be hashed in batches.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_DIGEST = 20  # bytes: an accidental collision needs about 2^80 entries
_VARIABLE = "UNDIFFUSE_CACHE"


class ContentHash:
    """A hash of named tensors and options, fed piece by piece; the order of the pieces counts.

    Args:
        config: Whatever else the result depends on, as plain JSON types.

    Raises:
        TypeError: `config` holds something that is no plain JSON type.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST)
        self._feed("config", json.dumps(config, sort_keys=True).encode())

    def add(self, name: str, tensor: Tensor | np.ndarray) -> None:
        """Take in a tensor or array: its name, dtype, shape and bytes."""
        array = _as_bytes(tensor)
        self._feed(name, f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}".encode())
        self._hash.update(array)

    def name(self) -> str:
        """Return the hash of all that was taken in so far, 40 hexadecimal digits."""
        return self._hash.hexdigest()

    def _feed(self, name: str, data: bytes) -> None:
        self._hash.update(f"{len(name)} {name} {len(data)} ".encode() + data)


def content_hash(tensors: Mapping[str, Tensor | np.ndarray], config: Mapping[str, Any]) -> str:
    """Return a hash of tensors or arrays by name, in order of the names, and of options; 40 hexadecimal digits.

    Device and memory layout play no part; names, dtypes, shapes, bytes and options do.

    Raises:
        TypeError: `config` holds something that is no plain JSON type.
    """
    state = ContentHash(config)
    for name in sorted(tensors):
        state.add(name, tensors[name])
    return state.name()


def cache_folder() -> Path:
    """Return the folder of all caches: the environment variable UNDIFFUSE_CACHE, or ~/.cache/undiffuse."""
    given = os.environ.get(_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "undiffuse"


def load_or_make(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, or make them and write the file, whole or not at all.

    Args:
        path: The file; its name should hold a `content_hash` of all that `make` depends on.
        make: Called where there is no file, or a damaged one.

    Warns:
        UserWarning: The file is damaged, so its content is made again; or it cannot be written, so nothing is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            warnings.warn(f"{path} is damaged ({error}); its content is made again.", stacklevel=2)
    tensors = make()
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: save_file(stored, part))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        warnings.warn(
            f"{path} cannot be written ({reason}), so nothing is kept; set {_VARIABLE} to a folder that can.",
            stacklevel=2,
        )
    return tensors


def _as_bytes(tensor: Tensor | np.ndarray) -> memoryview:
    """Return the values in C order as bytes, whatever their dtype: NumPy does not know bfloat16."""
    import torch

    values = torch.as_tensor(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return values.data

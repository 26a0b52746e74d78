"""A loaded pipeline saved as a model of ours: a reference to its folder by path and hash, never a second copy.

What was trained since lies beside the reference, as files that diffusers reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from undiffuse.errors import CheckpointError
from undiffuse.pretrained.adapters import LORA_FILE, NETWORK_FILE

KIND = "pretrained"
_PARTS = (".json", ".safetensors", ".txt", ".model")
_FILES = ("network", "lora", "scheduler")  # options of loading that may be paths
_TUNED = {NETWORK_FILE: "network", LORA_FILE: "lora"}


def reference_to_json(info: dict[str, Any], tuned: Collection[str] = ()) -> dict[str, Any]:
    """Return what finds a loaded pipeline again: "kind", "source", "hash", "load", and "tuned" where there is such.

    Args:
        info: Of the model.
        tuned: Names of files that lie beside the reference.
    """
    source, load = Path(info["source"]).resolve(), dict(info.get("load", {}))
    load |= {name: str(Path(load[name]).expanduser().resolve()) for name in _FILES if isinstance(load.get(name), str)}
    found = {"kind": KIND, "source": str(source), "hash": _hash(source, load), "load": load}
    return {**found, "tuned": sorted(tuned)} if tuned else found


def referred(config: dict[str, Any], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the options of a reference that lies in `folder`.

    Raises:
        CheckpointError: The folder or a LoRA is gone, or holds other files than when the reference was written.
    """
    source, load = Path(config["source"]), dict(config.get("load") or {})
    for path in (source, *_beside(load)):
        if not path.exists():
            raise CheckpointError(f"the pipeline that this model refers to, {path}, is gone; put it back.")
    found = _hash(source, load)
    if found != config["hash"]:
        raise CheckpointError(
            f"the pipeline in {source} has changed: its hash is {found[:12]}... and this model refers to "
            f"{config['hash'][:12]}...; put the former files back, or load the folder itself."
        )
    return source, load | {_TUNED[name]: str((folder / name).resolve()) for name in config.get("tuned", [])}


def _beside(load: dict[str, Any]) -> list[Path]:
    """Return what was read beside the pipeline."""
    return [Path(load[name]) for name in _FILES if isinstance(load.get(name), str)]


def _hash(source: Path, load: dict[str, Any]) -> str:
    """Return the hash of a pipeline, and of what was read beside it where something was."""
    hashes = [folder_hash(path) for path in (source, *_beside(load))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def folder_hash(folder: Path) -> str:
    """Return a hash of names and contents of weights, configurations and vocabularies, 64 hexadecimal digits.

    Args:
        folder: A folder, or a single file.
    """
    found = [folder] if folder.is_file() else folder.rglob("*")
    paths = sorted(path for path in found if path.suffix in _PARTS and path.is_file())
    return _hash_of(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=16)  # a run that tunes a pipeline asks at every checkpoint
def _hash_of(folder: Path, stamped: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in stamped:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

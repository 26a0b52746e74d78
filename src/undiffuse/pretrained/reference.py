"""A loaded pipeline saved as a model of ours: a reference to its folder by path and hash, never a second copy."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from undiffuse.errors import CheckpointError

KIND = "pretrained"
_PARTS = (".json", ".safetensors", ".txt", ".model")


def reference_to_json(info: dict[str, Any]) -> dict[str, Any]:
    """Return what finds a loaded pipeline again: "kind", "source", "hash" and "load"."""
    source = Path(info["source"]).resolve()
    return {"kind": KIND, "source": str(source), "hash": folder_hash(source), "load": info.get("load", {})}


def referred(config: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the options of a reference.

    Raises:
        CheckpointError: The folder is gone, or holds other files than when the reference was written.
    """
    source = Path(config["source"])
    if not source.is_dir():
        raise CheckpointError(f"the pipeline that this model refers to, {source}, is gone; put it back.")
    found = folder_hash(source)
    if found != config["hash"]:
        raise CheckpointError(
            f"the pipeline in {source} has changed: its hash is {found[:12]}... and this model refers to "
            f"{config['hash'][:12]}...; put the former files back, or load the folder itself."
        )
    return source, dict(config.get("load") or {})


def folder_hash(folder: Path) -> str:
    """Return a hash of names and contents of weights, configurations and vocabularies, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _PARTS and path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

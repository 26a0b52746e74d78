"""Frozen vision networks of transformers, read from a folder or by their name on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undiffuse.errors import CheckpointError

_PATIENCE = 10.0  # seconds


def load_vision(
    name: str | Path, what: str, example: str, *, loader: str = "AutoModel", kinds: Sequence[str] = ()
) -> Any:
    """Return a network of transformers, frozen and in eval mode; weights from safetensors only.

    Args:
        name: A folder with config.json and model.safetensors, or a name on the hub.
        what: How people call such networks.
        example: A name on the hub, for the message.
        loader: Class of transformers that reads it.
        kinds: Values of `model_type` in config.json that will do; none: any.

    Raises:
        CheckpointError: transformers is not installed, or there is no such network, or none can be fetched.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise CheckpointError(f"{what} features need transformers: pip install 'undiffuse[pretrained]'.") from error
    logging.disable_progress_bar()
    _check_reach(str(name), what, example)
    try:
        network = getattr(transformers, loader).from_pretrained(
            str(name), use_safetensors=True, local_files_only=Path(name).is_dir()
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _unreadable(str(name), what, example, reason) from error
    kind = network.config.model_type
    if kinds and kind not in kinds:
        raise CheckpointError(f"{str(name)!r} is a {kind} network; expected {' or '.join(kinds)}.")
    return network.eval().requires_grad_(False)


def _check_reach(name: str, what: str, example: str) -> None:
    """Ask the hub once for a network that is neither a folder nor in the cache: transformers itself tries for 25 s.

    Raises:
        CheckpointError: No answer, or none such there.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import validate_repo_id

    if Path(name).is_dir():
        return
    try:
        validate_repo_id(name)
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_PATIENCE)
    except Exception as error:  # of the client's own transport, which changes with its version
        raise _unreadable(name, what, example, str(error).strip().splitlines()[0]) from error


def _unreadable(name: str, what: str, example: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"cannot read {what} from {name!r} ({reason}); give a folder with config.json and model.safetensors, or a name "
        f"on the hub such as {example}."
    )

"""The files of a frozen text encoder: finding them, telling one encoder from another, loading the network.

Weights are read from safetensors only, and code of others is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from undiffuse.errors import CheckpointError

HUB = "hf://"
_CHUNK = 1 << 24
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_VOLATILE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_TEXT_PART = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel", "siglip2": "Siglip2TextModel"}


@dataclass(frozen=True)
class EncoderFiles:
    """Where the parts of an encoder lie.

    Args:
        name: What the user calls it.
        network: Folder with config.json and the weights.
        tokenizer: Folder of the tokenizer.
        weights: The files of the weights.
    """

    name: str
    network: Path
    tokenizer: Path
    weights: tuple[Path, ...]

    @classmethod
    def find(cls, name: str) -> EncoderFiles:
        """Find an encoder, which is downloaded where the name begins with hf://.

        Raises:
            CheckpointError: There is none, or it has no safetensors.
        """
        folder = _find(name)
        return cls(name, folder, _tokenizer_folder(folder), tuple(_weight_files(folder, name)))

    def identity(self) -> str:
        """Return a hash of configuration, weights and tokenizer, 40 hexadecimal digits."""
        state = hashlib.blake2b(digest_size=20)
        config = _read_json(self.network / _CONFIG, self.name)
        kept = {key: value for key, value in config.items() if key not in _VOLATILE}
        state.update(json.dumps(kept, sort_keys=True).encode())
        words = [self.tokenizer / name for name in _TOKENIZER]
        for path in (*self.weights, *(path for path in words if path.is_file())):
            state.update(f"\n{path.name} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while part := file.read(_CHUNK):
                    state.update(part)
        return state.hexdigest()

    def load_tokenizer(self) -> Any:
        """Return the tokenizer.

        Raises:
            CheckpointError: There is none that can be read.
        """
        transformers = _library()
        with _one_line(self.name, "tokenizer"), _quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(
                str(self.tokenizer), local_files_only=True, trust_remote_code=False
            )

    def load_network(self) -> nn.Module:
        """Return the network in float32, frozen.

        Raises:
            CheckpointError: It cannot be read, lacks weights, reads no text, or also decodes.
        """
        network, report = _load(self.network, self.name)
        if getattr(network.config, "is_encoder_decoder", False):
            raise CheckpointError(
                f"{self.name} is a {network.config.model_type} network that also decodes; give one that only encodes "
                "text."
            )
        if not isinstance(network.get_input_embeddings(), nn.Embedding):
            raise CheckpointError(f"{self.name} is a {network.config.model_type} network, which reads no text.")
        lacking = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if lacking:
            raise CheckpointError(
                f"the encoder {self.name} lacks {len(lacking)} of its weights, first {lacking[0]}; give the files that "
                "it was saved with."
            )
        return network.float().eval().requires_grad_(False)


def _find(name: str) -> Path:
    """Return the folder of the network."""
    if name.startswith(HUB):
        folder = _download(name)
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise CheckpointError(
                f"the encoder {name} is gone: there is no such folder from {Path.cwd()}; put it back, write {HUB}owner/"
                "name for one on the hub, or give the encoder's outputs as tensors."
            )
    inner = folder / "text_encoder"
    folder = inner if not (folder / _CONFIG).is_file() and (inner / _CONFIG).is_file() else folder
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"the encoder {name} has no {_CONFIG}; give a folder as transformers saves it.")
    return folder


def _download(name: str) -> Path:
    """Return the local copy of what the hub has under a name; only weights in safetensors are fetched."""
    _library()
    from huggingface_hub import snapshot_download

    inside = [_CONFIG, _WEIGHTS, _INDEX, _SHARDS, *_TOKENIZER]
    with _one_line(name, "files"):
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=inside))


def _tokenizer_folder(folder: Path) -> Path:
    """Return where the tokenizer lies: with the network, or beside it as in pipelines of diffusers."""
    beside = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    here = any((folder / name).is_file() for name in _TOKENIZER)
    return beside if not here and beside != folder and beside.is_dir() else folder


def _weight_files(folder: Path, name: str) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        shards = sorted(set(_read_json(folder / _INDEX, name).get("weight_map", {}).values()))
        paths = [folder / Path(shard).name for shard in shards]
        missing = [path.name for path in paths if not path.is_file()]
        if paths and not missing:
            return paths
        raise CheckpointError(f"the encoder {name} lacks {', '.join(missing) or 'its shards'}; download it again.")
    raise CheckpointError(
        f"the encoder {name} has no {_WEIGHTS}; pickled weights are never read, so convert it: where you trust it, "
        "load it with transformers and save it with save_pretrained."
    )


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the encoder {name} has an unreadable {path.name} ({error}); get it again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"the encoder {name} has a {path.name} that is no table of options; get it again.")
    return found


def _load(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """Return the network and a report of what its files lack."""
    transformers = _library()
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # What a file lacks, such as a pooler, is drawn anew by transformers, from the global generator.
    with _one_line(name, "network"), _quiet(transformers), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(str(folder), **safe)
        if config.model_type in _TEXT_PART:
            kind, safe = getattr(transformers, _TEXT_PART[config.model_type]), {"local_files_only": True}
        elif type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
            kind = transformers.AutoModelForTextEncoding
        else:
            kind = transformers.AutoModel
        return kind.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **safe)


@contextmanager
def _one_line(name: str, what: str) -> Iterator[None]:
    """Turn whatever loading raises into one line."""
    try:
        yield
    except (CheckpointError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # errors of the library, of tokenizers, of safetensors and of the network
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"cannot load the {what} of the encoder {name} ({reason}); give a folder as transformers saves it, with "
            f"{_CONFIG}, {_WEIGHTS} and the tokenizer, or {HUB}owner/name."
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Hide progress bars and reports of loading; what matters in them is checked."""
    logging = transformers.utils.logging
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("text encoders need transformers: pip install 'undiffuse[pretrained]'.") from error
    return transformers

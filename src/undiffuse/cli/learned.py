"""Writing what a restoration found of the degradation, such as the kernel of an unknown blur."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undiffuse.tasks import RestoreResult


def write_learned(result: RestoreResult, name: str, out: Path, made: dict[str, Any]) -> dict[str, Path]:
    """Write what was learned, exactly and, where it is a picture, to look at.

    Args:
        result: Of one image.
        name: Of the image.
        out: Folder.
        made: How it was made, for the pictures.

    Returns:
        Files by name: "learned", a .safetensors of (K, ...) tensors, and pictures; empty where nothing was learned.
    """
    from safetensors.torch import save_file

    from undiffuse.files import write_whole
    from undiffuse.images import write_image
    from undiffuse.report.restoration import learned_pictures

    if not result.learned:
        return {}
    files = {"learned": out / f"{name}-learned.safetensors"}
    tensors = {key: value[:, 0].detach().cpu().contiguous() for key, value in result.learned.items()}
    write_whole(files["learned"], lambda file: save_file(tensors, file))
    for key, pixels in learned_pictures(result).items():
        files[key] = out / f"{name}-{key}.png"
        write_image(files[key], pixels, made)
    return files

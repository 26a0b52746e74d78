"""Picture files for tests, whole and broken, made on the spot."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random uint8 pixels (H, W, C), (H, W) for one channel."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def save(path: Path, array: np.ndarray) -> Path:
    """Write a picture, in the format of the suffix, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def raw_png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG file put together by hand: what its header claims need not be true."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_colour_png(side: int = 4) -> bytes:
    """A PNG of 16 bits per colour channel."""
    return raw_png(side, side, 16, 2, (b"\0" + bytes(6 * side)) * side)


BROKEN = {
    "empty.png": b"",
    "words.jpg": b"this is no picture at all",
    "truncated.png": encoded(pixels(64, 64))[:2000],
    "truncated.jpg": encoded(pixels(64, 64), "JPEG")[:1500],
    "corrupt.png": encoded(pixels(32, 32))[:60] + b"\xff" * 400,
    "bomb.png": raw_png(60_000, 60_000, 8, 0, b""),
    "large.png": raw_png(10_000, 10_000, 8, 0, b""),  # between Pillow's warning and its error
}
"""Name -> content of files that must be reported and never crash."""


def write_broken(folder: Path, *names: str) -> None:
    """Write broken files, all of them by default."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or BROKEN:
        (folder / name).write_bytes(BROKEN[name])


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    """Write an archive; names are taken as they are, also bad ones."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_shards(folder: Path, shards: int = 3, samples: int = 10, side: int = 8) -> str:
    """Write .tar shards of pictures, classes, captions and numbers; return the pattern of their names."""
    for shard in range(shards):
        write_tar(
            folder / f"part-{shard:02}.tar",
            [
                (f"{shard * samples + i:04}.{suffix}", content)
                for i in range(samples)
                for suffix, content in (
                    ("png", encoded(pixels(side, side, seed=shard * samples + i))),
                    ("cls", str(i % 3).encode()),
                    ("txt", f"picture {shard * samples + i}".encode()),
                    ("json", b'{"size": %d.5, "more": {"a": 1}}' % i),
                )
            ],
        )
    return str(folder / f"part-{{00..{shards - 1:02}}}.tar")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write an archive of members in this order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path

"""Volumes, one per file: NIfTI (.nii, .nii.gz, by nibabel) and .npy.

NIfTI volumes are turned to the closest canonical orientation and laid out as (1, D, H, W): D from inferior to superior,
H from posterior to anterior, W from left to right (RAS, axes reversed). Values are clipped to `data.window` or
`data.percentiles`, which becomes the range of the spec, or else standardised by mean and deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from undiffuse.data.clips import (
    Files,
    UnreadableFile,
    _suffix,
    attempt,
    file_classes,
    find_files,
    gather,
    keeps_on_disk,
    passed_over,
    refuse_other_kind,
)
from undiffuse.data.dataset import IndexedDataset, refuse_bad
from undiffuse.data.lazy import Item
from undiffuse.data.options import DataOptions
from undiffuse.data.resample import fit_volume
from undiffuse.errors import DataError
from undiffuse.images.fit import Resize
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec

NIFTI_SUFFIXES = frozenset((".nii", ".nii.gz"))
VOLUME_SUFFIXES = NIFTI_SUFFIXES | {".npy"}
_LARGEST_AUTO_SIDE = 64  # voxels
_FEW = 4  # the most channels an axis is taken to hold
_OPTIONS = ("layout", "size", "resize", "lazy", "window", "percentiles")
_SAMPLED = 32  # volumes whose values make the percentiles and moments
_VALUES = 1 << 22  # values kept of these at most, evenly spaced


@dataclass(frozen=True)
class VolumeHeader:
    """What the head of a file says: shape (C, D, H, W), and edges of a voxel in millimetres (0 where unknown)."""

    shape: tuple[int, int, int, int]
    voxel: tuple[float, ...] = ()
    turned: bool = False


@dataclass(frozen=True)
class VolumeSource:
    """Volumes brought to one size and clipped, as a `Source`."""

    files: Files
    names: Sequence[str]
    shape: tuple[int, int, int, int]
    resize: Resize
    bounds: tuple[float, float] | None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> Item:
        """Read one volume: "x", float32 (C, D, H, W)."""
        return {"x": self.load(self.names[row])}

    def load(self, name: str) -> np.ndarray:
        """Read a volume by name, float32 (C, D, H, W)."""
        values = read_volume(self.files.path(name), name)
        if len(values) != self.shape[0]:
            raise UnreadableFile(name, f"it has {len(values)} channel(s), others {self.shape[0]}")
        if self.bounds is not None:
            values = values.clip(*self.bounds)
        return fit_volume(values, self.shape[1:], self.resize)

    def all(self) -> tuple[np.ndarray, dict[str, str]]:
        """Return all volumes (N, C, D, H, W), and the reasons of those that could not be read."""
        values: np.ndarray = np.zeros((len(self), *self.shape), dtype=np.float32)
        rows = {name: row for row, name in enumerate(self.names)}

        def load(name: str) -> None:
            values[rows[name]] = self.load(name)

        return values, attempt(load, self.names)[1]


def open_volumes(path: Path, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset:
    """Read the volumes in a folder (folders in it are classes), or one.

    Raises:
        DataError: No volumes, too many unreadable ones (NaN counts as unreadable), not the model's kind of data, or
            nibabel is missing.
    """
    options.refuse_others("volumes", _OPTIONS)
    files = find_files(path, VOLUME_SUFFIXES, "volumes (.nii, .nii.gz, .npy)")
    refuse_other_kind(spec, "volume", files.where)
    chosen = _limited(files.names, options.limit)
    headers, unread = attempt(lambda name: read_volume_header(files.path(name), name), chosen)
    refuse_bad(unread, len(chosen), options.max_bad, files.where)
    names = list(headers)
    known = [headers[name] for name in names]
    shape = spec.shape if spec else _choose_shape(known, options)
    unclipped = VolumeSource(files, names, shape, options.resize, None)  # type: ignore[arg-type]
    bounds, mean, std = _units(unclipped, options, spec)
    source = VolumeSource(files, names, unclipped.shape, options.resize, bounds)
    labels, classes, notes = file_classes(names, files.where, spec)
    stored = DataSpec(kind="volume", shape=shape, range=bounds, mean=mean, std=std, classes=classes)
    common = {
        "spec": spec or stored,
        "stored": stored,
        "labels": labels,
        "notes": (*_notes(source, known, options), *notes, *passed_over(files)),
    }
    needed = 4 * (len(source) * int(np.prod(shape)) + 2 * max(int(np.prod(header.shape)) for header in known))
    return gather(
        source,
        source.all,
        names,
        common,
        lazy=keeps_on_disk(needed, options, f"reading {len(source)} volume(s) of shape {shape}"),
        options=options,
        unread=unread,
        files=Files(files.where, files.root, tuple(chosen), files.others),
    )


def read_volume_header(path: Path, name: str) -> VolumeHeader:
    """Return shape and orientation of a file.

    Raises:
        UnreadableFile: Damaged, or not one volume.
        DataError: nibabel is missing.
    """
    if path.suffix.lower() == ".npy":
        return VolumeHeader(_laid_out(_numpy(path, name), name).shape)  # type: ignore[arg-type]
    image = _nifti(path, name)
    import nibabel

    spatial = _single(image.shape, name)
    shape = (1, *reversed(_canonical_shape(spatial, image.affine)))
    turned = nibabel.aff2axcodes(image.affine) != ("R", "A", "S")
    return VolumeHeader(shape, tuple(float(edge) for edge in image.header.get_zooms()[:3]), turned)  # type: ignore[arg-type]


def read_volume(path: Path, name: str) -> np.ndarray:
    """Return a volume, float32 (C, D, H, W).

    Raises:
        UnreadableFile: Damaged, not one volume, or with values that are not finite.
    """
    if path.suffix.lower() == ".npy":
        values = _laid_out(_numpy(path, name), name).astype(np.float32)
    else:
        import nibabel

        image = nibabel.as_closest_canonical(_nifti(path, name))
        try:
            voxels = np.asarray(image.dataobj, dtype=np.float32)
        except Exception as error:  # a truncated file raises EOFError, OSError, zlib.error or ValueError
            raise UnreadableFile(name, _short(error)) from error
        values = voxels.reshape(voxels.shape[:3]).T[None]
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise UnreadableFile(name, f"{bad} of {values.size} values are NaN or infinite")
    return values


def write_nifti(path: Path, values: np.ndarray) -> None:
    """Write a volume (C, D, H, W) as NIfTI with voxels of 1 mm: what `read_volume` reads back (for C = 1)."""
    import nibabel

    voxels = np.moveaxis(values, 0, -1).transpose(2, 1, 0, 3)
    image = nibabel.Nifti1Image(np.ascontiguousarray(voxels[..., 0] if len(values) == 1 else voxels), np.eye(4))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name.removesuffix('.gz').removesuffix('.nii')}.part{_suffix(path.name)}")
    try:
        nibabel.save(image, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _nifti(path: Path, name: str) -> "nibabel.Nifti1Image":  # type: ignore[name-defined]  # noqa: F821, UP037
    try:
        import nibabel
    except ImportError as error:
        raise DataError(f"reading {path.name} needs nibabel: pip install 'undiffuse[data]'.") from error
    try:
        image = nibabel.load(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # ImageFileError, HeaderDataError, EOFError, zlib.error, OSError, ...
        reason = (
            f"it is no NIfTI file, or damaged ({type(error).__name__})" if path.stat().st_size else "the file is empty"
        )
        raise UnreadableFile(name, reason) from error
    if not isinstance(image, nibabel.spatialimages.SpatialImage) or image.get_data_dtype().kind not in "biuf":
        raise UnreadableFile(name, "it holds no plain numbers")
    return image


def _short(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:100] or f"the file is damaged ({type(error).__name__})"


def _numpy(path: Path, name: str) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableFile(name, _short(error)) from error
    if values.dtype.kind not in "biuf":
        raise UnreadableFile(name, f"it holds values of type {values.dtype}, not numbers")
    return values


def _single(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or 0 in shape:
        raise UnreadableFile(name, f"it has shape {shape}; expected one volume of 3 axes")
    return shape[0], shape[1], shape[2]


def _canonical_shape(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[int, ...]:
    import nibabel

    axes = nibabel.io_orientation(affine)[:, 0]
    placed = [0, 0, 0]
    for size, axis in zip(shape, axes, strict=True):
        placed[int(axis)] = size
    return tuple(placed)


def _laid_out(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim == 3:
        values = values[None]
    elif values.ndim == 4 and values.shape[3] <= _FEW < values.shape[0]:
        values = np.moveaxis(values, 3, 0)
    if values.ndim != 4 or 0 in values.shape or values.shape[0] > _FEW:
        raise UnreadableFile(name, f"it has shape {values.shape}; expected (D, H, W), or (C, D, H, W) with C up to 4")
    return values


def _limited(names: Sequence[str], limit: int | None) -> list[str]:
    if limit is None or limit >= len(names):
        return list(names)
    return [names[i] for i in permutation(0, 0, len(names))[:limit].sort().values.tolist()]


def _choose_shape(headers: Sequence[VolumeHeader], options: DataOptions) -> tuple[int, int, int, int]:
    """Return (C, D, H, W): a common small size, else a cube of the median short side, 64 at most."""
    channels = statistics.mode(header.shape[0] for header in headers)
    if options.size:
        return channels, options.size, options.size, options.size
    sizes = {header.shape[1:] for header in headers}
    if len(sizes) == 1 and max(next(iter(sizes))) <= _LARGEST_AUTO_SIDE:
        return (channels, *next(iter(sizes)))
    side = min(_LARGEST_AUTO_SIDE, int(statistics.median_low(min(header.shape[1:]) for header in headers)))
    return channels, side, side, side


def _units(
    source: VolumeSource, options: DataOptions, spec: DataSpec | None
) -> tuple[tuple[float, float] | None, tuple[float, ...], tuple[float, ...]]:
    """Return (range, mean, std): the model's, the window, or the moments of a sample of the volumes."""
    if spec is not None:
        return spec.range, spec.mean, spec.std
    if options.window:
        return (float(options.window[0]), float(options.window[1])), (), ()
    sample = _sample(source)
    if options.percentiles:
        low, high = np.percentile(sample, options.percentiles)
        if not low < high:
            raise DataError(f"data.percentiles={list(options.percentiles)} are both {low:g}; choose others.")
        return (float(low), float(high)), (), ()
    std = sample.std(1, dtype=np.float64)
    return None, tuple(sample.mean(1, dtype=np.float64).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _sample(source: VolumeSource) -> np.ndarray:
    """Return values of up to 32 volumes, (C, M); unreadable ones are left to be counted later."""
    names = _limited(source.names, _SAMPLED)
    values, bad = attempt(lambda name: read_volume(source.files.path(name), name), names)
    refuse_bad(bad, len(names), 1.0, source.files.where)
    fitting = [part.reshape(len(part), -1) for part in values.values() if len(part) == source.shape[0]]
    joined = np.concatenate(fitting, axis=1)
    return joined[:, :: max(1, joined.size // _VALUES)]


def _notes(source: VolumeSource, headers: Sequence[VolumeHeader], options: DataOptions) -> Iterator[str]:
    sizes = {header.shape[1:] for header in headers}
    if sizes != {source.shape[1:]}:
        size = " x ".join(map(str, source.shape[1:]))
        yield f"volumes of {len(sizes)} size(s) were brought to {size} by data.resize={options.resize}"
    turned = sum(header.turned for header in headers)
    if turned:
        yield f"{turned} volume(s) were turned to right, anterior, superior"
    edges = {tuple(round(edge, 2) for edge in header.voxel) for header in headers if header.voxel}
    if any(len(set(edge)) > 1 for edge in edges) or len(edges) > 1:
        shown = " x ".join(f"{edge:g}" for edge in sorted(edges)[0])
        yield f"warning: voxels are no cubes of one size (first {shown} mm); they are taken for such"
    if source.bounds is not None:
        yield f"values were clipped to {source.bounds[0]:g} .. {source.bounds[1]:g}"

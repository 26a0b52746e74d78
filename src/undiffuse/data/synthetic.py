"""Small data made by formula from a fixed seed: real digits that move, sounds of four shapes, and kernels of blurs."""

from __future__ import annotations

import numpy as np

from undiffuse.data.arrays import make_array_dataset
from undiffuse.data.dataset import TensorDataset
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError
from undiffuse.noise import permutation
from undiffuse.operators.kernels import draw_kernels
from undiffuse.spec import DataSpec

_FRAMES, _SIDE, _DIGIT = 8, 16, 8  # frames of a clip; pixels of a frame and of a digit
_WAVES, _POINTS = 4000, 64
_KERNELS, _TAPS = 4000, 9
_SHAPES = ("sine", "square", "sawtooth", "chirp")


def load_digits() -> tuple[np.ndarray, list[str]]:
    """Return 1797 scanned digits, uint8 (N, 8, 8) of 0..16 (Alpaydin and Kaynak 1998, UCI), and their classes.

    Raises:
        DataError: scikit-learn, which ships them, is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; pip install scikit-learn."
        ) from error
    loaded = datasets.load_digits()
    return loaded.images.astype(np.uint8), [str(label) for label in loaded.target]


def limited(count: int, options: DataOptions) -> np.ndarray:
    """Return the rows that `data.limit` leaves of `count`, a fixed random choice in order."""
    if options.limit is None or options.limit >= count:
        return np.arange(count)
    return permutation(0, 0, count)[: options.limit].sort().values.numpy()


def open_moving_digits(options: DataOptions, spec: DataSpec | None) -> TensorDataset:
    """Return one clip (8, 1, 16, 16) of each real digit, moving straight and bouncing off the border."""
    options.refuse_others("the moving digits", ("flip",))
    images, labels = load_digits()
    rng = np.random.Generator(np.random.PCG64(0))
    starts = rng.integers(0, _SIDE - _DIGIT + 1, (len(images), 2))
    speeds = rng.choice((-2, -1, 1, 2), (len(images), 2))
    places = bounce(starts[:, None] + speeds[:, None] * np.arange(_FRAMES)[:, None], _SIDE - _DIGIT)  # (N, F, 2)
    clips = np.zeros((len(images), _FRAMES, 1, _SIDE, _SIDE), dtype=np.uint8)
    for clip, image, path in zip(clips, images, places, strict=True):
        for frame, (top, left) in zip(clip, path, strict=True):
            frame[0, top : top + _DIGIT, left : left + _DIGIT] = image
    rows = limited(len(clips), options)
    chosen = [labels[row] for row in rows]
    return make_array_dataset(clips[rows], "video", "video-digits", chosen, spec, bounds=(0.0, 16.0), flip=options.flip)


def bounce(place: np.ndarray, most: int) -> np.ndarray:
    """Fold integers into 0..most as a ball that bounces at both ends."""
    folded = np.mod(place, 2 * most)
    return np.where(folded > most, 2 * most - folded, folded)


def open_waves(options: DataOptions, spec: DataSpec | None) -> TensorDataset:
    """Return 4000 signals (1, 64) of 4 shapes: sine, square, sawtooth, and a sine of rising frequency.

    1 to 4 periods in a signal, amplitudes from 0.4 to 1, any phase.
    """
    options.refuse_others("the waves", ())
    rng = np.random.Generator(np.random.PCG64(0))
    shape = rng.integers(0, len(_SHAPES), _WAVES)
    frequency, amplitude, phase = rng.uniform(1, 4, _WAVES), rng.uniform(0.4, 1, _WAVES), rng.uniform(0, 1, _WAVES)
    time = np.arange(_POINTS) / _POINTS
    turns = frequency[:, None] * np.where(shape[:, None] == 3, 0.5 * time + 0.5 * time**2, time) + phase[:, None]
    sine, rest = np.sin(2 * np.pi * turns), turns % 1.0
    forms = np.stack([sine, np.where(rest < 0.5, 1.0, -1.0), 2 * rest - 1, sine])
    values = amplitude[:, None] * forms[shape, np.arange(_WAVES)]
    rows = limited(_WAVES, options)
    labels = [_SHAPES[number] for number in shape[rows]]
    signals = values[rows, None].astype(np.float32)
    own = DataSpec(kind="signal", shape=(1, _POINTS), range=(-1.0, 1.0), classes=_SHAPES)
    return make_array_dataset(signals, "signal", "waves", labels, spec or own)


def open_kernels(options: DataOptions, spec: DataSpec | None) -> TensorDataset:
    """Return 4000 pictures (1, 9, 9) of kernels of blurs, the largest weight white, or of `data.size` on each side.

    Half of them are paths of a shaken camera, the others Gaussian blurs of any width.
    """
    options.refuse_others("the kernels", ("size",))
    side = options.size or (_TAPS if spec is None else spec.shape[-1])
    kernels = draw_kernels(_KERNELS, side, side, limited(_KERNELS, options).tolist())
    pictures = (kernels / kernels.amax((1, 2), keepdim=True)).float().numpy()
    return make_array_dataset(pictures[:, None], "image", "kernels", spec=spec, bounds=(0.0, 1.0))

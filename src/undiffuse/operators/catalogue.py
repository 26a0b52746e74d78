"""What every operator is, in words, and which options it takes: for listings, `--help` and the text form. Torch-free.

A name with a colon is a kind of a family: "inpaint:box". Options are given by name, or by their place in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option: its default, and what it means.

    A `file` option is read from a picture or a .npy array; it must be given where its default is "".
    """

    default: Any
    help: str
    file: bool = False


@dataclass(frozen=True)
class OperatorFacts:
    """A row of the table.

    Args:
        location: "module:function", called with the item's shape, options and a seed.
        what: What it is, in a line.
        properties: Words of: linear, svd, differentiable, random (drawn from the seed), per-image (may be drawn for
            each picture anew), video (acts on whole videos).
        options: Name -> option, in the order of their places.
        needs: What items it acts on, beyond pictures.
    """

    location: str
    what: str
    properties: str
    options: dict[str, Option]
    needs: str = ""

    def has(self, word: str) -> bool:
        """Whether a word stands in `properties`."""
        return word in self.properties.split()


_HERE = "undiffuse.operators."
_SVD, _LINEAR, _SMOOTH = "linear svd differentiable", "linear differentiable", "differentiable"
_BOUNDARY = Option("circular", "circular, reflect, zero or replicate")
_RATIO = Option(0.25, "measurements to numbers")
_THROUGH = Option(True, "gradients pass as if nothing were rounded")
_SHARED = Option("shared", "shared by all channels, or each with its own")

OPERATORS: dict[str, OperatorFacts] = {
    "denoise": OperatorFacts(_HERE + "build:identity", "nothing but noise", _SVD, {}),
    "mask": OperatorFacts(
        _HERE + "masks:given_mask",
        "what a mask hides is missing; white (1) is known",
        _SVD,
        {
            "mask": Option("", "a picture or .npy of zeros and ones", file=True),
            "invert": Option(False, "white is missing instead"),
        },
    ),
    "inpaint:box": OperatorFacts(
        _HERE + "masks:box_mask",
        "a square hole",
        _SVD + " per-image",
        {
            "size": Option(0, "side in pixels; 0 for half of the picture"),
            "position": Option("centre", "centre, random, or ROW:COLUMN of its corner"),
        },
    ),
    "inpaint:random": OperatorFacts(
        _HERE + "masks:random_mask",
        "missing pixels",
        _SVD + " random per-image",
        {"missing": Option(0.5, "share that is missing"), "channels": _SHARED},
        needs="any data",
    ),
    "inpaint:freeform": OperatorFacts(
        _HERE + "masks:freeform_mask",
        "brush strokes",
        _SVD + " random per-image",
        {
            "missing": Option(0.25, "share that is missing"),
            "width": Option(0, "of the brush in pixels; 0 for a twelfth"),
        },
    ),
    "inpaint:half": OperatorFacts(
        _HERE + "masks:half_mask",
        "one side is missing: outpainting",
        _SVD,
        {"side": Option("right", "left, right, top or bottom"), "share": Option(0.5, "share that is missing")},
    ),
    "inpaint:lines": OperatorFacts(
        _HERE + "masks:lines_mask",
        "missing rows",
        _SVD,
        {"period": Option(2, "rows"), "keep": Option(1, "rows kept of each period")},
    ),
    "demosaic": OperatorFacts(
        _HERE + "masks:bayer_mask",
        "a camera's colour filter: one colour per pixel",
        _SVD,
        {"pattern": Option("RGGB", "of 2 x 2 pixels")},
        needs="RGB",
    ),
    "downsample": OperatorFacts(
        _HERE + "build:downsample",
        "a smaller picture: super-resolution",
        _SVD,
        {"factor": Option(4, "how many times smaller"), "method": Option("average", "average or bicubic")},
    ),
    "blur:gaussian": OperatorFacts(
        _HERE + "blur:gaussian_blur",
        "out of focus",
        _SVD,
        {
            "sigma": Option(2.0, "standard deviation in pixels"),
            "size": Option(0, "taps, odd; 0 for 2 ceil(3 sigma) + 1"),
            "boundary": _BOUNDARY,
        },
    ),
    "blur:uniform": OperatorFacts(
        _HERE + "blur:uniform_blur",
        "the mean of a square",
        _SVD,
        {"size": Option(9, "side in pixels, odd"), "boundary": _BOUNDARY},
    ),
    "blur:motion": OperatorFacts(
        _HERE + "blur:motion_blur",
        "a shaking camera (SVD where circular)",
        _SVD + " random",
        {
            "size": Option(61, "taps, odd"),
            "intensity": Option(0.5, "how much the path turns, up to 1"),
            "boundary": _BOUNDARY,
        },
    ),
    "blur:kernel": OperatorFacts(
        _HERE + "blur:kernel_blur",
        "a given kernel (SVD where circular)",
        _SVD,
        {"kernel": Option("", "a .npy array (h, w)", file=True), "boundary": _BOUNDARY},
    ),
    "blur:nonlinear": OperatorFacts(
        _HERE + "nonlinear:network_blur",
        "a blur that depends on brightness, by a fixed network",
        _SMOOTH + " random",
        {"sigma": Option(2.0, "about its width in pixels"), "kernels": Option(4, "kernels to choose among")},
    ),
    "colourise": OperatorFacts(
        _HERE + "channels:colourise",
        "grey from RGB",
        _SVD,
        {"weights": Option("luma", "luma (0.299, 0.587, 0.114) or mean")},
        needs="RGB",
    ),
    "pansharpen": OperatorFacts(
        _HERE + "channels:pansharpen",
        "a sharp mean of the channels and a small coloured picture",
        _LINEAR,
        {"factor": Option(4, "how many times smaller"), "sigma": Option(0.0, "blur in pixels; 0 for half the factor")},
    ),
    "jpeg": OperatorFacts(
        _HERE + "jpeg:jpeg",
        "JPEG artefacts",
        _SMOOTH,
        {
            "quality": Option(20, "1 to 100"),
            "subsampling": Option(True, "store colour at half the size"),
            "straight_through": _THROUGH,
        },
        needs="grey or RGB",
    ),
    "quantise": OperatorFacts(
        _HERE + "pointwise:quantise",
        "few levels",
        _SMOOTH,
        {
            "bits": Option(3, "2^bits levels"),
            "dither": Option(False, "an ordered dither"),
            "straight_through": _THROUGH,
        },
    ),
    "hdr": OperatorFacts(
        _HERE + "pointwise:clip", "overexposed: clipped", _SMOOTH, {"factor": Option(2.0, "of exposure")}, "any data"
    ),
    "lowlight": OperatorFacts(
        _HERE + "pointwise:low_light",
        "a dark exposure",
        _SMOOTH,
        {"gain": Option(0.1, "of light, up to 1"), "gamma": Option(2.2, "of the camera")},
    ),
    "dehaze": OperatorFacts(
        _HERE + "pointwise:haze",
        "haze over a depth (affine)",
        _SMOOTH,
        {
            "beta": Option(1.0, "density"),
            "depth": Option(1.0, "a number, or a .npy map", file=True),
            "air": Option(0.9, "air light in [0, 1]"),
        },
    ),
    "cs:hadamard": OperatorFacts(
        _HERE + "build:hadamard_sensing",
        "compressed sensing by a Walsh-Hadamard transform",
        _SVD + " random",
        {"ratio": _RATIO},
        needs="a power of two of pixels",
    ),
    "cs:dct": OperatorFacts(
        _HERE + "build:dct_sensing", "compressed sensing by a cosine transform", _SVD + " random", {"ratio": _RATIO}
    ),
    "cs:gaussian": OperatorFacts(
        _HERE + "sensing:gaussian_matrix",
        "a dense matrix of normal numbers",
        _SVD + " random",
        {"ratio": _RATIO},
        needs="at most 4096 numbers",
    ),
    "phase-retrieval": OperatorFacts(
        _HERE + "nonlinear:phase_retrieval",
        "the magnitude of the Fourier transform",
        _SMOOTH,
        {"oversampling": Option(2.0, "margin of zeros, in eighths of a side")},
    ),
    "mri": OperatorFacts(
        _HERE + "build:mri",
        "an accelerated MR scan (SVD for one coil and complex pictures)",
        _SVD + " random per-image",
        {
            "pattern": Option("random", "random, equispaced, gaussian1d, gaussian2d, radial, spiral or poisson_disc"),
            "acceleration": Option(4.0, "all points to those measured"),
            "centre": Option(0.08, "share around the centre measured in full"),
            "coils": Option(1, "simulated coils"),
            "spokes": Option(16, "of radial"),
            "turns": Option(8.0, "of spiral"),
            "measured": Option(None, "a .npy (H, W) of zeros and ones, instead of a pattern", file=True),
            "maps": Option(None, "a .npy (coils, H, W) of complex numbers, instead of simulated coils", file=True),
        },
        needs="1 channel, or 2 (real, imaginary)",
    ),
    "ct": OperatorFacts(
        _HERE + "ct:ct_scan",
        "a CT scan of parallel rays",
        _LINEAR,
        {
            "angles": Option(60, "number of angles"),
            "limit": Option(180.0, "degrees covered"),
            "pixel": Option(0.0, "side of a pixel; 0 for 1 / width"),
            "window": Option("ramp", "of filtered back-projection: ramp, or hann against noise"),
        },
        needs="square pictures",
    ),
    "ct-counts": OperatorFacts(
        _HERE + "ct:ct_counts",
        "photons that pass a CT scan: with Poisson noise, a low dose",
        _SMOOTH,
        {
            "angles": Option(60, "number of angles"),
            "limit": Option(180.0, "degrees covered"),
            "attenuation": Option(3.0, "of a ray through a white picture, natural logarithm"),
        },
        needs="square pictures",
    ),
    "average-frames": OperatorFacts(
        _HERE + "build:average_frames",
        "a long exposure of a video",
        _LINEAR + " video",
        {"length": Option(2, "frames per average")},
        needs="video",
    ),
    "scale": OperatorFacts(
        _HERE + "build:scale", "times a number", _SVD, {"factor": Option(1.0, "the number")}, needs="any data"
    ),
}
"""Name -> facts."""


@dataclass(frozen=True)
class NoiseFacts:
    """A row of the table of noises: class, meaning, and options by name; `image` names those in image units [0, 1]."""

    location: str
    what: str
    options: dict[str, Option]
    image: tuple[str, ...] = ()


_IN = _HERE + "noise:"

NOISES: dict[str, NoiseFacts] = {
    "none": NoiseFacts(_IN + "NoNoise", "no noise", {}),
    "gaussian": NoiseFacts(
        _IN + "GaussianNoise", "Gaussian", {"std": Option(0.05, "standard deviation")}, image=("std",)
    ),
    "poisson": NoiseFacts(_IN + "PoissonNoise", "photon counts", {"scale": Option(30.0, "photons at white")}),
    "poisson_gaussian": NoiseFacts(
        _IN + "PoissonGaussianNoise",
        "photon counts read with noise",
        {"scale": Option(30.0, "photons at white"), "std": Option(0.02, "of the reading")},
        image=("std",),
    ),
    "salt_pepper": NoiseFacts(
        _IN + "SaltPepperNoise", "numbers replaced by black or white", {"p": Option(0.1, "share replaced")}
    ),
    "laplace": NoiseFacts(_IN + "LaplaceNoise", "Laplace", {"b": Option(0.05, "scale")}, image=("b",)),
    "speckle": NoiseFacts(
        _IN + "SpeckleNoise", "intensity times gamma noise", {"looks": Option(4.0, "1 / variance of the factor")}
    ),
    "uniform": NoiseFacts(
        _IN + "UniformNoise", "uniform", {"half_width": Option(0.05, "largest error")}, image=("half_width",)
    ),
}
"""Name -> facts."""

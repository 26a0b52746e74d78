"""Correspondence without training: do features of a diffusion model, fused with others, find the same part?

On digits, as no labelled pairs come with the package: key points are parts of the stroke (`digit_points`), features
those of the built-in model of 8 x 8 pixels. The paper's own test needs SPair-71k and `undiffuse bench-match`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from undiffuse.events import Listener, silent
from undiffuse.metrics.key_points import PairErrors, pck, pck_gain, pck_interval
from undiffuse.models import load
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.papers.digit_points import Features, Pairs, digit_pairs, enlarged, plain_features, shifted_pairs
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.tasks.features.baselines import untrained
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.match.drawing import draw_matches
from undiffuse.tasks.match.run import match

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NEAR, _FAR = 1.0, 1.6  # pixels
_TIMES, _TIME = (0.05, 0.15, 0.3), 0.15
_COARSE, _FINE, _MIDDLE = "up1.0", "up0.0", "mid"  # blocks of the built-in model: 4 x 4, 8 x 8 and 4 x 4
_PATCH, _POSITION = "5 x 5 raw patch", "position"
_ALPHAS = (0.3, 0.5, 0.7)
_DRAWS = 4
_DEGREES = 15.0
_COLUMNS = ("features", "PCK at 1.0 pixels", "95 % over pairs", "PCK at 1.6 pixels")


@dataclass(frozen=True)
class Setting:
    """What the parts share.

    Args:
        per_class: Pairs drawn per class.
        seed: Of everything random.
    """

    per_class: int
    seed: int

    @cached_property
    def model(self) -> Model:
        """The built-in model of digits."""
        return load("digits")

    @cached_property
    def pairs(self) -> Pairs:
        """Pairs of different digits of one class."""
        return digit_pairs(self.per_class, self.seed)

    @cached_property
    def features(self) -> dict[str, Features]:
        """All features of the digits by name."""
        names = (_COARSE, _FINE, _MIDDLE)
        found = dict(plain_features(self.pairs.pictures))
        found |= self.encoded(self.model, self.pairs.pictures, names, _TIMES)
        fresh = self.encoded(untrained(self.model), self.pairs.pictures, names, (_TIME,))
        return found | {_random(name): maps for name, maps in fresh.items()}

    @cached_property
    def single(self) -> dict[str, tuple[PairErrors, ...]]:
        """Errors of single features, and of the same position."""
        found = {"the same position": self.pairs.errors(self.pairs.points)}
        return found | {name: self.pairs.match([maps], [1.0]) for name, maps in self.features.items()}

    def encoded(
        self, model: Model, pictures: Tensor, names: Sequence[str], times: Sequence[float]
    ) -> dict[str, Features]:
        """Return maps of blocks at times, of all pictures, averaged over a few draws of noise."""
        maps: dict[str, Features] = {}
        for time in times:  # one by one, so that every map is called by its time
            encoder = FeatureEncoder(model, list(names), time, draws=_DRAWS, seed=self.seed, batch_size=256)
            maps |= {_at(name, time): enlarged(part) for name, part in encoder.maps(pictures).items()}
        return maps


def reproduce(*, quick: bool = False, seed: int = 0, listener: Listener = silent, keep: Keep = drop) -> Study:
    """Compute all tables; `quick` takes a tenth of the pairs: to try it."""
    setting = Setting(4 if quick else 40, seed)
    parts = [
        ("single features", partial(single_features, setting)),
        ("fusion", partial(fusion, setting)),
        ("translation and noise", partial(translation, setting)),
        ("a photograph, warped", partial(photograph, setting)),
    ]
    return run_parts("semantic-correspondence", parts, machine_settings(seed=seed, quick=quick), listener, keep)


def single_features(setting: Setting) -> Part:
    """Which layer and time corresponds best, beside what needs no network and a network that was not trained."""
    errors = setting.single
    trained, fresh = errors[_at(_COARSE, _TIME)], errors[_random(_at(_COARSE, _TIME))]
    gain = pck_gain(trained, fresh, _NEAR, strict=False, seed=setting.seed)
    coarse = pck(trained, _NEAR, strict=False)
    finest = pck(errors[_at(_FINE, _TIME)], _NEAR, strict=False)
    middle = pck(errors[_at(_MIDDLE, _TIME)], _NEAR, strict=False)
    pairs = setting.pairs
    return Part(
        title="Key points of different digits of one class",
        text=f"{len(pairs)} pairs of held-out digits, six key points each: the centroids of those pixels of the stroke "
        "that lie farthest down, up and in the four diagonals. Nearest neighbours of unit vectors; diffusion features "
        f"averaged over {_DRAWS} draws of noise, without a class. Two pictures of a digit are alike in layout, so the "
        "same position is already right most of the time: beat that line, or nothing is shown.",
        columns=_COLUMNS,
        rows=_rows(errors, setting.seed),
        numeric=(1, 2, 3),
        measures=[
            Measure(
                f"trained minus random network, {_at(_COARSE, _TIME)}",
                gain.value,
                unit="PCK",
                asked=0.1,
                better="higher",
                error=gain.error,
                note="paired over the same pairs",
            ),
            Measure("coarse decoder level minus the finest", coarse - finest, unit="PCK", asked=0.0, better="higher"),
            Measure("coarse decoder level minus the middle", coarse - middle, unit="PCK", asked=0.0, better="higher"),
        ],
        figure=_figure(setting),
        caption="Two digits of one class and the matches of six key points, by fused features.",
    )


def fusion(setting: Setting) -> Part:
    """What fusing with raw patches gains, and what controls gain that know nothing but layout."""
    pairs, features, base = setting.pairs, setting.features, setting.single[_PATCH]
    coarse, finest, fresh = _at(_COARSE, _TIME), _at(_FINE, _TIME), _random(_at(_COARSE, _TIME))
    asked = [(name, alpha) for name in (coarse, finest) for alpha in _ALPHAS]
    asked += [(fresh, 0.5), (_POSITION, 0.3), (_POSITION, 0.5)]
    errors = {
        f"{name} + patch, alpha {alpha:g}": pairs.match([features[name], features[_PATCH]], [alpha, 1 - alpha])
        for name, alpha in asked
    }
    gains = {name: pck_gain(found, base, _NEAR, strict=False, seed=setting.seed) for name, found in errors.items()}
    words = [f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} .. {100 * gain.high:+.1f})" for gain in gains.values()]
    rows = [(*row, word) for row, word in zip(_rows(errors, setting.seed), words, strict=True)]
    best = max(pck(setting.single[name], _NEAR, strict=False) for name in (coarse, _PATCH))
    fused = pck(errors[f"{coarse} + patch, alpha 0.3"], _NEAR, strict=False)
    half = f"{coarse} + patch, alpha 0.5"
    own, position = gains[half], gains[f"{_POSITION} + patch, alpha 0.5"]
    untouched = gains[f"{fresh} + patch, alpha 0.5"]
    note = "paired over the same pairs"
    return Part(
        title="Fusion",
        text="Each feature is scaled to unit length, times alpha and 1 - alpha. Read the gain beside its controls: a "
        "code of the position alone, fused with the same patch, gains as much or more. On digits of 8 x 8 pixels what "
        "diffusion features add to a patch is mostly layout.",
        columns=(*_COLUMNS, "gain on the patch, points, paired"),
        rows=rows,
        numeric=(1, 2, 3, 4),
        measures=[
            Measure(
                "fused at alpha 0.3 minus the better single feature", fused - best, "PCK", asked=-0.01, better="higher"
            ),
            Measure("diffusion + patch minus patch", own.value, "PCK", 0.0, "higher", own.error, note),
            Measure("control: position + patch minus patch", position.value, "PCK", error=position.error, note=note),
            Measure("control: random + patch minus patch", untouched.value, "PCK", error=untouched.error, note=note),
        ],
    )


def translation(setting: Setting) -> Part:
    """Digits moved by one pixel: exactly, with noise, and with inverted contrast."""
    cases = {
        "moved": shifted_pairs(setting.per_class, setting.seed),
        "moved, noise 0.6": shifted_pairs(setting.per_class, setting.seed, noise_std=0.6),
        "moved, inverted": shifted_pairs(setting.per_class, setting.seed, inverted=True),
    }
    rows, shares = [], []
    for name, pairs in cases.items():
        features = dict(plain_features(pairs.pictures))
        features |= setting.encoded(setting.model, pairs.pictures, ("down0.0", _COARSE, _FINE), (_TIME,))
        fused = [features[_at(_FINE, _TIME)], features[_PATCH]]
        errors = {label: pairs.match([maps], [1.0]) for label, maps in features.items()}
        errors["up0.0 + patch, alpha 0.3"] = pairs.match(fused, [0.3, 0.7])
        # Points lie between pixels and matches are centres of pixels: rounding alone is up to 0.71.
        rows += [(name, label, f"{pck(found, 0.75, strict=False):.3f}") for label, found in errors.items()]
        shares.append(pck(errors[_PATCH], 0.75, strict=False))
    return Part(
        title="Translation and noise",
        text="The same digit one pixel further. Raw patches follow it exactly; features of a network know where they "
        "are, from the padding, and stay behind. With inverted contrast nothing works: promise no robustness to it.",
        columns=("target", "features", "PCK at 0.75 pixels"),
        rows=rows,
        numeric=(2,),
        measures=[Measure("raw patches, exact translation", shares[0], unit="PCK", asked=0.99, better="higher")],
    )


def photograph(setting: Setting) -> Part:
    """A photograph of scikit-learn, turned by 15 degrees and noised: the truth is known at every point."""
    choices: Mapping[str, tuple[str, ...]] = {
        "raw patch": ("patch",),
        "position": ("position",),
        "diffusion (of digits)": ("diffusion",),
        "diffusion + patch": ("diffusion", "patch"),
        "position + patch": ("position", "patch"),
    }
    rows = []
    for name, noise_std in (("turned", 0.0), ("turned, noise 0.2", 0.2)):
        photo, target, points, truth = photograph_pair(noise_std, 5, setting.seed)
        for label, features in choices.items():
            found = match(setting.model, photo, points, target, features=features, size=64, seed=setting.seed)
            error = (found.positions - truth).norm(dim=1).numpy()
            share = pck([PairErrors(error, 64.0)], 0.05, strict=False)
            rows.append((name, label, f"{share:.3f}", f"{np.median(error):.1f}"))
    return Part(
        title="A photograph, turned by 15 degrees",
        text="64 x 64 pixels of a photograph, and its features by the model of digits, which has never seen one: a "
        "check that coordinates hold at another size, not of the claim.",
        columns=("target", "features", "PCK at 0.05 of the side", "median error, pixels"),
        rows=rows,
        numeric=(2, 3),
    )


def photograph_pair(noise_std: float, step: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a grey photograph (1, 64, 64), the same turned by 15 degrees and noised, and a grid of points in both.

    Args:
        noise_std: Of the noise, the range being [-1, 1].
        step: Pixels between the points.
        seed: Of the noise.
    """
    from sklearn.datasets import load_sample_image

    cut = torch.from_numpy(load_sample_image("flower.jpg").copy()[60:380, 190:510]).permute(2, 0, 1) / 127.5 - 1
    photo = torch.nn.functional.interpolate(cut[None], size=(64, 64), mode="area").mean(1)
    angle = torch.tensor(math.radians(_DEGREES), dtype=torch.float64)
    matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    backwards = torch.cat([matrix.T, torch.zeros(2, 1)], dim=1)[None].float()
    grid = torch.nn.functional.affine_grid(backwards, [1, 1, 64, 64], align_corners=False)
    turned = torch.nn.functional.grid_sample(photo[None], grid, padding_mode="border", align_corners=False)[0]
    noise = KeyedNoise(seed, [0]).normal("data", 0, (1, 64, 64))[0]
    points = torch.cartesian_prod(*(torch.arange(16.0, 48, step, dtype=torch.float64),) * 2)
    return photo, (turned + noise_std * noise).clamp(-1, 1), points, (points - 31.5) @ matrix.T + 31.5


def _rows(errors: Mapping[str, Sequence[PairErrors]], seed: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in errors.items():
        near = pck_interval(found, _NEAR, strict=False, seed=seed)
        far = pck(found, _FAR, strict=False)
        rows.append((name, f"{near.value:.3f}", f"{near.low:.3f} .. {near.high:.3f}", f"{far:.3f}"))
    return rows


def _figure(setting: Setting) -> Figure:
    from undiffuse.report.plots import labelled_pictures

    pairs = setting.pairs
    chosen = [number for number in range(0, len(pairs), max(1, len(pairs) // 3))][:3]
    drawn = {}
    for number in chosen:
        src, dst = (pairs.pictures[int(side[number])] for side in (pairs.src, pairs.dst))
        found = match(
            setting.model, src, pairs.points[number], dst, features=("diffusion", "patch"), alpha=0.5, t=_TIME, draws=4
        )
        drawn[f"pair {number + 1}"] = draw_matches(src, dst, found, side=160)
    return labelled_pictures(drawn)


def _at(name: str, time: float) -> str:
    return f"diffusion {name}, t = {time:g}"


def _random(name: str) -> str:
    return name.replace("diffusion", "random network")

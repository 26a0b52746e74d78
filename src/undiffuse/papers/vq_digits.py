"""A class-conditional VQ-Diffusion model of labelled pictures, the digits unless others are given: codec and
transformer, trained here; and its baseline.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import sem
from torch import Tensor

from undiffuse.data import open_data
from undiffuse.metrics.features import ClassifierFeatures
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.manifold import precision_recall
from undiffuse.models import Model
from undiffuse.papers.published_strides import PublishedStrides
from undiffuse.papers.sizes import PICTURES, PictureSize
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.report.plots import labelled_points
from undiffuse.training.devices import choose_device
from undiffuse.training.run import train

_LEVELS, _FEW = 100, 25
_SMALL_SIDE = 8  # pixels, up to which two by two of them make a token; above, four by four do
_BATCH = 1000  # samples at once
_SETS = 5  # of samples: one set moves a distance by a tenth
_TINY = ("model.width=32", "model.depth=1", "model.heads=2")  # to try it
_JUDGED = 5000  # real pictures, at most, that samples are compared with
_COLUMNS = ("sampler", "calls", "right class", "Frechet distance", "precision", "recall")


@dataclass(frozen=True)
class Figures:
    """What a classifier of real pictures says about samples of all classes in turn.

    Args:
        calls: Network evaluations per sample.
        right: Share of the samples that are of the class asked for.
        frechet: Distance to the real pictures in the classifier's features.
        precision, recall: Share of samples near real pictures, and of real pictures near samples.
        seconds: Wall-clock of the run.
    """

    calls: int
    right: float
    frechet: float
    precision: float
    recall: float
    seconds: float

    def row(self, name: str) -> tuple[str, ...]:
        """Return the cells of a table."""
        return (
            name,
            str(self.calls),
            f"{self.right:.3f}",
            f"{self.frechet:.2f}",
            f"{self.precision:.3f}",
            f"{self.recall:.3f}",
        )


class Digits:
    """Trains once, when first asked, and judges samplers.

    Args:
        quick: Few steps and samples, to try it.
        seed: Of training; samples have seed 1.
        data: Labelled pictures, as for `train`.
        device: Where networks are trained and asked, as `train.device`.
        size: Of networks, training and samples.

    Raises:
        ValueError: The data are no pictures with labels.
    """

    def __init__(
        self,
        *,
        quick: bool = False,
        seed: int = 0,
        data: str = "digits",
        device: str = "auto",
        size: PictureSize = PICTURES["small"],
    ) -> None:
        self.quick, self.seed, self.data, self.size = quick, seed, data, size
        self.device = choose_device(device)
        self.pictures = open_data(data)
        self.classes = len(self.pictures.spec.classes)
        if self.pictures.spec.kind != "image" or not self.classes:
            raise ValueError(f"{data} are no pictures with labels; give a folder with a folder of pictures per class.")
        self.count = 60 if quick else size.samples
        self._place = tempfile.TemporaryDirectory()
        self._seen: dict[str, Figures] = {}

    @cached_property
    def model(self) -> Model:
        """Mask-and-replace diffusion on the tokens of a codec that is trained with it."""
        steps = ("codec.steps=20", "codec.width=8", "codec.batch_size=16") if self.quick else ()
        halvings = f"codec.halvings={1 if max(self.pictures.spec.shape[1:]) <= _SMALL_SIDE else 2}"
        return self._train("diffusion", "vq-diffusion", (*self.size.codec, halvings, *steps, *self._network))

    @cached_property
    def written(self) -> Model:
        """The same network with a causal mask, on the same tokens."""
        assert self.model.codec is not None  # trained with it, and written beside it
        words = ("codec=pretrained", f"codec.path={Path(self._place.name) / 'diffusion'}", *self._network)
        return self._train("written", "vq-image", (*words, "model.causal=true", "objective=autoregressive"))

    @cached_property
    def judge(self) -> ClassifierFeatures:
        """A perceptron fitted on real pictures."""
        return ClassifierFeatures(seed=0).fit(*self.real)

    @cached_property
    def real(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Real pictures and their labels."""
        count = len(self.pictures)
        batch = self.pictures.batch(torch.linspace(0, count - 1, min(count, _JUDGED)).round().long())
        return batch["x"].numpy(), batch["cond"]["label"].numpy()

    def figures(self, name: str, model: Model | None = None, *, seed: int = 1, **asked: Any) -> Figures:
        """Sample and judge; the same name is sampled once."""
        if name not in self._seen:
            model = self.model if model is None else model
            labels = torch.arange(self.count) % self.classes
            batch = min(self.count, _BATCH)
            began = time.perf_counter()
            result = model.sample_result(self.count, seed=seed, cond={"label": labels}, batch_size=batch, **asked)
            tokens = result.x.cpu()  # waits for the device
            seconds = time.perf_counter() - began
            self._seen[name] = self._judged(self._decoded(model, tokens), labels.numpy(), result.nfe, seconds)
        return self._seen[name]

    def _sets(self, steps: int) -> NDArray[np.float64]:
        """Return the Frechet distances of several sets of samples, the first of which is that of the table."""
        names = [f"{steps} steps", *(f"{steps} steps, seed {seed}" for seed in range(2, _SETS + 1))]
        return np.array([self.figures(name, seed=seed, steps=steps).frechet for seed, name in enumerate(names, 1)])

    def _judged(self, x: NDArray[Any], labels: NDArray[Any], calls: int, seconds: float) -> Figures:
        ours, real = self.judge.features(x), self.judge.features(self.real[0])
        near = precision_recall(real, ours)
        right = float((self.judge.predict(x) == labels).mean())
        return Figures(calls, right, frechet_distance(ours, real), near.precision, near.recall, seconds)

    @torch.no_grad()
    def _decoded(self, model: Model, tokens: Tensor) -> NDArray[np.float32]:
        assert model.codec is not None
        return torch.cat([model.codec.decode(part.to(self.device)).cpu() for part in tokens.split(_BATCH)]).numpy()

    # -- parts ------------------------------------------------------------------------------------

    def steps(self) -> Part:
        """Fewer steps with the right kernel, and the released sampler with as many calls."""
        found = {f"{n} steps": self.figures(f"{n} steps", steps=n) for n in self._counts()}
        for skip in (3, 9):
            published = PublishedStrides(levels=_LEVELS, skip=skip)
            figures = self.figures(f"released, skip {skip}", solver=published)
            found[f"released code, {figures.calls} calls"] = figures
        assert self.model.codec is not None
        with torch.no_grad():
            parts = torch.from_numpy(self.real[0]).split(_BATCH)
            tokens = torch.cat([self.model.codec.encode(part.to(self.device)).cpu() for part in parts])
        own = self._judged(self._decoded(self.model, tokens), self.real[1], 0, 0.0)
        sides, grid = self.pictures.spec.shape[1:], self.model.state_spec.grid
        few, full = (self._sets(n) for n in (_FEW, _LEVELS))
        ratio = few.mean() / full.mean()
        error = ratio * math.hypot(*(sem(part) / part.mean() for part in (few, full)))
        ten = self.figures("10 steps", steps=10).frechet
        released = self.figures("released, skip 9").frechet
        return Part(
            title="A trained model: steps",
            text=f"Pictures ({self.data}) of {_sides(sides)} pixels as {_sides(grid)} tokens of "
            f"{self.model.state_spec.categories} codes, a transformer of {self.model.parameters / 1e6:.1f} million "
            f"parameters, {self.count} samples of all classes in turn, judged by a perceptron that saw real pictures "
            "only. The last line is what the codec alone makes of the real ones: no sampler can do better than that.",
            columns=_COLUMNS,
            rows=[*(figures.row(name) for name, figures in found.items()), own.row("codec of real pictures")],
            numeric=range(1, len(_COLUMNS)),
            measures=[
                Measure(
                    f"Frechet distance: {_FEW} steps / {_LEVELS} steps, means of {_SETS} sets",
                    ratio,
                    asked=1.1,
                    error=error,
                ),
                Measure(
                    "Frechet distance: released code, 11 calls / 10 right strides",
                    released / ten,
                    asked=1.5,
                    better="higher",
                ),
            ],
        )

    def trades(self) -> Part:
        """Guidance, truncation and purity at the same number of steps, with what they cost in recall."""
        settings: dict[str, Mapping[str, Any]] = {
            "plain": {},
            "guidance 1.5": {"guidance": 1.5},
            "guidance 2": {"guidance": 2.0},
            "guidance 3": {"guidance": 3.0},
            "truncation 0.86": {"truncation": 0.86},
            "guidance 2, truncation 0.86": {"guidance": 2.0, "truncation": 0.86},
            "purity 0, 1 per call": {
                "purity": 0.0,
                "tokens_per_call": 1,
                "steps": self.model.state_spec.shape[0],
            },
            "purity 0.5": {"purity": 0.5},
            "purity 1": {"purity": 1.0},
            "purity 2": {"purity": 2.0},
            "guidance 2, purity 1": {"guidance": 2.0, "purity": 1.0},
        }
        found = {
            name: self.figures(f"{_FEW} steps" if not asked else name, **{"steps": _FEW, **asked})
            for name, asked in settings.items()
        }
        plain, strong = found["plain"], found["guidance 3"]
        return Part(
            title="A trained model: quality and variety",
            text=f"{_FEW} steps, but for the sampler that opens one token with every call. Guidance, truncation and "
            "sharpening trade variety (recall) for precision and for the class asked for. The Frechet distance pays "
            "for lost variety and for untrue pictures alike.",
            columns=_COLUMNS,
            rows=[figures.row(name) for name, figures in found.items()],
            numeric=range(1, len(_COLUMNS)),
            measures=[
                Measure("right class, guidance 3", strong.right, "share", asked=0.97, better="higher"),
                Measure("right class, no guidance", plain.right, "share", better="higher"),
                Measure("recall, guidance 3 / none", strong.recall / max(plain.recall, 1e-3), better="higher"),
                Measure(
                    "best Frechet distance of these / plain", min(f.frechet for f in found.values()) / plain.frechet
                ),
            ],
            figure=labelled_points(
                {name: (f.recall, f.precision) for name, f in found.items()}, "recall (variety)", "precision"
            ),
            caption="Precision and recall of samples by setting: up is truer pictures, right is more kinds of them.",
        )

    def baseline(self) -> Part:
        """The autoregressive model of the same network on the same tokens."""
        written = self.figures("written", self.written)
        rows = [(*written.row("autoregressive"), f"{written.seconds:.2f}")]
        found = {n: self.figures(f"{n} steps", steps=n) for n in self._counts()}
        rows += [(*figures.row(f"{n} steps"), f"{figures.seconds:.2f}") for n, figures in found.items()]
        few = found[_FEW]
        return Part(
            title="The autoregressive baseline",
            text="The same network with a causal mask, trained as long on the same codes; it remembers keys and "
            f"values. Seconds are for {self.count} samples in batches of at most {_BATCH}. "
            f"{self.model.state_spec.shape[0]} tokens are few; the next table has more.",
            columns=(*_COLUMNS, "seconds"),
            rows=rows,
            numeric=range(1, len(_COLUMNS) + 1),
            measures=[
                Measure(f"seconds: autoregressive / {_FEW} steps", written.seconds / few.seconds, better="higher"),
                Measure(f"Frechet distance: {_FEW} steps / autoregressive", few.frechet / written.frechet),
            ],
        )

    @property
    def _network(self) -> tuple[str, ...]:
        return (*self.size.network, *(_TINY if self.quick else ()))

    def _counts(self) -> tuple[int, ...]:
        return (_LEVELS, _FEW, 10) if self.quick else (_LEVELS, 50, _FEW, 10, 5)

    def _train(self, name: str, recipe: str, overrides: tuple[str, ...]) -> Model:
        return train(
            self.data,
            recipe,
            out=Path(self._place.name) / name,
            overrides=overrides,
            steps=20 if self.quick else self.size.steps,
            batch_size=self.size.batch_size,
            seed=self.seed,
            device=str(self.device),
            checkpoint_every=100_000,
            preview_every=0,
            log_every=500,
            validate_every=0,
        ).model.to(self.device)


def _sides(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))

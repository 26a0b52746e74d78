"""A class-conditional VQ-Diffusion model of the digits: codec and transformer, trained here; and its baseline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.data import open_data
from undiffuse.metrics.features import ClassifierFeatures
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.manifold import precision_recall
from undiffuse.models import Model
from undiffuse.papers.published_strides import PublishedStrides
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.report.plots import labelled_points
from undiffuse.training.run import train

_SAMPLES, _CLASSES, _LEVELS, _FEW = 1000, 10, 100, 25
_CODEC = ("codec.codes=32", "codec.halvings=1", "codec.channels=8", "codec.width=16")
_NETWORK = ("model.width=96", "model.depth=4", "model.heads=4", "model.neighbours=0")
_COLUMNS = ("sampler", "calls", "right class", "Frechet distance", "precision", "recall")


@dataclass(frozen=True)
class Figures:
    """What a classifier of real digits says about samples of all classes in turn.

    Args:
        calls: Network evaluations per sample.
        right: Share of the samples that are of the class asked for.
        frechet: Distance to the real digits in the classifier's features.
        precision, recall: Share of samples near real digits, and of real digits near samples.
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
    """

    def __init__(self, *, quick: bool = False, seed: int = 0) -> None:
        self.quick, self.seed = quick, seed
        self.count = 60 if quick else _SAMPLES
        self._place = tempfile.TemporaryDirectory()
        self._seen: dict[str, Figures] = {}

    @cached_property
    def model(self) -> Model:
        """Mask-and-replace diffusion on the tokens of a codec that is trained with it."""
        steps = ("codec.steps=20",) if self.quick else ("codec.steps=1500",)
        return self._train("diffusion", "vq-diffusion", (*_CODEC, *steps, *_NETWORK))

    @cached_property
    def written(self) -> Model:
        """The same network with a causal mask, on the same tokens."""
        assert self.model.codec is not None  # trained with it, and written beside it
        words = ("codec=pretrained", f"codec.path={Path(self._place.name) / 'diffusion'}", *_NETWORK)
        return self._train("written", "vq-image", (*words, "model.causal=true", "objective=autoregressive"))

    @cached_property
    def judge(self) -> ClassifierFeatures:
        """A perceptron fitted on real digits."""
        return ClassifierFeatures(seed=0).fit(*self.real)

    @cached_property
    def real(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """All real digits and their labels."""
        data = open_data("digits")
        batch = data.batch(torch.arange(len(data)))
        return batch["x"].numpy(), batch["cond"]["label"].numpy()

    def figures(self, name: str, model: Model | None = None, **asked: Any) -> Figures:
        """Sample and judge; the same name is sampled once."""
        if name not in self._seen:
            model = self.model if model is None else model
            labels = torch.arange(self.count) % _CLASSES
            began = time.perf_counter()
            result = model.sample_result(self.count, seed=1, cond={"label": labels}, batch_size=self.count, **asked)
            seconds = time.perf_counter() - began
            assert model.codec is not None
            with torch.no_grad():
                self._seen[name] = self._judged(
                    model.codec.decode(result.x).numpy(), labels.numpy(), result.nfe, seconds
                )
        return self._seen[name]

    def _judged(self, x: NDArray[Any], labels: NDArray[Any], calls: int, seconds: float) -> Figures:
        ours, real = self.judge.features(x), self.judge.features(self.real[0])
        near = precision_recall(real, ours)
        right = float((self.judge.predict(x) == labels).mean())
        return Figures(calls, right, frechet_distance(ours, real), near.precision, near.recall, seconds)

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
            x = self.model.codec.decode(self.model.codec.encode(torch.from_numpy(self.real[0])))
        own = self._judged(x.numpy(), self.real[1], 0, 0.0)
        few, full, ten = (self.figures(f"{n} steps", steps=n).frechet for n in (_FEW, _LEVELS, 10))
        released = self.figures("released, skip 9").frechet
        return Part(
            title="A trained model: steps",
            text=f"Digits of 8 x 8 pixels as 4 x 4 tokens of {self.model.state_spec.categories} codes, a transformer "
            f"of {self.model.parameters / 1e6:.1f} million parameters, {self.count} samples of all classes in turn, "
            "judged by a perceptron that saw real digits only. The last line is what the codec alone makes of the real "
            "digits: no sampler can do better than that.",
            columns=_COLUMNS,
            rows=[*(figures.row(name) for name, figures in found.items()), own.row("codec of real digits")],
            numeric=range(1, len(_COLUMNS)),
            measures=[
                Measure(f"Frechet distance: {_FEW} steps / {_LEVELS} steps", few / full, asked=1.1),
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
            "purity 0, 1 per call": {"purity": 0.0, "tokens_per_call": 1, "steps": 16},
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
            "for lost variety and for untrue digits alike.",
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
            caption="Precision and recall of samples by setting: up is truer digits, right is more kinds of them.",
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
            f"values. Seconds are for {self.count} samples in one batch. Sixteen tokens are few; the next table has "
            "1024.",
            columns=(*_COLUMNS, "seconds"),
            rows=rows,
            numeric=range(1, len(_COLUMNS) + 1),
            measures=[
                Measure(f"seconds: autoregressive / {_FEW} steps", written.seconds / few.seconds, better="higher"),
                Measure(f"Frechet distance: {_FEW} steps / autoregressive", few.frechet / written.frechet),
            ],
        )

    def _counts(self) -> tuple[int, ...]:
        return (_LEVELS, _FEW, 10) if self.quick else (_LEVELS, 50, _FEW, 10, 5)

    def _train(self, name: str, recipe: str, overrides: tuple[str, ...]) -> Model:
        return train(
            "digits",
            recipe,
            out=Path(self._place.name) / name,
            overrides=overrides,
            steps=20 if self.quick else 3000,
            batch_size=64,
            seed=self.seed,
            checkpoint_every=100_000,
            preview_every=0,
            log_every=500,
            validate_every=0,
        ).model

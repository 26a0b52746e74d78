"""The trained part of the masked-diffusion study: two networks on one text, their likelihoods and their samples."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.data import DataOptions, TextDataset, decode_text, open_data, split
from undiffuse.metrics.reference import CausalReference
from undiffuse.metrics.text import NGram, bigram_distance, sequence_entropy
from undiffuse.models import Model
from undiffuse.papers.sizes import TEXTS, TextSize
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.report.plots import Curve, error_by_evaluations
from undiffuse.sampling.ancestral import Ancestral
from undiffuse.sampling.loop import SampleResult
from undiffuse.training.devices import choose_device
from undiffuse.training.pace import steps_within
from undiffuse.training.run import train

_NETWORKS = {
    "masked": (),
    "left to right": ("model.causal=true", "objective=autoregressive"),
}
_MASKED, _CAUSAL = _NETWORKS
_FEW = (4, 8, 16, 32)
_RESAMPLED = 50


class Texts:
    """The parts of the study that need trained networks; they are trained when the first of them is asked for.

    Args:
        data: A text, as for `train`.
        quick: Train for a moment and draw few samples.
        seed: Of everything random.
        device: Where networks are trained and asked, as `train.device`.
        size: Of networks, training and samples.
    """

    def __init__(
        self, data: str, quick: bool, seed: int, device: str = "auto", size: TextSize = TEXTS["small"]
    ) -> None:
        self.data, self.quick, self.seed, self.size = data, quick, seed, size
        self.device = choose_device(device)
        self.rows, self.compared = (4, 4) if quick else (size.rows, size.compared)
        self.few: tuple[int, ...] = (4, 16) if quick else _FEW
        options = DataOptions(source=data, length=size.length)
        training_set, held_out = split(open_data(data, options))
        if not isinstance(training_set, TextDataset) or not isinstance(held_out, TextDataset):
            raise ValueError(f"{data} is no text; give a text file, such as --data tinyshakespeare.txt.")
        self.held_out, self._whole = held_out, training_set.tokens.long()
        self._place = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.cleanup()

    @cached_property
    def models(self) -> dict[str, Model]:
        """The networks, after equally many steps each."""
        small = ["model.width=16", "model.depth=1", "model.heads=2"] if self.quick else []
        size = [*self.size.keys, f"data.length={self.size.length}", f"train.device={self.device}", *small]
        steps = 20 if self.quick else self.size.steps
        if not steps:
            assert self.size.seconds is not None
            steps = steps_within(self.data, "text", self.size.seconds, size)
        options: dict[str, Any] = {"seed": self.seed, "preview_every": 0, "checkpoint_every": 1_000_000}
        self.steps, found = steps, {}
        for number, (name, words) in enumerate(_NETWORKS.items()):
            folder = Path(self._place.name) / str(number)
            run = train(self.data, "text", out=folder, steps=steps, overrides=[*size, *words], **options)
            found[name] = run.model.to(self.device)
        return found

    @cached_property
    def windows(self) -> torch.Tensor:
        """Held-out windows (N, L), at most 512, spread over the held-out text."""
        most = 16 if self.quick else 512
        count = len(self.held_out)
        return self.held_out.batch(torch.linspace(0, count - 1, min(count, most)).round().long())["x"]

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the training text."""
        return frozenset(decode_text(self._whole, self.held_out.spec).split())

    def training(self) -> Part:
        """Held-out nats per token of the networks and of n-grams."""
        found = {name: model.elbo(self.windows) for name, model in self.models.items()}
        grams = {order: self._ngram(order) for order in (3, 5)}
        kinds = ("bound", "exact")
        rows = [
            (name, f"{bound.mean:.3f}", f"{bound.standard_error:.3f}", kind)
            for (name, bound), kind in zip(found.items(), kinds, strict=True)
        ]
        rows += [(f"interpolated {order}-gram", f"{nats:.3f}", "", "exact") for order, nats in grams.items()]
        return Part(
            title="Training",
            text=f"Nats per token of held-out text after {self.steps} steps of each network, one size and one trainer. "
            "The network that reads from left to right sees one order only, and learns it faster.",
            columns=("model", "nats per token", "error", "kind"),
            rows=rows,
            numeric=(1, 2),
            measures=[
                Measure("masked / 3-gram, nats", found[_MASKED].mean / grams[3], note="trained for minutes"),
                Measure("masked / left to right, nats", found[_MASKED].mean / found[_CAUSAL].mean),
            ],
        )

    def samplers(self) -> Part:
        """First-hitting sampling beside ancestral sampling in many steps: same law, fewer calls, less time."""
        many = 50 if self.quick else 1000
        length = self.held_out.spec.shape[0]
        ways: dict[str, dict[str, Any]] = {
            f"first-hitting, {length} calls": {"solver": "first-hitting"},
            f"ancestral, {many} steps": {"solver": "ancestral", "steps": many},
            f"ancestral, {many} steps, cached": {"solver": Ancestral(cache=True), "steps": many},
        }
        drawn = {name: self._timed(self.models[_MASKED], **way) for name, way in ways.items()}
        drawn["left to right"] = self._timed(self.models[_CAUSAL])
        rows = []
        for name, (result, seconds) in drawn.items():
            distance, spread = self._distance(result.x)
            figures = (str(result.nfe), f"{seconds:.1f}", f"{sequence_entropy(result.x):.3f}")
            rows.append((name, *figures, f"{distance:.4f}", f"{spread:.4f}"))
        (hitting, fast), (ancestral, slow), (cached, _), _ = drawn.values()
        apart, spread = self._apart(hitting.x, ancestral.x)
        return Part(
            title="First-hitting and ancestral sampling of a text",
            text=f"{self.compared} samples of the masked network. Both samplers follow one law up to 1 / steps. "
            "Without a cache ancestral sampling calls the network at every step; with one, whenever a token changed.",
            columns=("sampler", "calls", "seconds", "entropy per sample, bits", "bigram distance", "spread"),
            rows=rows,
            numeric=range(1, 6),
            measures=[
                Measure("bigram distances apart, in spreads", abs(apart) / spread, "", asked=3.0),
                Measure("ancestral / first-hitting, calls", ancestral.nfe / hitting.nfe, asked=7.8, better="higher"),
                Measure("ancestral / first-hitting, seconds", slow / fast, better="higher", note="paper: up to 20"),
                Measure("ancestral, cached or not: differing tokens", float((cached.x != ancestral.x).sum()), "", 0.0),
            ],
        )

    def together(self) -> Part:
        """Fewer calls than tokens: what it costs, by order, and beside ancestral sampling of as many steps."""
        judge, rows = CausalReference(self.models[_CAUSAL]), []
        distances: dict[str, list[float]] = {}
        length = self.held_out.spec.shape[0]
        for name in ("ancestral", "order 1", "order 2", "cosine groups, order 2"):
            for calls in (*self.few, length):
                x = self._drawn(calls, name)
                distances.setdefault(name, []).append(self._distance(x)[0])
                score = judge.score(x.numpy(), self.held_out.spec)
                figures = (f"{distances[name][-1]:.4f}", f"{self._known_words(x):.3f}", f"{score.perplexity:.2f}")
                rows.append((name, str(calls), *figures, f"{sequence_entropy(x):.3f}"))
        calls, plain, second = [*self.few, length], distances["order 1"], distances["order 2"]
        return Part(
            title="Several tokens per call",
            text="Tokens of one call are drawn independently. Bigram distance to held-out text, share of words that "
            "the training text has, and perplexity under the network that reads from left to right, with the entropy "
            "per sample that belongs to it.",
            columns=("sampler", "calls", "bigram distance", "known words", "perplexity", "entropy, bits"),
            rows=rows,
            numeric=range(1, 6),
            measures=[
                Measure("4 calls, bigram distance: order 2 / order 1", second[0] / plain[0]),
                Measure(f"bigram distance: 16 calls / {length}", plain[calls.index(16)] / plain[-1]),
            ],
            figure=error_by_evaluations([Curve(name, calls, found) for name, found in distances.items()]),
            caption="Distance of bigram frequencies to held-out text by network calls.",
        )

    def honest(self) -> Part:
        """A lower temperature buys perplexity with entropy, so the one says nothing without the other."""
        judge, rows, found = CausalReference(self.models[_CAUSAL]), [], {}
        for temperature in (1.0, 0.9, 0.8, 0.6):
            x = self.models[_MASKED].sample(self.rows, seed=self.seed, steps=32, temperature=temperature).cpu()
            found[temperature] = (judge.score(x.numpy(), self.held_out.spec).perplexity, sequence_entropy(x))
            rows.append((f"masked, temperature {temperature:g}", *map("{:.3f}".format, found[temperature])))
        for name, x in {
            "left to right": self.models[_CAUSAL].sample(self.rows, seed=self.seed).cpu(),
            "held-out text": self.windows[: self.rows],
        }.items():
            score = judge.score(x.numpy(), self.held_out.spec)
            rows.append((name, f"{score.perplexity:.3f}", f"{sequence_entropy(x):.3f}"))
        return Part(
            title="Honest figures of samples",
            text="Perplexity of samples under the network that reads from left to right, beside the entropy per "
            "sample; masked samples in 32 calls. Colder samples look better by the first and lose by the second.",
            columns=("samples", "perplexity", "entropy per sample, bits"),
            rows=rows,
            numeric=(1, 2),
            measures=[
                Measure("temperature 0.6 / 1, perplexity", found[0.6][0] / found[1.0][0]),
                Measure("temperature 0.6 / 1, entropy", found[0.6][1] / found[1.0][1]),
            ],
        )

    # -- samples and their measures --------------------------------------------------------------------

    def _timed(self, model: Model, **way: Any) -> tuple[SampleResult, float]:
        began = time.perf_counter()
        result = model.sample_result(self.compared, seed=self.seed, **way)
        result = replace(result, x=result.x.cpu())  # waits for the device
        return result, time.perf_counter() - began

    def _drawn(self, calls: int, name: str) -> torch.Tensor:
        model, length = self.models[_MASKED], self.held_out.spec.shape[0]
        if name == "ancestral":
            return model.sample(self.rows, seed=self.seed, solver="ancestral", steps=calls).cpu()
        if calls == length:  # one by one: the same samples at every order and in all groups
            return self._one_by_one
        options: dict[str, Any] = {"order": 2 if "order 2" in name else 1}
        options |= {"groups": "cosine"} if "cosine" in name else {}
        drawn = model.sample(self.rows, seed=self.seed, solver="first-hitting", steps=calls, solver_options=options)
        return drawn.cpu()

    @cached_property
    def _one_by_one(self) -> torch.Tensor:
        return self.models[_MASKED].sample(self.rows, seed=self.seed, solver="first-hitting").cpu()

    def _distance(self, x: torch.Tensor) -> tuple[float, float]:
        """Return the distance of bigrams to held-out text, and its spread over resampled rows."""
        return self._resampled(lambda rows: bigram_distance(x[rows], self.windows), len(x))

    def _apart(self, a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
        """Return by how much the distances of two sets of samples differ, and the spread of that."""
        return self._resampled(
            lambda rows: bigram_distance(a[rows], self.windows) - bigram_distance(b[rows], self.windows), len(a)
        )

    def _resampled(self, figure: Callable[[NDArray[np.int64]], float], count: int) -> tuple[float, float]:
        draw = np.random.default_rng(self.seed)
        spread = np.std([figure(draw.integers(count, size=count)) for _ in range(_RESAMPLED)])
        return figure(np.arange(count)), max(float(spread), 1e-9)

    def _known_words(self, x: torch.Tensor) -> float:
        """Return the share of words found in the training text; the first and last of a row may be cut."""
        words = [word for row in x for word in decode_text(row, self.held_out.spec).split()[1:-1]]
        return sum(word in self.words for word in words) / max(len(words), 1)

    def _ngram(self, order: int) -> float:
        return NGram.fit(self._whole, self.held_out.spec.categories, order).bits(self.windows) * float(np.log(2))

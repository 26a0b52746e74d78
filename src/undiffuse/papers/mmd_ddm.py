"""MMD fine-tuning on the real digits, with the baselines that the paper leaves out.

A small network is trained on 1297 of the 1797 digits, then tuned through samplers of few steps. Beside the tuned models
stand the untuned ones: by DDIM, by the best solver of at most as many calls, after extra denoising training of the same
time, and by DDIM with 100 calls. The time is that of the processor, measured: the extra training takes as long as the
longest of the tunings. The best solver is chosen by the very figure that is reported, tuned models by nothing.

Source: Aiello, Valsesia, Magli 2023, "Fast Inference in Denoising Diffusion Models via MMD Finetuning",
    arXiv:2301.07969.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from undiffuse.data import Dataset, TensorDataset, open_data, split
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.distillation.mmd import MMDObjective, Sampler
from undiffuse.distillation.mmd_features import Features, make_features, probed, trained_classifier
from undiffuse.distillation.mmd_judge import Figures, Judge, all_items, best_untuned, draw
from undiffuse.events import Listener, silent
from undiffuse.metrics.kernels import KernelName
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.schedules import TrigSchedule
from undiffuse.report.measures import Measure
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import DataSpec
from undiffuse.training.build import make_objective
from undiffuse.training.objectives import Objective
from undiffuse.training.options import DenoisingOptions, TrainOptions
from undiffuse.training.trainer import Trainer

_TASK = "mmd-ddm"
_HELD_OUT, _SAMPLES, _WIDTH = 500, 2000, 256
_BASE_STEPS, _TUNING_STEPS = 4000, 400
_TIMED_STEPS = 200  # of denoising, whose time says how many of them take as long as a tuning
_KINDS: dict[str, tuple[str, KernelName]] = {
    "MMD rbf-mix, classifier": ("classifier", "rbf-mix"),
    "MMD rbf-mix, pixels": ("pixels", "rbf-mix"),
    "MMD cubic, classifier": ("classifier", "cubic"),
}
_JUDGED = "MMD rbf-mix, classifier"
_ASKED = {5: 2.5, 3: 6.0}  # gain of the judged tuning over the best untuned sampler, by number of calls
_TUNED_WIDTH = 0.12  # of the average over a tuning: about that of an exponential one of .98 over 400 steps


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: how samples were made, in how many network calls, and what they are worth."""

    seed: int
    name: str
    calls: int
    figures: Figures


def study(
    *,
    quick: bool = False,
    seed: int = 0,
    seeds: int = 1,
    listener: Listener = silent,
    keep: Keep = drop,
    folder: str | Path | None = None,
) -> Study:
    """Reproduce the table, as a page; `quick` only shows that it runs.

    Args:
        quick: A few optimizer steps and samples, for one number of calls.
        seed: The first seed.
        seeds: How many seeds, one table for each and each number of calls.
        listener: Hears about progress.
        keep: Hears of what there is after each part.
        folder: Where networks are kept, and taken from if they are there already; None keeps none.
    """
    budget = (4, 2, 150) if quick else (_BASE_STEPS, _TUNING_STEPS, _SAMPLES)
    calls, numbers = (5,) if quick else (5, 3), range(seed, seed + seeds)
    with TemporaryDirectory() as temporary:
        place = Path(folder if folder is not None else temporary)
        made: dict[int, _Digits] = {}

        def part(number: int, count: int) -> Part:
            folder = place / f"seed-{number}-{budget[0]}-steps"
            own = made.get(number) or _Digits(number, folder, *budget)
            made[number] = own
            return _part(number, count, [*own.reference(), *own.tuned(count)], judged=not quick)

        parts = [(f"seed {n}, {count} calls", partial(part, n, count)) for n in numbers for count in calls]
        settings = {"seed": seed, "seeds": seeds, "quick": quick, "held out": _HELD_OUT, "samples": budget[2]}
        return run_parts(_TASK, parts, settings, listener, keep)


def gain(rows: Sequence[Row], calls: int, tuning: str = _JUDGED) -> float:
    """Return how many times nearer, in independent features, a tuned model is than the best untuned sampler.

    Args:
        rows: A table of one seed.
        calls: Number of network calls.
        tuning: Name of the row of the tuned model.
    """
    here = {row.name: row.figures.independent for row in rows if row.calls == calls}
    (untuned,) = (value for name, value in here.items() if name.startswith("best untuned:"))
    return untuned / here[tuning]


def _part(seed: int, calls: int, rows: list[Row], judged: bool) -> Part:
    cells = [
        (row.name, str(row.calls), *(f"{value:.4g}" for value in _values(row.figures)), f"{row.figures.copies:.3f}")
        for row in rows
    ]
    what = f"times nearer to the data than the best untuned sampler, {calls} calls, seed {seed}"
    asked = {_JUDGED: _ASKED.get(calls) if judged else None}
    return Part(
        title=f"{calls} calls, seed {seed}",
        text="Frechet distance to all digits, and to the held-out ones, in features of a classifier that the tuning "
        "never saw; energy distance of the pixels; variety as a share of that of real digits; and the share of samples "
        "nearer to training digits than to held-out ones. The best untuned sampler is that of all deterministic "
        "solvers on three grids, of at most as many calls, by the first of these figures; the tuned models are those "
        "of the last step and are chosen by no figure. The extra training takes the processor as long as the longest "
        "of the three tunings.",
        columns=("model", "calls", "distance", "held out", "energy", "spread", "copies"),
        rows=cells,
        numeric=(1, 2, 3, 4, 5, 6),
        measures=[
            Measure(f"{name}: {what}", gain(rows, calls, name), asked=asked.get(name), better="higher")
            for name in _KINDS
        ],
    )


def _values(figures: Figures) -> tuple[float, ...]:
    return figures.independent, figures.held_out, figures.energy, figures.spread


class _Digits:
    """The network of one seed, and the tunings that start from it."""

    def __init__(self, seed: int, folder: Path, base_steps: int, steps: int, samples: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seed, self.folder, self.steps, self.samples = seed, folder, steps, samples
        labelled = open_data("digits")
        train, held_out = split(labelled, _HELD_OUT, seed)
        self.train = _vectors(train)
        self.phi, self.psi = (_classifier_features(train, seed * 2 + k) for k in (0, 1))
        self.pixels = make_features("pixels", self.train)
        self.judge = Judge(all_items(self.train), all_items(_vectors(held_out)), self.phi, self.psi)
        network = build_network(MLPOptions(width=_WIDTH, depth=3), self.train.spec, seed=seed)
        fresh = NetworkDenoiser(network, GaussianProcess(TrigSchedule()), "v", spec=self.train.spec)
        self.base = self._based(fresh, base_steps)

    def reference(self) -> Iterator[Row]:
        """Yield the row of many steps."""
        yield self._row("DDIM", 100, self._samples(self.base, 100))

    def tuned(self, calls: int) -> Iterator[Row]:
        """Yield the rows of one number of calls, untuned and tuned."""
        yield self._row("DDIM", calls, self._samples(self.base, calls))
        tunings, seconds = {}, 0.0
        for name, (features, kernel) in _KINDS.items():
            own = self.phi if features == "classifier" else self.pixels
            *tunings[name], spent = self._tuned_or_kept(own, kernel, calls, name)
            seconds = max(seconds, spent)
        longer, steps = self._trained_on(calls, seconds)
        told = f"extra denoising training of the same time ({steps} steps)"
        yield self._row(f"DDIM, {told}", calls, self._samples(longer, calls))
        choice = best_untuned(Model(self.base, self.train.spec), calls, self.judge, n=self.samples // 4)
        for name, denoiser in (("best untuned", self.base), ("best untuned after the extra training", longer)):
            found = draw(Model(denoiser, self.train.spec), self.samples, 1, **choice.arguments())
            yield self._row(f"{name}: {choice}", calls, found.x)
        for name, (average, last) in tunings.items():
            yield self._row(name, calls, self._samples(average, calls))
            if name.startswith("MMD rbf-mix"):
                yield self._row(f"{name}, last iterate", calls, self._samples(last, calls))

    def _row(self, name: str, calls: int, samples: Tensor) -> Row:
        return Row(seed=self.seed, name=name, calls=calls, figures=self.judge(samples))

    def _samples(self, denoiser: Denoiser, calls: int) -> Tensor:
        model = Model(denoiser, self.train.spec)
        return draw(model, self.samples, 1, solver="ddim", steps=calls, grid="t").x

    def _based(self, denoiser: Denoiser, steps: int) -> Denoiser:
        """Return the network that is tuned, trained now or kept."""
        kept = self.folder / "base"
        if not (kept / "config.json").is_file():
            Model(self._denoise(denoiser, steps, 1e-3), self.train.spec).save(kept)
        return load(kept).denoiser

    def _trained_on(self, calls: int, seconds: float) -> tuple[Denoiser, int]:
        """Return the network trained on for so many seconds of the processor, and for how many steps; or the kept one.

        The time of a step is measured just before, on steps that are thrown away.
        """
        kept = self.folder / f"longer-{calls}-calls-{self.steps}-model"
        if not (kept / "config.json").is_file():
            timed = min(_TIMED_STEPS, 10 * self.steps)
            begun = time.process_time()
            self._denoise(self.base, timed, 1e-4)
            steps = max(1, round(timed * seconds / (time.process_time() - begun)))
            trained = self._denoise(self.base, steps, 1e-4)
            Model(trained, self.train.spec, info={"extra_steps": steps}).save(kept)
        model = load(kept)
        return model.denoiser, model.info["extra_steps"]

    def _denoise(self, denoiser: Denoiser, steps: int, rate: float) -> Denoiser:
        own = copy.deepcopy(denoiser).requires_grad_()
        options = TrainOptions(
            steps=steps, batch_size=128, lr=rate, warmup=0, decay="cosine", clip=0.0, seed=self.seed, device="cpu"
        )
        return self._run(own, make_objective(DenoisingOptions(drop=0.0), own), options)[0]

    def _tuned_or_kept(
        self, features: Features, kernel: KernelName, calls: int, name: str
    ) -> tuple[Denoiser, Denoiser, float]:
        """Return a tuned network, averaged and of the last step, and how many seconds of the processor it took."""
        folder = self.folder / f"{name}-{calls}-calls-{self.steps}".replace(",", "").replace(" ", "-")
        if not (folder / "last" / "config.json").is_file():
            begun = time.process_time()
            average, last = self._tune(features, kernel, calls)
            info = {"seconds": time.process_time() - begun}
            Model(average, self.train.spec, info=info).save(folder / "average")
            Model(last, self.train.spec).save(folder / "last")
        model = load(folder / "average")
        return model.denoiser, load(folder / "last").denoiser, model.info["seconds"]

    def _tune(self, features: Features, kernel: KernelName, calls: int) -> tuple[Denoiser, Denoiser]:
        own = copy.deepcopy(self.base).requires_grad_()
        sampler = Sampler(make_solver("ddim"), make_grid(TrigSchedule(), calls, "t"))
        objective = MMDObjective(features, [sampler], width=features.width, kernel=kernel, checkpoint=False)
        options = TrainOptions(
            steps=self.steps,
            batch_size=256,
            lr=2e-4,
            warmup=0,
            decay="linear",
            betas=(0.9, 0.999),
            ema=(_TUNED_WIDTH,),
            seed=self.seed + 1,
            device="cpu",
        )
        return self._run(own, objective, options)

    def _run(self, denoiser: Denoiser, objective: Objective, options: TrainOptions) -> tuple[Denoiser, Denoiser]:
        """Return the averaged denoiser and that of the last step; nothing is left of the run itself."""
        options = replace(options, checkpoint_every=options.steps, preview_every=0)
        with TemporaryDirectory() as folder:
            trainer = Trainer(denoiser, objective, self.train, options, Path(folder))
            if not trainer.run().finished:
                raise KeyboardInterrupt  # nothing half-trained is kept, or taken for a result
        return trainer.state.model().eval(), trainer.denoiser.eval()  # type: ignore[return-value]


def _vectors(dataset: Dataset) -> TensorDataset:
    """Return images as vectors of as many numbers, without labels, for a network of plain layers."""
    assert isinstance(dataset, TensorDataset)
    x = all_items(dataset).flatten(1)
    return TensorDataset(data=x, spec=DataSpec(kind="vector", shape=tuple(x.shape[1:]), range=(-1.0, 1.0)))


def _classifier_features(dataset: Dataset, seed: int) -> Features:
    shape = dataset.spec.shape
    network = trained_classifier(dataset, None, seed)
    call = Features(lambda x: network.features(x.view(-1, *shape)), 0, f"classifier {seed}", "a small classifier")
    return probed(call, DataSpec(kind="vector", shape=(torch.Size(shape).numel(),)))

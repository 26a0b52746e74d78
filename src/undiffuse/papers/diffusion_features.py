"""Diffusion features: what the inside of the digits model knows, beside raw pixels and an untrained network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.analysis.similarity import Comparison, cka, compare_layers
from undiffuse.data import open_data, split
from undiffuse.events import Listener, silent
from undiffuse.models import Model, load
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.report.plots import accuracy_curves, heat_map
from undiffuse.tasks.features.baselines import RawItems, untrained
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.few_labels import few_label_curve
from undiffuse.tasks.features.options import HeadOptions
from undiffuse.tasks.features.probing import Encoder, accuracy, fit_head, head_inputs
from undiffuse.tasks.features.search import probe_search
from undiffuse.tasks.features.transferring import COLUMNS, Target, cells, transfer
from undiffuse.training.run import train

_T = 0.1
_TIMES = (0.02, 0.1, 0.3, 0.6, 0.8)
_COUNTS = (1, 2, 5, 10, 20, 50)
_STEPS = 900  # of training on the digits 0 to 4
_UNTRAINED = "untrained network"


@dataclass(frozen=True)
class Digits:
    """The built-in model, the digits of its training, and those that were held out, which judge.

    Args:
        seed: Of noise, choices and heads.
        quick: Few items and settings.
    """

    seed: int
    quick: bool
    kept: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The built-in model."""
        return load("digits")

    @cached_property
    def models(self) -> dict[str, Model]:
        """The model, and its network before training."""
        return {"model": self.model, _UNTRAINED: untrained(self.model)}

    @cached_property
    def learned(self) -> dict[str, Tensor]:
        """Digits to learn from: "x" in model units, "y", "index"."""
        return _items(split(open_data("digits"))[0], 200 if self.quick else None)

    @cached_property
    def judged(self) -> dict[str, Tensor]:
        """Digits that judge, which neither the model nor a probe has seen."""
        return _items(split(open_data("digits"))[1], 100 if self.quick else None)

    @property
    def layers(self) -> list[str]:
        """The blocks that are compared: all but the two ends."""
        return [name for name in FeatureEncoder(self.model, "all").names if name not in ("in", "out")]

    def features(self, which: str, t: float) -> dict[tuple[str, int | None], tuple[Tensor, Tensor]]:
        """Return features to learn from and to judge by, for every block and pooling; computed once."""
        key = (which, t)
        if key not in self.kept:
            encoder = FeatureEncoder(self.models[which], self.layers, t, seed=self.seed)
            pools = (1, 2, 4) if t == _T else (1,)
            parts = [encoder.by_pool(part["x"], pools, index=part["index"]) for part in (self.learned, self.judged)]
            self.kept[key] = {name: (parts[0][name], parts[1][name]) for name in parts[0]}
        return self.kept[key]

    def right(self, inputs: Any, judging: Any, head: str = "ridge") -> float:
        """Return the accuracy of a head on features."""
        options = HeadOptions(head=head, seed=self.seed, epochs=2 if self.quick else 30)  # type: ignore[arg-type]
        return accuracy(fit_head(inputs, self.learned["y"], 10, options), judging, self.judged["y"])

    def few(self, inputs: Any, judging: Any, counts: Sequence[int]) -> list[float]:
        """Return accuracies by labels of each class, over 10 choices."""
        pair = (inputs, self.learned["y"]), (judging, self.judged["y"])
        repeats = 2 if self.quick else 10
        return [row.accuracy for row in few_label_curve(*pair, counts=counts, repeats=repeats, seed=self.seed)]

    @property
    def counts(self) -> tuple[int, ...]:
        """Labels of each class of the few-label curves."""
        return _COUNTS[:3] if self.quick else _COUNTS


def reproduce(*, quick: bool = False, seed: int = 0, listener: Listener = silent, keep: Keep = drop) -> Study:
    """Compute all tables; `quick` takes few items and a short training: to try it."""
    bench = Digits(seed, quick)
    parts = [
        ("blocks and times", partial(blocks, bench)),
        ("the choice by cross-validation", partial(choice, bench)),
        ("pooling", partial(pooling, bench)),
        ("few labels", partial(few_labels, bench)),
        ("heads", partial(heads, bench)),
        ("CKA", partial(alike, bench)),
        ("transfer", partial(transferred, bench)),
    ]
    settings = machine_settings(
        seed=seed, quick=quick, learned_from=len(bench.learned["x"]), judged_by=len(bench.judged["x"])
    )
    return run_parts("diffusion-features", parts, settings, listener, keep)


def blocks(bench: Digits) -> Part:
    """Accuracy by block and time, spatial means."""
    pixels = bench.right(*_raw(bench))
    found = {
        (which, t): {layer: bench.right(*pair) for (layer, pool), pair in bench.features(which, t).items() if pool == 1}
        for which, times in (("model", _TIMES), (_UNTRAINED, (_T,)))
        for t in times
    }
    rows = [
        (which, f"{t:g}", *(f"{100 * scores[layer]:.1f}" for layer in bench.layers))
        for (which, t), scores in found.items()
    ]
    best = max(found["model", _T].values())
    other = max(found[_UNTRAINED, _T].values())
    late = max(found["model", 0.6].values())
    curves = {
        layer: (_TIMES, [found["model", t][layer] for t in _TIMES])
        for layer in bench.layers
        if "." in layer or layer == "mid"
    }
    return Part(
        title="Blocks and times, one number for each channel",
        text="Ridge probe on the spatial mean of each block (pool 1), all labels: learned on digits of the model's "
        "training, judged on those held out. The model was trained with labels, dropped in a tenth of the cases, and "
        "is read without. Accuracy stays level up to about t = 0.2 and falls beyond: the paper's curve. The untrained "
        f"network is its own baseline; raw pixels, 64 numbers, give {pixels:.1%}.",
        columns=("network", "t", *bench.layers),
        rows=rows,
        numeric=range(1, len(bench.layers) + 2),
        measures=(
            Measure("best block - untrained network's best, t 0.1", 100 * (best - other), "points", 10.0, "higher"),
            Measure("best block at t 0.1 - at t 0.6", 100 * (best - late), "points", 5.0, "higher"),
            Measure("best block - raw pixels, t 0.1", 100 * (best - pixels), "points", None, "higher"),
        ),
        figure=accuracy_curves(curves, "t", log=False),
        caption="Accuracy by time and block, pool 1.",
    )


def choice(bench: Digits) -> Part:
    """The search, on the items to learn from alone."""
    times, pools = ((0.1,), (1, 2)) if bench.quick else ((0.05, 0.1, 0.2), (1, 2, 4))
    given = bench.learned
    search = probe_search(
        bench.model,
        given["x"],
        given["y"],
        index=given["index"],
        layers=bench.layers,
        times=times,
        pools=pools,
        n=600,
        seed=bench.seed,
    )
    best = search.best
    encoder = FeatureEncoder(bench.model, best.layer, best.t, pool=best.pool, seed=bench.seed)
    judging = encoder(bench.judged["x"], index=bench.judged["index"])
    right = bench.right(encoder(given["x"], index=given["index"]), judging)
    return Part(
        title="The choice by cross-validation",
        text=f"{len(search.rows)} choices of block, time and pooling by {search.settings['folds']} folds of "
        f"{search.settings['items']} of the digits to learn from. The held-out digits judge the winner, once.",
        columns=search.columns,
        rows=search.table(8),
        numeric=(1, 2, 3, 4, 5),
        measures=(
            Measure("the chosen features, held-out digits", 100 * right, "%", None if bench.quick else 99.0, "higher"),
        ),
    )


def pooling(bench: Digits) -> Part:
    """Accuracy by pooling, beside the untrained network."""
    found = {
        (which, pool): {
            layer: bench.right(*pair) for (layer, cells), pair in bench.features(which, _T).items() if cells == pool
        }
        for which in bench.models
        for pool in (1, 2, 4)
    }
    rows = [
        (which, str(pool), *(f"{100 * scores[layer]:.1f}" for layer in bench.layers))
        for (which, pool), scores in found.items()
    ]
    last = "up1.0"
    asked = {1: 96.0, 4: 99.0}
    measures = [
        Measure(f"{last}, pool {pool}", 100 * found["model", pool][last], "%", _asked(asked.get(pool), bench), "higher")
        for pool in (1, 2, 4)
    ]
    gaps = [100 * (found["model", pool][last] - found[_UNTRAINED, pool][last]) for pool in (1, 4)]
    return Part(
        title="Pooling",
        text=f"t = {_T}. Cells carry the layout of the digit, which alone is worth much on 8 x 8 pixels: with 16 cells "
        "even an untrained network does as well as raw pixels, so the spatial mean is the clean comparison.",
        columns=("network", "pool", *bench.layers),
        rows=rows,
        numeric=range(1, len(bench.layers) + 2),
        measures=(
            *measures,
            Measure(f"{last}, pool 1: model - untrained", gaps[0], "points", _asked(20.0, bench), "higher"),
            Measure(f"{last}, pool 4: model - untrained", gaps[1], "points", _asked(2.0, bench), "higher"),
        ),
    )


def few_labels(bench: Digits) -> Part:
    """Accuracy by the number of labels."""
    given: dict[str, tuple[Any, Any]] = {
        f"{which}, pool {pool}": bench.features(which, _T)["up1.0", pool] for which in bench.models for pool in (1, 4)
    }
    given["raw pixels"] = _raw(bench)
    found = {name: bench.few(*pair, bench.counts) for name, pair in given.items()}
    rows = [(name, *(f"{100 * value:.1f}" for value in scores)) for name, scores in found.items()]
    ten = min(3, len(bench.counts) - 1)
    gains = {
        name: 100 * (found["model, pool 4"][ten] - found[name][ten]) for name in ("raw pixels", f"{_UNTRAINED}, pool 4")
    }
    return Part(
        title="Few labels",
        text=f"Block up1.0, t = {_T}, ridge, means over 10 choices of the labelled digits. The model has seen labels "
        "in its training, which helps it here; the transfer below has none.",
        columns=("features", *(f"{count} of each" for count in bench.counts)),
        rows=rows,
        numeric=range(1, len(bench.counts) + 1),
        measures=[
            Measure(f"10 labels of each: model - {name}", gain, "points", _asked(5.0, bench), "higher")
            for name, gain in gains.items()
        ],
        figure=accuracy_curves(
            {name: (bench.counts, scores) for name, scores in found.items()}, "labels of each class", log=True
        ),
        caption="Held-out accuracy by labels of each class.",
    )


def heads(bench: Digits) -> Part:
    """Heads on one block, and fusions of blocks and times."""
    learned, judged = bench.learned, bench.judged
    rows, found = [], {}
    one = partial(FeatureEncoder, bench.model, seed=bench.seed)
    plans: list[tuple[str, Encoder, str]] = [
        *((f"up1.0, t {_T}, pool 2", one("up1.0", _T, pool=2), head) for head in ("ridge", "logistic", "knn", "mlp")),
        *((f"up1.0, t {_T}, map", one("up1.0", _T), head) for head in ("cnn", "attention")),
        ("down1.0, up1.0; t 0.05, 0.2; pool 1", one(["down1.0", "up1.0"], [0.05, 0.2], pool=1), "ridge"),
        ("down1.0, up1.0; t 0.05, 0.2; maps", one(["down1.0", "up1.0"], [0.05, 0.2]), "attention"),
    ]
    for name, encoder, head in plans:
        options = HeadOptions(head=head)  # type: ignore[arg-type]
        inputs, judging = (head_inputs(encoder, part["x"], options, part["index"]) for part in (learned, judged))
        found[name, head] = bench.right(inputs, judging, head)
        rows.append((name, head, f"{100 * found[name, head]:.2f}"))
    alone = bench.right(*bench.features("model", _T)["up1.0", 1])
    fused = found["down1.0, up1.0; t 0.05, 0.2; pool 1", "ridge"]
    return Part(
        title="Heads and fusion",
        text="One block under six heads, and two blocks at two times side by side (ridge on all numbers; attention "
        "over the cells of both blocks, one trunk for each time, as DifFormer). Near 99 % a standard error is two "
        "digits of 400, and closed forms are as good as networks: the paper's ten points between linear and attention "
        "need harder data.",
        columns=("features", "head", "accuracy, %"),
        rows=rows,
        numeric=(2,),
        measures=(Measure("fusion - up1.0 alone, ridge, pool 1", 100 * (fused - alone), "points", None, "higher"),),
    )


def alike(bench: Digits) -> Part:
    """CKA between blocks, with the untrained network, and between times."""
    x = bench.judged["x"]
    compare = partial(compare_layers, layers=bench.layers, seed=bench.seed)
    within = compare(bench.model, None, x, t=_T)
    across = _diagonal(compare(bench.model, bench.models[_UNTRAINED], x, t=_T))
    times = _diagonal(compare(bench.model, None, x, t=_T, other_t=0.5))
    at = {name: place for place, name in enumerate(within.first)}
    neighbours = float(within.values[at["mid"], at["up1.0"]])
    rows = [("model v untrained", *(f"{value:.2f}" for value in across.values()))]
    rows.append((f"t {_T} v t 0.5", *(f"{value:.2f}" for value in times.values())))
    encoder = FeatureEncoder(bench.model, ["mid", "up1.0"], _T, pool=4, seed=bench.seed)
    few = {name: value[:50] for name, value in encoder.maps(x, pooled=True).items()}
    biased, unbiased = (cka(few["mid"], few["up1.0"], unbiased=way) for way in (False, True))
    return Part(
        title="CKA",
        text=f"Linear CKA of spatial means on {len(x)} held-out digits. Training changes the late blocks most. With "
        f"1024 numbers of 50 digits the biased estimator says {biased:.2f} for mid and up1.0, the unbiased "
        f"{unbiased:.2f}.",
        columns=("same block", *across),
        rows=rows,
        numeric=range(1, len(across) + 1),
        measures=(
            Measure("mid v up1.0", neighbours, "CKA", better="higher"),
            Measure("down0.0 v up0.0", float(within.values[at["down0.0"], at["up0.0"]]), "CKA", better="higher"),
        ),
        figure=heat_map(within.values.numpy(), within.first, within.second),
        caption=f"CKA between the blocks of the model, t = {_T}.",
    )


def transferred(bench: Digits) -> Part:
    """A model without labels, trained on the digits 0 to 4, probed on 5 to 9."""
    parts = [(part["x"][part["y"] >= 5], part["y"][part["y"] >= 5]) for part in (bench.learned, bench.judged)]
    (x, y), (test_x, test_y) = parts
    given: dict[str, Any] = {
        "layers": [name for name in bench.layers if "." in name or name == "mid"],
        "times": (0.05,),
    }
    rows, found = [], {}
    small = half_model(bench)
    for pool in (1, 2):
        for name, held in (("trained on 0 to 4, no labels", small), ("built in: all digits, labels", bench.model)):
            which = transfer(
                held,
                {f"5 to 9, pool {pool}": Target(x, y, test_x, test_y)},
                heads=("ridge",),
                few_labels=2 if bench.quick else 10,
                repeats=2 if bench.quick else 10,
                seed=bench.seed,
                baselines=held is small,
                search=given | {"pools": (pool,)},
            )
            for row, shown in zip(which, cells(which), strict=True):
                label = name if row.encoder == "model" else row.encoder
                found[label, pool] = row
                rows.append((shown[0], label, *shown[2:]))
    own, plain = "trained on 0 to 4, no labels", "untrained network"
    gaps = {pool: found[own, pool].accuracy - found[plain, pool].accuracy for pool in (1, 2)}
    over_raw = found[own, 2].accuracy - found["raw items", 2].accuracy
    few = (found[own, 2].few or 0.0) - (found["raw items", 2].few or 0.0)
    return Part(
        title="Transfer without labels",
        text=f"A U-Net trained for {_STEPS} steps on the digits 0 to 4 without labels, probed on 5 to 9, which it has "
        "never seen; each network chooses its block by cross-validation. Digits are easy: with cells raw pixels are "
        "nearly as good, and few labels gain little. Spatial means show what was learned.",
        columns=COLUMNS,
        rows=rows,
        numeric=(4, 5),
        measures=(
            Measure("pool 1: trained on 0 to 4 - untrained", 100 * gaps[1], "points", _asked(5.0, bench), "higher"),
            Measure("pool 2: trained on 0 to 4 - untrained", 100 * gaps[2], "points", None, "higher"),
            Measure("pool 2: trained on 0 to 4 - raw pixels", 100 * over_raw, "points", None, "higher"),
            Measure("pool 2, 10 labels: trained on 0 to 4 - raw pixels", 100 * few, "points", None, "higher"),
        ),
    )


def half_model(bench: Digits) -> Model:
    """Return a model of the digits 0 to 4 of the training part, without labels."""
    half = bench.learned["x"][bench.learned["y"] < 5]
    steps = 10 if bench.quick else _STEPS
    keys = [
        f"train.steps={steps}",
        f"train.seed={bench.seed}",
        "train.preview_every=0",
        f"train.checkpoint_every={steps}",
    ]
    keys += ["data.layout=image", "data.holdout=0", f"train.warmup={min(100, steps // 2)}"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "half.npy"
        np.save(source, (half.float().numpy() + 1) / 2, allow_pickle=False)
        return train(str(source), "digits", out=Path(folder) / "run", overrides=keys).model


def _items(dataset: Any, most: int | None) -> dict[str, Tensor]:
    rows = torch.arange(len(dataset))[:most]
    batch = dataset.batch(rows)
    return {"x": batch["x"], "y": batch["cond"]["label"], "index": batch["index"]}


def _raw(bench: Digits) -> tuple[Tensor, Tensor]:
    return RawItems()(bench.learned["x"]), RawItems()(bench.judged["x"])


def _diagonal(comparison: Comparison) -> Mapping[str, float]:
    names = zip(comparison.first, comparison.values.diagonal().tolist(), strict=True)
    return {name.partition("@")[0]: value for name, value in names}


def _asked(value: float | None, bench: Digits) -> float | None:
    return None if bench.quick else value

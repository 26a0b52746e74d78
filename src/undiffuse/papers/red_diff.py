"""RED-diff: a variational view of inverse problems; its claims on digits with their exact prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from undiffuse.events import Listener, silent
from undiffuse.papers.restoring import Bench, digits_bench, table
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.report.restore_bench import spread_figure
from undiffuse.tasks.restore.bench import Trial
from undiffuse.tasks.restore.bench_results import BenchRow

_NOISE, _LOUD = 0.05, 0.4  # model units
_STEPS = 1000
_ZETAS = (0.05, 0.1, 0.3)  # per step of 1000: the tuning of DPS
_WEIGHTS = ("linear", "const", "sqrt", "square", "log", "clip", "power23")


def reproduce(*, quick: bool = False, seed: int = 0, listener: Listener = silent, keep: Keep = drop) -> Study:
    """Compute all tables; `quick` takes few images, samples and steps: to try it."""
    bench, steps = digits_bench(quick, seed), 20 if quick else _STEPS
    trial = bench.trial("inpaint50", _NOISE)
    plain = bench.row(trial, "red-diff", "red-diff", steps)
    parts = [
        ("against samplers", partial(comparison, bench, trial, plain, steps, quick)),
        ("order of the times", partial(orders, bench, trial, plain, steps, quick)),
        ("weights", partial(weights, bench, trial, plain, steps)),
        ("step sizes and endings", partial(endings, bench, trial, quick)),
        ("other operators", partial(operators, bench, steps, quick)),
        ("much noise", partial(loud, bench, steps, quick)),
        ("particles", partial(particles, bench, trial, quick)),
    ]
    settings = machine_settings(seed=seed, quick=quick, images=len(bench.clean), samples=bench.samples)
    return run_parts("red-diff", parts, settings, listener, keep)


def comparison(bench: Bench, trial: Trial, plain: BenchRow, steps: int, quick: bool) -> Part:
    """RED-diff beside samplers, each at its best settings."""
    few = 10 if quick else 100
    run = partial(bench.row, trial)
    tuned = [run(f"dps, zeta {zeta:g}", "dps", steps, scale=zeta * steps) for zeta in _ZETAS]
    short = [run(f"dps, zeta {zeta:g}", "dps", few, scale=zeta * few) for zeta in (0.5, 1.0, 1.5)]
    others = {name: run(name, name, few) for name in ("pigdm", "pigdm-step", "ddrm", "diffpir", "mmps")}
    hasty = run("red-diff, lr 0.5", "red-diff", few, lr=0.5)
    brief = run("red-diff, mean of the last 10 %", "red-diff", few, tail="average")
    rows = [bench.exact(trial), plain, brief, hasty, *tuned, *short, *others.values()]
    best = max((*tuned, *short), key=lambda row: row.psnr or 0.0)
    pigdm = max(_db(others["pigdm"]), _db(others["pigdm-step"]))
    gap = (rows[0].psnr_mean or 0.0) - _db(plain)
    return _part(
        "Against samplers, inpainting 50 %",
        f"Digits with half of the pixels missing and noise of {_NOISE}, exact prior. The DPS that counts is the best "
        f"of six settings, here {best.method} with {best.steps} steps. RED-diff wins by PSNR of one sample, with no "
        "derivative of the prior; its spread shows what that is worth: it seeks modes, and the energy distance to the "
        "exact posterior is smaller for samplers.",
        rows,
        [
            Measure("red-diff - best dps", _db(plain) - _db(best), "dB", _asked(0.5, quick), "higher"),
            Measure("red-diff - best pigdm", _db(plain) - pigdm, "dB", _asked(0.5, quick), "higher"),
            Measure("red-diff - ddrm", _db(plain) - _db(others["ddrm"]), "dB", _asked(0.5, quick), "higher"),
            Measure("exact posterior mean - red-diff", gap, "dB", _asked(2.0, quick)),
            Measure("spread / exact", plain.exact_spread, "", _asked(0.7, quick), note="mode seeking"),
            Measure("calls that were differentiated", float(plain.nfe_grad or 0), "", 0.0),
        ],
        picture=True,
    )


def orders(bench: Bench, trial: Trial, plain: BenchRow, steps: int, quick: bool) -> Part:
    """Noise to data, random, data to noise."""
    named = {"descending": plain}
    for order in ("random", "ascending"):
        named[order] = bench.row(trial, order, "red-diff", steps, order=order)
    first, second, third = (_db(row) for row in named.values())
    return _part(
        "Order of the times",
        "From noise to data large structures are settled first, and details last. The other orders leave the holes "
        "to chance: the regulariser works through the order, not through its minimum.",
        [replace(row, method=f"red-diff, {name}") for name, row in named.items()],
        [
            Measure("descending - random", first - second, "dB", _asked(2.0, quick), "higher"),
            Measure("random - ascending", second - third, "dB", _asked(0.0, quick), "higher"),
        ],
    )


def weights(bench: Bench, trial: Trial, plain: BenchRow, steps: int) -> Part:
    """All weights as functions of sigma / alpha, and lam."""
    rows = [replace(plain, method="linear")]
    rows += [bench.row(trial, name, "red-diff", steps, weight=name) for name in _WEIGHTS[1:]]
    rows += [bench.row(trial, f"linear, lam {lam:g}", "red-diff", steps, lam=lam) for lam in (0.05, 1.0, 4.0)]
    return _part(
        "Weights",
        "The more weight at large noise, the nearer to the mean of the posterior and the narrower: with a mixture for "
        "a prior, PSNR rewards that without bound, so 'square' is ahead here, which it is not on photographs. The "
        "paper's 'linear' is a constant weight of the residual in x_0.",
        rows,
        [],
        picture=True,
    )


def endings(bench: Bench, trial: Trial, quick: bool) -> Part:
    """What ends the jitter of the last iterations."""
    few, some = (10, 15) if quick else (100, 300)
    plans: list[tuple[int, float, str | None]] = [
        (some, 0.1, None),
        (some, 0.1, "decay"),
        (some, 0.1, "average"),
        (few, 0.25, None),
        (few, 0.25, "decay"),
        (few, 0.25, "average"),
        (few, 0.1, None),
        (few, 0.1, "average"),
    ]
    rows = []
    for steps, lr, tail in plans:
        rows.append(bench.row(trial, f"lr {lr:g}, {tail or 'as published'}", "red-diff", steps, lr=lr, tail=tail))
    gains = [_db(rows[i + 1]) - _db(rows[i]) for i in (0, 3)]
    return _part(
        "Step sizes and endings",
        "Adam moves every pixel by about lr in every iteration, to the last. Letting lr fall over the last 20 % ends "
        "that, and so does the mean of the last 10 % of the iterates.",
        rows,
        [
            Measure("decay - plain, many steps", gains[0], "dB", _asked(0.2, quick), "higher"),
            Measure("decay - plain, few steps and lr 0.25", gains[1], "dB", _asked(0.5, quick), "higher"),
        ],
    )


def operators(bench: Bench, steps: int, quick: bool) -> Part:
    """The same comparison on other operators."""
    few, rows, measures = 10 if quick else 100, [], []
    for word, what in (("sr2", "means of 2 x 2"), ("box4", "a hole of 4 x 4"), ("blur1", "a blur")):
        trial = bench.trial(word, _NOISE)
        found = bench.row(trial, f"red-diff on {what}", "red-diff", steps)
        others = [bench.row(trial, f"{name} on {what}", name, few) for name in ("dps", "pigdm", "ddrm")]
        exact = replace(bench.exact(trial), method=f"exact posterior of {what}")
        rows += [exact, found, *others]
        measures.append(Measure(f"red-diff - dps on {what}", _db(found) - _db(others[0]), "dB", better="higher"))
    return _part(
        "Other operators",
        "PSNR of one sample, with the settings of the first table; dps, pigdm and ddrm at their calibrated defaults.",
        rows,
        measures,
    )


def loud(bench: Bench, steps: int, quick: bool) -> Part:
    """Where it fails: noise of 0.4."""
    few, trial = 10 if quick else 100, bench.trial("inpaint50", _LOUD)
    rows = [bench.exact(trial)]
    rows += [bench.row(trial, f"red-diff, lam {lam:g}", "red-diff", steps, lam=lam) for lam in (0.25, 1.0, 4.0, 16.0)]
    rows += [bench.row(trial, name, name, few) for name in ("pigdm", "mmps", "diffpir")]
    lost = max(_db(row) for row in rows[-3:]) - _db(rows[1])
    return _part(
        "Much noise",
        f"With noise of {_LOUD} RED-diff fits it: the residual is a small part of the noise, and a larger lam blurs "
        "before it helps. Take a sampler that knows the noise above about 0.1.",
        rows,
        [
            Measure("residual / noise with lam 0.25", rows[1].residual_ratio, "", _asked(0.5, quick)),
            Measure("best sampler - red-diff", lost, "dB", _asked(0.0, quick), "higher"),
        ],
    )


def particles(bench: Bench, trial: Trial, quick: bool) -> Part:
    """Repulsion between the samples of an image."""
    steps = 15 if quick else 300
    rows = [
        bench.row(trial, f"repulsion {push:g}", "red-diff", steps, repulsion=push, tail="decay")
        for push in (0.0, 0.1, 0.25, 0.5)
    ]
    widened = [row.exact_spread or 0.0 for row in rows]
    return _part(
        "Particles",
        "A push between the samples of one image widens them, for less PSNR of each. It makes them differ; it does not "
        "make them a posterior, as the energy distance says. Above 0.5 it drives them apart without end.",
        rows,
        [Measure("spread with repulsion 0.5 / without", widened[3] / max(widened[0], 1e-9), "ratio", None, "higher")],
    )


def _part(title: str, text: str, rows: Sequence[BenchRow], measures: Sequence[Measure], picture: bool = False) -> Part:
    columns, cells, numeric = table(rows)
    shown: dict[str, Any] = {}
    if picture:
        shown = {"figure": spread_figure(rows), "caption": "Up is a better sample; on the line the spread is right."}
    return Part(title=title, text=text, columns=columns, rows=cells, numeric=numeric, measures=tuple(measures), **shown)


def _db(row: BenchRow) -> float:
    return row.psnr if row.psnr is not None else float("nan")


def _asked(value: float, quick: bool) -> float | None:
    return None if quick else value

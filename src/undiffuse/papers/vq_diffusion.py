r"""VQ-Diffusion and Improved VQ-Diffusion at small scale: what noise, strides, places and sharpening are worth
exactly, and a trained model of digits with its guidance, truncation and purity, beside the variety that they cost.

The exact tables are laws of all sequences, without sampling error, of joints p(x) prop. to exp(1.5 g).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.events import Listener, silent
from undiffuse.guidance.categorical import Sharpen
from undiffuse.papers.published_strides import PublishedStrides, called_levels, strided_law
from undiffuse.papers.sizes import PICTURES, of_size
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.papers.token_chains import small_joint, token_chain, total_variation
from undiffuse.papers.token_groups import Rule, grouped_law
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.keep import VQDiffusionKeep
from undiffuse.report.measures import Measure, machine_settings

_KINDS: dict[CategoricalKind, str] = {
    "absorbing": "mask only",
    "mask-replace": "mask .9 + replace .1",
    "uniform": "replace only",
}
_CALLS = (1, 2, 4, 8, 16, 32, 128)
_ERRORS: dict[CategoricalKind, tuple[float, ...]] = {
    "absorbing": (0.350, 0.192, 0.100, 0.0512, 0.0259, 0.0130, 0.0033),
    "mask-replace": (0.350, 0.194, 0.0965, 0.0473, 0.0233, 0.0115, 0.0029),
    "uniform": (0.350, 0.253, 0.146, 0.0747, 0.0369, 0.0181, 0.0044),
}
"""What our own first enumeration found, to the digits that it was written down in."""
_DIGITS = 6e-4  # half a unit of the third digit of the largest errors


def reproduce(
    *,
    quick: bool = False,
    seed: int = 0,
    listener: Listener = silent,
    keep: Keep = drop,
    data: str = "digits",
    device: str = "auto",
    large: bool = False,
) -> Study:
    """Compute all parts, and train on the labelled pictures `data`; `quick` for a few steps only: to try it."""
    from undiffuse.papers.vq_digits import Digits
    from undiffuse.papers.vq_speed import long_grids

    chosen = of_size(PICTURES, large)
    digits = Digits(quick=quick, seed=seed, data=data, device=device, size=chosen)
    parts: list[tuple[str, Callable[[], Part]]] = [
        ("noise", partial(noise, quick)),
        ("strides", strides),
        ("places and sharpening", partial(purity, quick)),
        ("a trained model: steps", digits.steps),
        ("a trained model: quality and variety", digits.trades),
        ("the autoregressive baseline", digits.baseline),
        ("speed with many tokens", partial(long_grids, quick, device=device, size=chosen)),
    ]
    settings = machine_settings(seed=seed, quick=quick, data=data, device=device, large=large)
    return run_parts("vq-diffusion", parts, settings, listener, keep)


def noise(quick: bool = False) -> Part:
    """The error of chains with the exact denoiser, by kind of noise and number of calls."""
    table, calls = small_joint(), _CALLS[:4] if quick else _CALLS
    found: dict[CategoricalKind, list[float]] = {}
    for kind in _KINDS:
        denoiser = JointDenoiser(table, CategoricalProcess(kind, 3))
        found[kind] = [total_variation(token_chain(denoiser, 3, n).law(), table) for n in calls]
    off = max(abs(a - b) for kind in _KINDS for a, b in zip(found[kind], _ERRORS[kind], strict=False))
    eight = calls.index(8)
    return Part(
        title="Noise",
        text="Total variation between what a chain of N calls samples and the joint of three tokens of three classes, "
        "propagated exactly with the exact denoiser. All fall as 1 / N. A tenth of replaced tokens makes the chain 4 "
        "to 12 percent better than masks alone from four calls on; replaced tokens alone are worst.",
        columns=("noise", *(f"N = {n}" for n in calls)),
        rows=[(name, *(f"{value:.4f}" for value in found[kind])) for kind, name in _KINDS.items()],
        numeric=range(1, len(calls) + 1),
        measures=[
            Measure("largest difference to the table of our first enumeration", off, "", asked=_DIGITS),
            Measure(
                "8 calls: error of masks alone / with a tenth replaced",
                found["absorbing"][eight] / found["mask-replace"][eight],
                asked=1.05,
                better="higher",
            ),
        ],
    )


def strides() -> Part:
    """How many masks are left to the last call, by the released sampler and by strides with the right kernel."""
    process, table = CategoricalProcess("mask-replace", 1000, VQDiffusionKeep()), small_joint()
    denoiser = JointDenoiser(table, CategoricalProcess("mask-replace", 3))
    rows, measures = [], []
    for skip, expected in ((1, 0.00007), (3, 0.24), (9, 0.66)):
        solver, calls = PublishedStrides(skip=skip), len(called_levels(100, skip))
        left = solver.left(process)
        fair = float(process.masked(1 / calls)) / float(process.masked(1.0))
        errors = [
            total_variation(law, table)
            for law in (strided_law(denoiser, solver), token_chain(denoiser, 3, calls).law())
        ]
        rows.append((f"{calls}", f"{left:.3%}", f"{fair:.1%}", *(f"{error:.4f}" for error in errors)))
        name = f"{calls} calls: share left to the last call, off {expected:g} by"
        measures.append(Measure(name, abs(left - expected), "", asked=5e-3))
        name = f"{calls} calls: error of the released code / right kernel"
        measures.append(Measure(name, errors[0] / errors[1], asked=1.5 if skip == 9 else None, better="higher"))
    return Part(
        title="Strides",
        text="The share of the tokens that are still masked at the last call, which draws them all at once and without "
        "regard to each other; and the total variation on the joint above with the paper's noise, exactly. The "
        "released code skips levels of its table but draws from the law of a single step, so most masks wait for the "
        "last call; a stride with the right kernel opens as many with every call.",
        columns=("calls", "left, released code", "left, right kernel", "error, released code", "error, right kernel"),
        rows=rows,
        numeric=range(5),
        measures=measures,
    )


def purity(quick: bool = False) -> Part:
    """Places and sharpening by purity with the exact denoiser."""
    triple = small_joint()
    cases: list[tuple[str, Tensor, tuple[int, ...], tuple[float, ...]]] = [
        ("3 tokens, 2 + 1 at once", triple, (2, 1), (0.1155, 0.1171, 0.1873))
    ]
    if not quick:
        six = _six_tokens()
        cases += [
            ("6 tokens, 2 + 2 + 2 at once", six, (2, 2, 2), (0.1014, 0.1016, 0.2153)),
            ("6 tokens, 3 + 3 at once", six, (3, 3), (0.1838, 0.1836, 0.2007)),
        ]
    rows, off = [], 0.0
    for name, table, groups, known in cases:
        denoiser = JointDenoiser(table, CategoricalProcess("absorbing", table.shape[0]))
        errors = [total_variation(grouped_law(denoiser, groups, rule), table) for rule in get_args(Rule)]
        off = max(off, *(abs(a - b) for a, b in zip(errors, known, strict=True)))
        rows += [
            (name, f"places {rule}", f"{error:.4f}", "", "") for rule, error in zip(get_args(Rule), errors, strict=True)
        ]
    denoiser = JointDenoiser(triple, CategoricalProcess("absorbing", 3))
    for strength, known_error in ((0.0, 0.0), (0.5, 0.139), (1.0, 0.244), (2.0, 0.386)):
        law = grouped_law(Sharpen(denoiser, strength), (1, 1, 1), "purity")
        error = total_variation(law, triple)
        off = max(off, abs(error - known_error))
        entropy, likelihood = -float(torch.xlogy(law, law).sum()), float((law * triple.log()).sum())
        rows.append(
            (
                "3 tokens, one at a time",
                f"sharpened {strength:g}",
                f"{error:.4f}",
                f"{entropy:.3f}",
                f"{likelihood:.3f}",
            )
        )
    return Part(
        title="Places and sharpening by purity",
        text="Exact laws again. With the right model the purest places first gain nothing over random ones, and the "
        "greedy choice is worse; sharpening is a temperature below 1: likelier samples, fewer kinds of them. Whether a "
        "trained, imperfect model gains is measured below.",
        columns=("sampler", "rule", "total variation", "entropy, nats", "mean log-likelihood, nats"),
        rows=rows,
        numeric=(2, 3, 4),
        measures=[Measure("largest difference to the tables of our first enumeration", off, "", asked=_DIGITS)],
    )


def _six_tokens() -> Tensor:
    logits = 1.5 * torch.randn((2,) * 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return logits.flatten().softmax(0).view(logits.shape)

"""Masked diffusion at small scale: exact tables of its samplers, the temperature of float32 draws, and trained texts.

The joints of the exact tables are p(x) prop. to exp(1.5 g) with normal g of seed 3; laws are propagated over all
sequences, so the tables have no sampling error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.events import Listener, silent
from undiffuse.papers.opening_laws import corrected_law, first_hitting_law
from undiffuse.papers.sizes import TEXTS, of_size
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.papers.token_chains import small_joint, token_chain, total_variation
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import FLOAT32_GUMBEL_BOUND, truncated_gumbel_probs
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.report.plots import Curve, error_by_evaluations

_ANCESTRAL = {  # of an enumeration made before this one
    1: 0.350,
    2: 0.192,
    4: 0.100,
    8: 0.0512,
    16: 0.0259,
    32: 0.0130,
    64: 0.0065,
    128: 0.0033,
}
_EXACT = 1e-12
_FLOAT64_BOUND = 36.74  # the largest Gumbel number of float64 uniforms
_DRAWS = {1000: (1000, 10_000, 100_000), 50_257: (100, 1000, 10_000)}  # vocabulary -> steps


def reproduce(
    *,
    quick: bool = False,
    seed: int = 0,
    listener: Listener = silent,
    keep: Keep = drop,
    data: str = "prose",
    device: str = "auto",
    large: bool = False,
) -> Study:
    """Compute all tables, and train models on a chain and on the text `data`; `quick` for a moment only: to try it."""
    from undiffuse.papers.masked_texts import Texts
    from undiffuse.papers.told_time import told_or_not

    texts = Texts(data, quick, seed, device, of_size(TEXTS, large))
    parts: list[tuple[str, Callable[[], Part]]] = [
        ("ancestral sampling", ancestral),
        ("budgets and orders", budgets),
        ("the temperature of float32 draws", temperatures),
        ("told the time or not", partial(told_or_not, quick, seed, device)),
        ("training", texts.training),
        ("first-hitting and ancestral sampling of a text", texts.samplers),
        ("several tokens per call", texts.together),
        ("honest figures of samples", texts.honest),
    ]
    with texts:
        settings = machine_settings(seed=seed, quick=quick, data=data, device=device, large=large)
        return run_parts("masked-diffusion", parts, settings, listener, keep)


def ancestral() -> Part:
    """Errors of ancestral chains on three tokens of three classes, and of first-hitting sampling."""
    denoiser = _exact(small_joint())
    errors = {n: total_variation(token_chain(denoiser, 3, n).law(), denoiser.table) for n in _ANCESTRAL}
    hitting = total_variation(first_hitting_law(denoiser), denoiser.table)
    return Part(
        title="Ancestral sampling",
        text="Total variation distance between the law of the samples and that of the data, with the exact posterior. "
        "Ancestral sampling draws all tokens of a step from one answer, an error of 1 / steps; first-hitting sampling "
        "opens them one by one and has none.",
        columns=("sampler", "calls", "distance", "expected"),
        rows=[
            *(("ancestral", str(n), f"{found:.4f}", f"{_ANCESTRAL[n]:.4f}") for n, found in errors.items()),
            ("first-hitting", "3", f"{hitting:.0e}", "4e-17"),
        ],
        numeric=(1, 2, 3),
        measures=[
            Measure("first-hitting, 3 calls: distance", hitting, "", asked=_EXACT),
            Measure(
                "ancestral: largest distance to those expected",
                max(abs(found - _ANCESTRAL[n]) for n, found in errors.items()),
                "",
                asked=1e-3,
            ),
            Measure("128 ancestral steps / 64, distance", errors[128] / errors[64], asked=0.51),
        ],
    )


def budgets() -> Part:
    """Errors of first-hitting sampling of six tokens of two classes with fewer calls, by order; and of corrections."""
    denoiser = _exact(binary_joint())
    calls, rows = range(1, 7), []
    laws: dict[tuple[int, str], list[Tensor]] = {}
    for order, space in ((1, "probabilities"), (2, "probabilities"), (2, "log"), (3, "probabilities"), (3, "log")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an order has no effect at six calls is part of the table
            found = [first_hitting_law(denoiser, n, order=order, space=space) for n in calls]
        laws[order, space] = found
        name = f"order {order}" + ("" if order == 1 else f", {space}")
        rows.append((name, *(f"{total_variation(law, denoiser.table):.4f}" for law in found)))
    errors = {key: [total_variation(law, denoiser.table) for law in found] for key, found in laws.items()}
    law, mended = laws[1, "probabilities"][2], []
    for _ in range(3):
        law = corrected_law(law, denoiser)
        mended.append(total_variation(law, denoiser.table))
    rows.append(("3 calls and corrections", "", "", "", *(f"{error:.4f}" for error in mended)))
    plain, second = errors[1, "probabilities"], errors[2, "probabilities"]
    return Part(
        title="Budgets and orders",
        text="Total variation distance with fewer calls than tokens. Order 2 extrapolates the answers to each opening; "
        "a correction masks one place again and draws it anew, for one call each (Gibbs sampling).",
        columns=("sampler", *(f"{n} calls" if n > 1 else "1 call" for n in calls)),
        rows=rows,
        numeric=range(1, 7),
        measures=[
            Measure("2 calls: order 2 / order 1", second[1] / plain[1], asked=0.65),
            Measure("3 calls: order 2 / order 1", second[2] / plain[2], asked=0.55),
            Measure("6 calls, any order: distance", max(found[5] for found in errors.values()), "", asked=_EXACT),
        ],
        figure=error_by_evaluations(
            [
                Curve("order 1", [*calls][:5], plain[:5]),
                Curve("order 2", [*calls][:5], second[:5]),
                Curve("3 calls, then corrections", [3, 4, 5, 6], [plain[2], *mended]),
            ]
        ),
        caption="Distance to the law of the data by calls.",
    )


def temperatures() -> Part:
    """What float32 Gumbel draws make of a vocabulary with Zipf's frequencies in the first of N steps."""
    rows, entropies = [], {}
    for classes, counts in _DRAWS.items():
        p = torch.arange(1, classes + 1, dtype=torch.float64).reciprocal()
        p /= p.sum()
        for steps in counts:
            drawn, opened = first_step(p, steps, FLOAT32_GUMBEL_BOUND)
            fine, _ = first_step(p, steps, _FLOAT64_BOUND)
            entropies[classes, steps] = entropy(drawn)
            figures = (entropy(p), entropy(fine), entropy(drawn))
            temperature = f"{fitted_temperature(p, entropy(drawn)):.2f}"
            rows.append((str(classes), str(steps), *map("{:.3f}".format, figures), f"{opened:.1%}", temperature))
    wanted = dict(zip(entropies, (5.035, 4.166, 2.704, 6.673, 5.320, 3.907), strict=True))
    return Part(
        title="The temperature of float32 draws",
        text="The usual arg-max of log p plus Gumbel noise, in float32, of a token beside a mask state of 1 - 1 / N: "
        "uniforms on a grid of 2^-24 give no Gumbel number above 16.6, so rare tokens are drawn too rarely, more so "
        "the more steps are taken. Closed form, first step, frequencies of Zipf's law; the temperature is the one that "
        "gives the same entropy. The library draws in two stages in float64 and has no such error.",
        columns=("vocabulary", "steps N", "entropy, nats", "float64", "float32", "tokens opened", "temperature"),
        rows=rows,
        numeric=range(7),
        measures=[
            Measure(
                "entropies: largest distance to those expected",
                max(abs(found - wanted[key]) for key, found in entropies.items()),
                "nats",
                asked=2e-3,
            )
        ],
    )


def first_step(p: Tensor, steps: int, bound: float) -> tuple[Tensor, float]:
    """Return what the first of N equal steps draws in place of `p` (K,), and the share of the right openings.

    Args:
        p: Law of a token that opens.
        steps: N; a token opens with probability 1 / N.
        bound: The largest Gumbel number.
    """
    law = truncated_gumbel_probs(torch.cat((p / steps, p.new_tensor([1 - 1 / steps]))), bound)[:-1]
    return law / law.sum(), float(law.sum()) * steps


def entropy(p: Tensor) -> float:
    """Return the entropy of a law in nats."""
    return float(-torch.xlogy(p, p).sum())


def fitted_temperature(p: Tensor, wanted: float) -> float:
    """Return the temperature at which `p` has an entropy, to 1e-6."""
    low, high = 0.01, 1.5
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if entropy((p.log() / middle).softmax(0)) < wanted else (low, middle)
    return low


def binary_joint() -> Tensor:
    """Return the joint of six tokens of two classes: entropy 3.6096 nats."""
    normal = torch.randn((2,) * 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (1.5 * normal).flatten().softmax(0).view((2,) * 6)


def _exact(table: Tensor) -> JointDenoiser:
    return JointDenoiser(table, CategoricalProcess("absorbing", table.shape[0]))

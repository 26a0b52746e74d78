"""VQ-DDM: what its answers mean, how its completion is biased, and both on digits.

The first two parts are exact: laws of an enumerated joint of three tokens, propagated as matrices, so that nothing in
them is a sampling error. Distances are total variations.

Source: Hu et al. 2021, arXiv:2112.01799. The joint, the patterns and the figures asked for are those of our own small
experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.evidence import EvidenceFree, remove_evidence
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.events import Listener, silent
from undiffuse.networks.embedded import Embedded
from undiffuse.papers.sizes import CODEBOOKS, COMPLETIONS, CROPS, of_size
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.papers.token_chains import (
    Method,
    conditional,
    marginal_step,
    opening_law,
    plug_in_step,
    small_joint,
    token_chain,
    total_variation,
)
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.times import Time
from undiffuse.report.measures import Measure, machine_settings

_PATTERNS: tuple[dict[int, int], ...] = ({0: 0}, {1: 1}, {2: 2}, {0: 0, 1: 1}, {0: 2, 2: 0}, {1: 0, 2: 2})
_STEPS = 64
_CALLS = (8, 32, 128)
_KINDS: dict[CategoricalKind, str] = {"uniform": "uniform", "mask-replace": "mask-replace .1", "absorbing": "absorbing"}
_MEANING: dict[tuple[CategoricalKind, str], tuple[float, ...]] = {
    ("uniform", "posterior, marginal step"): (0.0747, 0.0181, 0.0044),
    ("mask-replace", "posterior, marginal step"): (0.0473, 0.0115, 0.0029),
}
_FLOORS: dict[CategoricalKind, float] = {"uniform": 0.262, "mask-replace": 0.0777}
_BIAS: dict[tuple[CategoricalKind, int], tuple[float, ...]] = {
    ("uniform", 1): (0.140, 0.248, 0.135, 0.200, 0.221, 0.100),
    ("uniform", 4): (0.068, 0.122, 0.066, 0.120, 0.112, 0.056),
    ("uniform", 16): (0.032, 0.067, 0.036, 0.067, 0.054, 0.035),
    ("absorbing", 1): (0.143, 0.226, 0.140, 0.173, 0.212, 0.099),
    ("absorbing", 4): (0.065, 0.101, 0.061, 0.080, 0.093, 0.045),
    ("absorbing", 16): (0.027, 0.045, 0.024, 0.031, 0.035, 0.018),
}
_DIGIT = 5.1e-4  # half of the last digit of the table, and rounding


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
    """Compute all parts, the codebooks on crops of the pictures `data` unless these are the digits.

    `quick` takes few steps and trains for moments: to try it.
    """
    from undiffuse.papers.vq_ddm_digits import completed_digits

    completion = of_size(COMPLETIONS, large)
    if quick:
        completion = replace(completion, codec_steps=2, steps=2, items=10, completions=1, calls=2, epochs=1)

    parts: list[tuple[str, Callable[[], Part]]] = [
        ("what answers mean", partial(meanings, quick)),
        ("bias of completion", partial(completions, quick)),
        ("codebooks", partial(codebooks, quick, seed, data, device, large)),
        ("completed digits", partial(completed_digits, completion, seed, listener, device)),
    ]
    settings = machine_settings(seed=seed, quick=quick, data=data, device=device, large=large)
    return run_parts("vq-ddm", parts, settings, listener, keep)


def codebooks(quick: bool, seed: int, data: str, device: str, large: bool) -> Part:
    """Rebuilt codebooks and those that are trained on, of digits or of crops of other pictures."""
    from undiffuse.data import DataOptions, open_data
    from undiffuse.papers.vq_codebook import codebook_part, codebook_study, crops

    given = data != "digits"
    asked = of_size(CROPS if given else CODEBOOKS, large)
    options = DataOptions(source=data, limit=50 if quick else asked.items) if given else DataOptions(source=data)
    opened = crops(open_data(data, options), asked.side, seed) if given else open_data(data, options)
    if quick:
        asked = replace(asked, codec=replace(asked.codec, steps=2, codes=32), more=2, rebuilt=(32,), drawn=(32,))
    stages = codebook_study(
        seed=seed,
        options=asked.codec,
        more=asked.more,
        sizes=asked.rebuilt,
        drawn=asked.drawn,
        data=opened,
        device=device,
    )
    return codebook_part(stages)


def meanings(quick: bool = False) -> Part:
    """Answers that mean p(x_0 | x_t), and answers without a token's own evidence, in both steps."""
    calls = _CALLS[:1] if quick else _CALLS
    rows, measures = [], []
    for kind, name in _KINDS.items():
        exact = JointDenoiser(small_joint(), CategoricalProcess(kind, 3))
        without = WithoutEvidence(exact)
        ways: dict[str, tuple[Denoiser, object]] = {
            "posterior, marginal step": (exact, marginal_step),
            "posterior, plug-in step": (exact, plug_in_step),
            "without evidence, plug-in step": (without, plug_in_step),
            "without evidence, converted, marginal step": (EvidenceFree(without), marginal_step),
        }
        found = {way: [_distance(*of, steps) for steps in calls] for way, of in ways.items()}
        rows += [(name, way, *(f"{value:.4f}" for value in values)) for way, values in found.items()]
        for way, values in found.items():
            if expected := _MEANING.get((kind, way)):
                off = max(abs(value - asked) for value, asked in zip(values, expected, strict=False))
                measures.append(Measure(f"{name}: {way}, off our table by", off, "", 5.1e-5))
        if kind in _FLOORS and not quick:
            off = abs(found["posterior, plug-in step"][-1] - _FLOORS[kind])
            measures.append(Measure(f"{name}: posterior in the plug-in step, off our table by", off, "", _DIGIT))
    return Part(
        title="What answers mean",
        text="Total variation between the chain's law and the joint, by number of calls. The plug-in step of the "
        "paper's code is right for answers that leave out what a token says about itself; fed the posterior it counts "
        "that twice and does not converge. The conversion makes the two the same. Masks carry no evidence, so there "
        "all four agree.",
        columns=("noise", "answer and step", *(f"N = {count}" for count in calls)),
        rows=rows,
        numeric=range(2, 2 + len(calls)),
        measures=measures,
    )


def completions(quick: bool = False) -> Part:
    """Total variation to the exact conditional, for six patterns of known tokens."""
    steps = 8 if quick else _STEPS
    rows: list[tuple[str, ...]] = []
    measures: list[Measure] = []
    for kind, name in _KINDS.items():
        denoiser = JointDenoiser(small_joint(), CategoricalProcess(kind, 3))
        chains = [token_chain(denoiser, 3, steps, pattern) for pattern in _PATTERNS]
        for passes in (1, 4, 8, 16):
            values = _from_conditional(denoiser, [chain.law(passes) for chain in chains])
            rows.append((name, f"replacement, each step {passes} times", *_cells(values)))
            expected = _BIAS.get((kind, passes))
            if expected and not quick:
                off = max(abs(value - asked) for value, asked in zip(values, expected, strict=True))
                measures.append(Measure(f"{name}: {passes} times, off our table by", off, "", _DIGIT))
        ways: dict[str, Method] = {"given at the shared time": "clamp", "given at time 0": "clamp at 0"}
        for way, method in ways.items():
            laws = [token_chain(denoiser, 3, steps, pattern, method).law() for pattern in _PATTERNS]
            rows.append((name, way, *_cells(_from_conditional(denoiser, laws))))
        if kind == "absorbing":
            values = _from_conditional(denoiser, [opening_law(denoiser, pattern) for pattern in _PATTERNS])
            rows.append((name, "given, first-hitting", *_cells(values)))
            measures.append(Measure("given tokens with first-hitting: largest distance", max(values), "", 1e-12))
    measures += [] if quick else _independent_of_steps()
    return Part(
        title="Bias of completion",
        text=f"Total variation to the exact conditional, {steps} steps. Replacement draws known tokens from "
        "q(x_t | x_0) before each step; taking each step several times, with q(x_t | x_s) in between, is RePaint. "
        "Given tokens stay as they are. With one time for all tokens that is exact for absorbing noise alone; where "
        "the denoiser knows that the time of given tokens is 0, it is for all, up to the error of the chain.",
        columns=("noise", "known tokens", *map(_pattern_name, _PATTERNS)),
        rows=rows,
        numeric=range(2, 2 + len(_PATTERNS)),
        measures=measures,
    )


class WithoutEvidence(Denoiser):
    """The optimum of the plug-in bound: an exact posterior without each token's evidence about itself."""

    def __init__(self, exact: JointDenoiser) -> None:
        super().__init__()
        self.exact, self.process = exact, exact.process

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        """Return log r."""
        return CategoricalPosterior(remove_evidence(self.exact.process, self.exact(x, t, cond).logits, x, t))


def _independent_of_steps() -> list[Measure]:
    """The bias of replacement at 16, 64 and 256 steps."""
    measures = []
    for kind, expected in {"uniform": (0.148, 0.140, 0.138), "absorbing": (0.147, 0.143, 0.142)}.items():
        denoiser = JointDenoiser(small_joint(), CategoricalProcess(kind, 3))  # type: ignore[arg-type]
        truth = conditional(denoiser.table, {0: 0})
        values = [total_variation(token_chain(denoiser, 3, steps, {0: 0}).law(), truth) for steps in (16, 64, 256)]
        off = max(abs(value - asked) for value, asked in zip(values, expected, strict=True))
        measures.append(Measure(f"{kind}: once at 16, 64, 256 steps, off our table by", off, "", _DIGIT))
    return measures


def _distance(denoiser: Denoiser, step_law: object, steps: int) -> float:
    law = token_chain(denoiser, 3, steps, step_law=step_law).law()  # type: ignore[arg-type]
    return total_variation(law, small_joint())


def _from_conditional(denoiser: JointDenoiser, laws: Sequence[Tensor]) -> list[float]:
    return [
        total_variation(law, conditional(denoiser.table, pattern)) for law, pattern in zip(laws, _PATTERNS, strict=True)
    ]


def _cells(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" if value >= 5e-4 else f"{value:.0e}" for value in values]


def _pattern_name(pattern: dict[int, int]) -> str:
    return " ".join(f"{position}:{token}" for position, token in pattern.items())

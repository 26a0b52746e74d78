"""Speed at the paper's size, 32 x 32 tokens, with networks that were never trained: quality means nothing here."""

from __future__ import annotations

import time

from undiffuse.denoisers.causal import token_denoiser
from undiffuse.models import Model
from undiffuse.networks import TransformerOptions, build_network
from undiffuse.papers.sizes import PICTURES, PictureSize
from undiffuse.papers.study import Part
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.report.measures import Measure
from undiffuse.spec import DataSpec
from undiffuse.training.devices import choose_device

_CODES = 512


def long_grids(quick: bool = False, *, device: str = "cpu", size: PictureSize = PICTURES["small"]) -> Part:
    """Seconds of one batch, by the autoregressive baseline and by VQ-Diffusion in several numbers of calls."""
    device = str(choose_device(device))
    side, width, depth = (8, 32, 2) if quick else (size.side, size.width, size.depth)
    counts = (2,) if quick else (10, 25)
    causal, diffusion = (_model(side, width, depth, causal).to(device) for causal in (True, False))
    rows, measures = [], []
    for batch in (1, 8):
        baseline = _seconds(causal, batch)
        rows.append((f"{batch}", "autoregressive", f"{side * side}", f"{baseline:.2f}", ""))
        for steps in counts:
            taken = _seconds(diffusion, batch, solver="ancestral", steps=steps)
            rows.append((f"{batch}", "VQ-Diffusion", f"{steps}", f"{taken:.2f}", f"{baseline / taken:.2f}"))
            measures.append(
                Measure(f"batch of {batch}: seconds, autoregressive / {steps} calls", baseline / taken, better="higher")
            )
    return Part(
        title=f"Speed with {side * side} tokens",
        text=f"Untrained transformers of {depth} blocks and width {width}, {side} x {side} tokens of {_CODES} codes, "
        f"on {device}. A call of VQ-Diffusion computes all tokens, one of the baseline a single token, with the keys "
        "and values of the others remembered. So the ratio is that of latencies where a device idles during small "
        "calls, as GPUs do (the paper: 15 times), and less where arithmetic takes the time, as on CPUs and in large "
        "batches.",
        columns=("batch", "model", "calls", "seconds", "times as fast"),
        rows=rows,
        numeric=(0, 2, 3, 4),
        measures=measures,
    )


def _model(side: int, width: int, depth: int, causal: bool) -> Model:
    spec = DataSpec(kind="tokens", shape=(side * side,), grid=(side, side), vocabulary=tuple(map(str, range(_CODES))))
    process = CategoricalProcess("absorbing" if causal else "mask-replace", _CODES)
    options = TransformerOptions(
        width=width, depth=depth, heads=max(1, width // 32), time_dependent=not causal, causal=causal, neighbours=0
    )
    network = build_network(options, spec, states=process.states)
    options_of = {} if causal else {"time_dependent": True}
    return Model(token_denoiser(network, process, spec=spec, **options_of), spec)


def _seconds(model: Model, batch: int, **asked: object) -> float:
    began = time.perf_counter()
    model.sample(batch, **asked).cpu()  # type: ignore[arg-type]
    return time.perf_counter() - began

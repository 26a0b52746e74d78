"""Pictures of discrete models: laws of tokens, openings, completion, codebooks."""

from __future__ import annotations

from typing import Any

import torch
from drawing.canvas import COLOURS, Drawn, ink_on_paper, plot_figure, stacked_panels
from torch import Tensor

import undiffuse as ud
from undiffuse.data import open_data, split
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.guidance.categorical import Sharpen, Truncate
from undiffuse.guidance.temperature import Temperature
from undiffuse.papers.masked_diffusion import binary_joint, entropy, first_step
from undiffuse.papers.opening_laws import corrected_law, first_hitting_law
from undiffuse.papers.published_strides import PublishedStrides, strided_law
from undiffuse.papers.token_chains import conditional, small_joint, token_chain, total_variation
from undiffuse.papers.token_groups import grouped_law
from undiffuse.papers.vq_codebook import base_codec
from undiffuse.process.draw import FLOAT32_GUMBEL_BOUND


def draw_token_laws() -> Drawn:
    """Exact errors of token chains by calls, and what truncation, purity and temperature cost in variety."""
    table = small_joint()
    figure, (errors, trades) = plot_figure(2, width=7.2, height=2.9)
    counts, numbers = (2, 4, 6, 8, 11, 16, 26, 51), {}
    kinds = {"absorbing": "masks", "mask-replace": "masks, 0.1 replaced", "uniform": "replaced only"}
    for (kind, label), colour in zip(kinds.items(), ("blue", "green", "amber"), strict=True):
        denoiser = JointDenoiser(table, ud.CategoricalProcess(kind, 3))
        values = [total_variation(token_chain(denoiser, 3, n).law(), table) for n in counts]
        errors.loglog(counts, values, "o-", color=COLOURS[colour], markersize=3, linewidth=1.3, label=label)
        numbers[label] = values
        if kind == "mask-replace":
            solvers = [PublishedStrides(skip=skip) for skip in (9, 3, 1)]
            released = [total_variation(strided_law(denoiser, solver), table) for solver in solvers]
    dashed = {"color": COLOURS["red"], "markersize": 4, "linewidth": 1.3, "label": "released code"}
    errors.loglog((11, 26, 51), released, "s--", **dashed)
    errors.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    errors.minorticks_off()
    errors.set_xlabel("calls")
    errors.set_ylabel("total variation")
    errors.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    base = JointDenoiser(table, ud.CategoricalProcess("absorbing", 3))
    rules = {
        "truncation": [Truncate(base, rate) for rate in (1.0, 0.95, 0.9, 0.86, 0.8, 0.7, 0.5)],
        "purity": [Sharpen(base, strength) for strength in (0.0, 0.5, 1.0, 2.0, 4.0)],
        "temperature": [Temperature(base, value) for value in (1.0, 0.8, 0.6, 0.4, 0.3)],
    }
    for (label, wrapped), colour in zip(rules.items(), ("blue", "green", "amber"), strict=True):
        laws = [grouped_law(denoiser, (1, 1, 1), "purity") for denoiser in wrapped]
        points = [(-float(torch.xlogy(p, p).sum()), float((p * table.log()).sum())) for p in laws]
        trades.plot(*zip(*points, strict=True), "o-", color=COLOURS[colour], markersize=3, linewidth=1.3, label=label)
        numbers[label] = points
    trades.set_xlabel("entropy of the samples, nats: variety")
    trades.set_ylabel("their mean true log p: precision")
    trades.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    return Drawn(figure, {**numbers, "released code": released})


def draw_openings() -> Drawn:
    """Exact errors of six tokens by calls and order, and what float32 draws make of a vocabulary."""
    denoiser = JointDenoiser(binary_joint(), ud.CategoricalProcess("absorbing", 2))
    figure, (errors, entropies) = plot_figure(2, width=7.2, height=2.9)
    calls, numbers = range(1, 6), {}
    for order, colour in ((1, "blue"), (2, "green")):
        found = [total_variation(first_hitting_law(denoiser, n, order=order), denoiser.table) for n in calls]
        errors.semilogy(calls, found, "o-", color=COLOURS[colour], markersize=3, linewidth=1.3, label=f"order {order}")
        numbers[f"order {order}"] = found
    law = first_hitting_law(denoiser, 3)
    mended = [total_variation(law, denoiser.table)]
    for _ in range(3):
        law = corrected_law(law, denoiser)
        mended.append(total_variation(law, denoiser.table))
    dashed = {"color": COLOURS["red"], "markersize": 3, "linewidth": 1.3, "label": "3 calls, then corrections"}
    errors.semilogy(range(3, 7), mended, "s--", **dashed)
    errors.set_xlabel("calls for six tokens; six are exact")
    errors.set_ylabel("total variation")
    errors.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    counts = [10**power for power in range(1, 7)]
    for classes, colour in ((1000, "blue"), (50_257, "amber")):
        p = torch.arange(1, classes + 1, dtype=torch.float64).reciprocal()
        p /= p.sum()
        found = [entropy(first_step(p, n, FLOAT32_GUMBEL_BOUND)[0]) for n in counts]
        entropies.semilogx(counts, found, "o-", color=COLOURS[colour], markersize=3, linewidth=1.3)
        entropies.axhline(entropy(p), color=COLOURS[colour], linewidth=0.8, linestyle=":")
        below = {"xytext": (0, -10), "textcoords": "offset points", "fontsize": 7, "ha": "right"}
        entropies.annotate(f"{classes} tokens", (counts[-1], entropy(p)), **below)
        numbers[f"{classes} tokens"] = found
    entropies.set_xlabel("steps of ancestral sampling")
    entropies.set_ylabel("entropy of a drawn token, nats")
    return Drawn(figure, {**numbers, "corrections": mended})


def draw_completion() -> Drawn:
    """Distance of completions to the exact conditional, by passes of replacement, and with given tokens."""
    table, passes = small_joint(), (1, 2, 4, 8, 16, 32)
    patterns: list[dict[int, int]] = [{0: 0}, {1: 1}, {2: 2}, {0: 0, 1: 1}, {0: 2, 2: 0}, {1: 0, 2: 2}]
    figure, (axes,) = plot_figure(1, width=5.6, height=2.9)
    kinds = {"uniform": "replaced only", "absorbing": "masks", "mask-replace": "masks, 0.1 replaced"}
    numbers: dict[str, Any] = {}
    for (kind, label), colour in zip(kinds.items(), ("amber", "blue", "green"), strict=True):
        denoiser = JointDenoiser(table, ud.CategoricalProcess(kind, 3))
        truths = [conditional(table, pattern) for pattern in patterns]
        chains = [token_chain(denoiser, 3, 64, pattern) for pattern in patterns]
        given = [token_chain(denoiser, 3, 64, pattern, "clamp").law() for pattern in patterns]

        def distance(laws: list[Tensor], truths: list[Tensor] = truths) -> float:
            return sum(map(total_variation, laws, truths)) / len(truths)

        values = [distance([chain.law(count) for chain in chains]) for count in passes]
        style = {"color": COLOURS[colour], "linewidth": 2.8 if kind == "absorbing" else 1.3}  # two lines nearly meet
        axes.loglog(passes, values, "o-", markersize=3, label=label, **style)
        axes.axhline(distance(given), linestyle="--", **style)
        numbers[label] = {"replacement": values, "given": distance(given)}
    axes.set_xticks(passes, list(map(str, passes)))
    axes.minorticks_off()
    axes.set_xlabel("times that each step is taken")
    axes.set_ylabel("total variation")
    axes.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    return Drawn(figure, numbers)


def draw_codebook() -> Drawn:
    """Held-out digits, and their reconstructions by a codec as it is and with a codebook that was rebuilt (minutes)."""
    training, held_out = split(open_data("digits"))
    old = base_codec(training)
    made = ud.refit_codebook(old, training, held_out=held_out, train_steps=0)
    x = held_out.batch(torch.arange(12))["x"]
    panels, titles = [ink_on_paper(x, len(x), (-1.0, 1.0))], ["digits that were held out"]
    for title, codec, health in (("as trained", old, made.before), ("rebuilt", made.codec, made.rebuilt)):
        with torch.no_grad():
            panels.append(ink_on_paper(codec.decode(codec.encode(x)), len(x), (-1.0, 1.0)))
        titles.append(f"{title}: {health.usage:.0%} of {health.codes} codes used, squared error {health.error:.4f}")
    return Drawn(
        stacked_panels(panels, titles, []), {"before": made.before.to_json(), "rebuilt": made.rebuilt.to_json()}
    )

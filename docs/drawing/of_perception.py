"""Pictures of what models perceive: classes, features, correspondence."""

from __future__ import annotations

import numpy as np
import torch
from drawing.canvas import COLOURS, GREY, Drawn, ink_on_paper, paste, pixel_figure, plot_figure, write

import undiffuse as ud
from undiffuse.analysis.compositionality.two_digits import SPEC, Scene, draw
from undiffuse.data import open_data, split
from undiffuse.tasks.classify import error_table
from undiffuse.tasks.features import RawItems

_ITEM = 77  # a held-out nine that looks much like a seven


def draw_classes(model: ud.Model) -> Drawn:
    """Errors of all classes beside the true one, time by time: with the same noise, and with noise of their own."""
    held_out = split(open_data("digits"))[1].batch(torch.tensor([_ITEM]))
    x, truth = model.spec.from_model(held_out["x"]), int(held_out["cond"]["label"][0])
    table = error_table(model, x, times=40)
    own = [error_table(model, x, [label], times=40, seed=1000 * (label + 1)).errors[0, 0] for label in range(10)]
    figure, panels = plot_figure(2, width=6.6, height=2.6)
    numbers = {}
    named = {truth: "green", 7: "red", 4: "blue"}
    parts = {"the same noise for all": table.errors[0], "noise of its own for each": torch.stack(own)}
    for axes, (title, errors) in zip(panels, parts.items(), strict=True):
        apart = (errors - errors[truth]) * table.dims
        for label in sorted(range(10), key=lambda label: label in named):
            style = {"color": COLOURS[named[label]], "label": str(label)} if label in named else {"color": GREY}
            axes.plot(table.times, apart[label], linewidth=1.4 if label in named else 0.7, **style)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("time")
        axes.set_xlim(0.35, 1.0)
        axes.set_ylim(-3, 10)
        numbers[title] = {str(label): round(float(apart[label].mean()), 2) for label in range(10)}
    panels[0].set_ylabel(f"error above that of {truth}")
    panels[0].legend(frameon=False, fontsize=8, labelcolor="linecolor")
    return Drawn(figure, numbers)


_SCENES = (Scene(3, 5), Scene(8, 2, 0, 1), Scene(7, 7), Scene(1, 4))
_ASKED = (
    ("order", "3 left of 5", "5 left of 3"),
    ("attribute", "bright 8, dark 2", "dark 8, bright 2"),
    ("counting", "7 twice", "7 once"),
    ("object", "1 and 4", "1 and 9"),
)


def draw_two_digits() -> Drawn:
    """Pictures of two digits under the right description and a wrong one."""
    assert SPEC.range is not None
    pictures = draw(_SCENES, seed=3, held_out=True)
    width, gap, pixel = 16 * 8, 36, 8
    figure = pixel_figure(len(_SCENES) * (width + gap) + gap, 8 * 8 + 74)
    for number, (picture, (task, right, wrong)) in enumerate(zip(pictures, _ASKED, strict=True)):
        x = gap + number * (width + gap)
        paste(figure, ink_on_paper(picture[None], 1, SPEC.range, pixel), x - 4, 44)
        for text, y in ((task, 8 * 8 + 58), (right, 26), (f"or {wrong}?", 10)):
            write(figure, text, x + width / 2, y, va="center", ha="center")
    return Drawn(figure, {"shown": [text for _, text, _ in _ASKED]})


def draw_matched(model: ud.Model) -> Drawn:
    """Key points of digits of one class by fused features, and points of a photograph that was turned and noised."""
    from undiffuse.papers.digit_points import digit_pairs
    from undiffuse.papers.semantic_correspondence import photograph_pair
    from undiffuse.tasks.match import draw_matches

    pairs, side, gap = digit_pairs(40, seed=0), 120, 24
    drawn: list[tuple[str, np.ndarray]] = []
    for number in (90, 210, 330):
        src, dst = (pairs.pictures[int(ends[number])] for ends in (pairs.src, pairs.dst))
        found = ud.match(model, src, pairs.points[number], dst, features=("diffusion", "patch"), alpha=0.3, draws=4)
        drawn.append(("", draw_matches(src, dst, found, side=side)))
    numbers: dict[str, float] = {}
    for title, noise_std, features in (
        ("turned by 15 degrees: raw patches", 0.0, ("patch",)),
        ("and noised: raw patches and position", 0.05, ("patch", "position")),
    ):
        photo, target, points, truth = photograph_pair(noise_std, step=8)
        found = ud.match(None, photo, points, target, mutual=True, features=features)
        near = (found.positions - truth).norm(dim=1) < 3
        numbers[title] = round(float(near[found.kept].double().mean()), 3)
        drawn.append((title, draw_matches(photo, target, found, side=192)))
    width = 2 * drawn[-1][1].shape[1] + gap
    figure = pixel_figure(width, side + 192 + 3 * gap)
    between = (width - 3 * drawn[0][1].shape[1]) // 2
    for place, (title, pixels) in enumerate(drawn):
        column, low = (place % 3, 192 + 2 * gap) if place < 3 else (place - 3, 0)
        x = column * (pixels.shape[1] + (between if place < 3 else gap))
        figure.figimage(pixels, x, low, origin="upper")
        write(figure, title, x, 192 + 6)
    write(figure, "two digits of one class: diffusion features and raw patches", 0, side + 192 + 2 * gap + 6)
    return Drawn(figure, numbers)


def draw_features() -> Drawn:
    """Probes on the blocks of the built-in model, beside the network before training and raw pixels; few labels."""
    from undiffuse.papers.diffusion_features import Digits

    bench = Digits(seed=0, quick=False)
    raw = [RawItems()(part["x"]) for part in (bench.learned, bench.judged)]
    figure, (blocks, few) = plot_figure(2, width=7.2, height=2.9)
    numbers: dict[str, object] = {"raw pixels": round(bench.right(*raw), 4)}
    curves = {"raw pixels": (bench.few(*raw, bench.counts), "amber", "-")}
    for which, colour in (("model", "blue"), ("untrained network", "red")):
        found = bench.features(which, 0.1)
        for pool, style in ((1, "o--"), (4, "o-")):
            scores = [bench.right(*found[layer, pool]) for layer in bench.layers]
            label = f"{which}, pool {pool}"
            blocks.plot(bench.layers, scores, style, color=COLOURS[colour], markersize=3, linewidth=1.3)
            curves[label] = (bench.few(*found["up1.0", pool], bench.counts), colour, style)
            numbers[label] = dict(zip(bench.layers, (round(score, 4) for score in scores), strict=True))
    blocks.axhline(bench.right(*raw), color=COLOURS["amber"], linewidth=1.3)
    blocks.tick_params(axis="x", rotation=45)
    blocks.set_ylabel("accuracy on held-out digits")
    for label, (scores, colour, style) in curves.items():
        few.semilogx(bench.counts, scores, style, color=COLOURS[colour], markersize=3, linewidth=1.3, label=label)
        numbers[f"{label}, few labels"] = [round(score, 4) for score in scores]
    few.set_xticks(bench.counts, [str(count) for count in bench.counts])
    few.minorticks_off()
    few.set_ylim(bottom=0)
    few.set_xlabel("labels of each class")
    few.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    return Drawn(figure, numbers)

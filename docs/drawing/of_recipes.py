"""The curves of the recipes, as `benchmarks/recipes.py` recorded them."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from drawing.canvas import COLOURS, FAINT, GREY, INK, Drawn

RECORDED = Path(__file__).parents[1] / "recorded" / "recipes.json"


def draw_recipes() -> Drawn:
    """The training loss of each recipe over its steps; the figure that it reached above it."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    cases, measures = recorded["details"], recorded["measures"]
    figure, axes = plt.subplots(1, len(cases), figsize=(max(4.4, 2.6 * len(cases)), 2.4), dpi=100, squeeze=False)
    for axis, (name, case), measure in zip(axes[0], cases.items(), measures, strict=True):
        axis.plot(case["step"], case["loss"], color=COLOURS["blue"], linewidth=1.5)
        axis.set_title(f"{name}\n{measure['value']:.3g}, asked {measure['asked']:g}", fontsize=9, color=INK)
        axis.set_xlabel("step", fontsize=8, color=GREY)
        axis.tick_params(labelsize=7, colors=GREY, which="both")
        axis.grid(color=FAINT, linewidth=0.5, which="both")
        axis.spines[:].set_color(FAINT)
    axes[0][0].set_ylabel("training loss", fontsize=8, color=GREY)
    figure.tight_layout()
    return Drawn(figure, {name: case["value"] for name, case in cases.items()})

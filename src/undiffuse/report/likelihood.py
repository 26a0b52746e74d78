"""The section of a report that shows a likelihood: figures, their distribution, the most and least likely items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from undiffuse.report.elements import Section
from undiffuse.report.plots import log_p_histogram

if TYPE_CHECKING:
    from undiffuse.analysis.results import Likelihood
    from undiffuse.spec import DataSpec

_SHOWN, _COLUMNS, _TEXTS = 12, 12, 3
_HOW_TO_READ = {
    "ode": "log p by the probability-flow ODE, of the data noised to t_min. The errors are standard errors over items.",
    "elbo": "The evidence bound: -log p is at most this, in expectation. The errors are standard errors over items.",
    "exact": "log p of each token given those before it, summed: exact. The errors are standard errors over items.",
}
_TYPICAL = (
    "A high likelihood is not typicality: plain or blurred items are often likelier than any real one, so compare with "
    "the histogram of real data, from both sides."
)


def likelihood_section(result: Likelihood, data: torch.Tensor, spec: DataSpec, title: str = "Likelihood") -> Section:
    """Return a section with everything a likelihood computation found.

    Args:
        result: What `log_likelihood` returned.
        data: Its items in data units (n, *shape), or token ids, in the order of `result.log_p`.
        spec: What one item is.
        title: Heading of the section.
    """
    section = Section(title)
    made = {"items": len(result.log_p), "network evaluations per item": result.nfe} | result.settings
    if result.passes:
        made["backward passes per item"] = result.passes
    section.text("Computed with " + ", ".join(f"{key} {value}" for key, value in made.items()) + ".", "note")
    section.table(result.columns, result.table(), (1, 2)).text(_HOW_TO_READ[result.method], "note")
    if len(result.log_p) > 1:
        section.figure(log_p_histogram(result.log_p.tolist()), "Distribution of log p over the items.")
    section.text(_TYPICAL, "note")
    order = result.log_p.argsort(descending=True)
    half = max(1, len(order) // 2)
    for name, rows in (("most", order[:half][:_SHOWN]), ("least", order.flip(0)[:half][:_SHOWN])):
        _show(section, data[rows], spec, f"The {name} likely items, the {name} likely first.")
    return section


def _show(section: Section, items: torch.Tensor, spec: DataSpec, caption: str) -> None:
    if spec.kind == "image":
        section.picture(_picture(items, spec), caption)
    elif spec.is_discrete and not spec.columns:
        from undiffuse.data.text import decode_text

        section.text(caption).texts([decode_text(row, spec) for row in items[:_TEXTS]])


def _picture(items: torch.Tensor, spec: DataSpec) -> Any:
    from undiffuse.images import image_grid

    low, high = spec.range or (float(items.min()), float(items.max()))
    return image_grid(items.float(), _COLUMNS, bounds=(low, high if high > low else low + 1.0))

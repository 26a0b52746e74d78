"""The page of benchmarks: figures, verdicts, failures."""

from __future__ import annotations

import pytest

from tests.report.test_html import Page
from undiffuse.report.bench import Outcome, bench_report, bench_section, figure, row, tally, verdict
from undiffuse.report.elements import Picture
from undiffuse.report.measures import Measure, Results

RESULTS = Results(
    "Cost <of> it",
    "What was done.",
    (
        Measure("fast", 0.1, asked=0.2, note="of the peer"),
        Measure("slow", 1.5, asked=1.0),
        Measure("rate", 12.345, "images per second", better="higher", error=0.5),
        Measure("absent", None, asked=1.0),
    ),
    {"threads": 1, "seeds": [0, 1]},
)
FAILED = Outcome("broken", 3.0, problem="\n".join(f"line {number}" for number in range(100)))


def test_rows_say_met_and_short():
    cells = [row(measure) for measure in RESULTS.measures]
    assert cells[0] == ("fast", "0.1", "≤ 0.2", "met", "of the peer")
    assert cells[1][1:4] == ("1.5", "≤ 1", "short by 50.0 %")
    assert cells[2][1:4] == ("12.3 ± 0.5 images per second", "", "")
    assert cells[3][1:4] == ("none", "≤ 1", "short")


@pytest.mark.parametrize(("value", "said"), [(0.96, "short by 1.0 %"), (0.97, "met"), (0.001, "short")])
def test_shortness_where_higher_is_better(value: float, said: str):
    assert verdict(Measure("x", value, asked=0.97, better="higher")) == said


def test_the_tally_counts_figures_and_failures():
    assert tally([Outcome("a", 1.0, RESULTS), FAILED]) == (
        "1 of 3 figures that something was asked of are met, from 2 script(s); 1 script(s) failed."
    )


def test_the_page_holds_everything_and_fetches_nothing():
    page = Page(bench_report([Outcome("cost", 61.0, RESULTS), FAILED], {"torch": "2.0"}, ["later"]).html())
    for text in ("Cost <of> it", "What was done.", "short by 50.0 %", "broken failed after 3 s", "line 99", "later"):
        assert text in page.text
    assert "script cost; took 61 s; threads 1; seeds 0, 1." in page.text
    assert "line 0\n" not in page.text  # the end of a long message is what tells
    assert [image["src"][:22] for image in page.find("img")] == ["data:image/png;base64,"]  # type: ignore[index]
    assert not page.find("script") + page.find("link")


def test_only_ratios_are_drawn():
    rates = Results("T", "s", (Measure("a", 3.0, "ms"), Measure("b", None)))
    assert not any(isinstance(element, Picture) for element in bench_section(Outcome("x", 1.0, rates)).elements)


def test_figures_have_three_digits():
    assert [figure(value) for value in (0.12345, 12.345, 1234.5, 0.0)] == ["0.123", "12.3", "1,234", "0"]

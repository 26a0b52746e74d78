from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from undiffuse.report import Report, Section
from undiffuse.report.plots import loss_curve

_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def find(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def _full_report() -> Report:
    report = Report("A report", "of everything")
    report.section("Words").text("Plain.").text("Small.", "note").text("Mind this.", "warning")
    report.section("Numbers").pairs({"steps": 10, "loss": "0.5"}).table(["name", "value"], [["a", 1], ["b", 2]], [1])
    report.section("Pictures").picture(np.zeros((8, 8), np.uint8), "tiny").figure(
        loss_curve([1, 2], [2.0, 1.0]), "loss"
    )
    report.section("Letters").code("undiffuse train digits").texts(["To be,\nor not", "to be"])
    return report


def test_every_element_is_on_the_page_and_every_tag_is_closed():
    page = Page(_full_report().html())
    assert len(page.find("section")) == 4 and len(page.find("nav")) == 1
    for words in (
        "A report",
        "of everything",
        "Plain.",
        "Mind this.",
        "steps",
        "0.5",
        "undiffuse train digits",
        "or not",
    ):
        assert words in page.text
    assert [cell.get("class") for cell in page.find("td")] == [None, "number"] * 2
    assert [image["alt"] for image in page.find("img")] == ["tiny", "loss"]


def test_the_page_fetches_nothing():
    html = _full_report().html()
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|src=\"//|@import|url\(|<script|<link|<iframe", words, re.IGNORECASE)
    sources = [image["src"] for image in Page(html).find("img")]
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)


def test_markup_in_texts_from_outside_is_shown_not_obeyed():
    evil = "<script>alert('&')</script>\"><b>"
    report = Report(evil, evil)
    section = report.section(evil).text(evil).pairs({evil: evil}).table([evil], [[evil]]).code(evil).texts([evil])
    section.picture(np.zeros((2, 2), np.uint8), evil)
    page = Page(report.html())
    assert page.find("script") == [] and page.find("b") == []
    assert page.text.count(evil) >= 10
    assert page.find("img")[0]["alt"] == evil


def test_small_pictures_are_enlarged_by_a_whole_number_and_large_ones_left():
    small, large = (
        Section("x").picture(np.zeros((8, 8, 3), np.uint8)).picture(np.zeros((500, 600, 1), np.uint8)).elements
    )
    assert small.width % 8 == 0 and small.pixelated
    assert large.width == 600 and not large.pixelated


def test_pictures_survive_letter_for_letter():
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (picture,) = Section("x").picture(pixels).elements
    file = io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)


def test_the_same_report_has_the_same_bytes():
    assert _full_report().html() == _full_report().html()


def test_writing_makes_folders_and_leaves_no_scraps(tmp_path):
    path = _full_report().write(tmp_path / "a" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        Section("x").table(["a", "b"], [[1, 2, 3]])
    for pixels in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="a picture is uint8"):
            Section("x").picture(pixels)

"""The tables of the page on operators are those of the catalogue."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_of_the_page_are_those_of_the_catalogue() -> None:
    found = spec_from_file_location("make_operators", DOCS / "make_operators.py")
    assert found is not None and found.loader is not None
    made = module_from_spec(found)
    found.loader.exec_module(made)
    text = made.PAGE.read_text(encoding="utf-8")
    assert made.filled(text) == text, "run python docs/make_operators.py"
    assert "| `jpeg` |" in text and "| `poisson` |" in text

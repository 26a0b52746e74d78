"""Write the tables of operators and noises into docs/how-to/operators.md, from the catalogue.

python docs/make_operators.py
"""

from __future__ import annotations

from pathlib import Path

from undiffuse.operators.catalogue import NOISES, OPERATORS, Option

PAGE = Path(__file__).parent / "how-to" / "operators.md"


def options_in_words(options: dict[str, Option]) -> str:
    """Return options as a cell of a table."""
    return "; ".join(f"`{name}={option.default}` {option.help}" for name, option in options.items())


def tables() -> dict[str, str]:
    """Return the tables by name."""
    operators = ["| operator | what | kind | options |", "| --- | --- | --- | --- |"]
    for name, facts in OPERATORS.items():
        kinds = [word for word in ("svd", "linear") if facts.has(word)][:1] or ["nonlinear"]
        what = f"{facts.what} ({facts.needs})" if facts.needs else facts.what
        operators.append(f"| `{name}` | {what} | {kinds[0]} | {options_in_words(facts.options)} |")
    noises = ["| noise | what | options |", "| --- | --- | --- |"]
    noises += [f"| `{name}` | {facts.what} | {options_in_words(facts.options)} |" for name, facts in NOISES.items()]
    return {"operators": "\n".join(operators), "noises": "\n".join(noises)}


def filled(text: str) -> str:
    """Return a page with its tables as they should be, between their marks."""
    for name, table in tables().items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table}\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""One self-contained HTML file: inline style, pictures as data URIs, no script, nothing fetched from anywhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from undiffuse.files import write_whole
from undiffuse.report.elements import Section

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass
class Report:
    """A page: title, a line under it, and sections.

    Args:
        title: Heading of the page.
        subtitle: One line under it, e.g. what was run and when.
        sections: In reading order; more than two get a table of contents.
    """

    title: str
    subtitle: str = ""
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Section:
        """Append a new section and return it."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        """Return the page. Text from outside is escaped; it cannot bring markup in."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
        return template.render(report=self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all, and return its path; missing folders are made.

        Raises:
            OSError: The file cannot be written; a former file of that name is then unharmed.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        page = self.html()
        write_whole(target, lambda file: file.write_text(page, encoding="utf-8"))
        return target

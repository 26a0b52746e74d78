"""Help pages in sections, as plain text: commands by what they are for, options by what they are about.

Typer draws such panels with rich, whose import costs more than the rest of a help page together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

_TYPE = re.compile(r"<(?:list\[)?(\w+)\]?>")
_NO_BRACES = str.maketrans("", "", "{}")
_VALUES = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER"}

Sections = Mapping[str, Sequence[str]]
"""Title -> names: of commands, or of a command's parameters."""


def sectioned_command(sections: Sections) -> type[TyperCommand]:
    """Return the class of a command whose help lists options under titles; those that none names come last."""

    class Sectioned(TyperCommand):
        def __init__(self, *given: Any, **settings: Any) -> None:
            super().__init__(*given, **settings)
            for parameter in self.params:
                if parameter.param_type_name == "argument" and parameter.metavar is None:
                    parameter.metavar = str(parameter.name).upper()

        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            """Return the words of the first line: MODEL is required, [DATA] is not."""
            pieces = super().collect_usage_pieces(ctx)
            once = [piece[1:].replace("]]", "]") if piece.startswith("[[") else piece for piece in pieces]
            return [piece.translate(_NO_BRACES) for piece in once]

        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Write arguments, then options."""
            arguments, records = [], {}
            for parameter in self.get_params(ctx):
                if (record := parameter.get_help_record(ctx)) is not None:
                    is_argument = parameter.param_type_name == "argument"
                    arguments += [parameter.name] if is_argument else []
                    records[parameter.name] = (_without_type if is_argument else _with_plain_type)(record[0]), record[1]
            for title, names in sorted_into({"Arguments": arguments, **sections}, records, "Options").items():
                with formatter.section(title):
                    formatter.write_dl([records[name] for name in names])

    return Sectioned


def sectioned_group(sections: Sections) -> type[TyperGroup]:
    """Return the class of a group whose help lists commands under titles; those that none names come last."""

    class Sectioned(TyperGroup):
        def format_commands(self, ctx: Any, formatter: Any) -> None:
            """Write the commands, what they do in one column."""
            width = max(map(len, self.commands))
            for title, names in sorted_into(sections, self.commands, "Other commands").items():
                with formatter.section(title):
                    shown = ((name, self.commands[name].get_short_help_str(formatter.width)) for name in names)
                    formatter.write_dl([(f"{name:<{width}}", help) for name, help in shown])

    return Sectioned


def _without_type(name: str) -> str:
    return _TYPE.sub("", name).strip()


def _with_plain_type(name: str) -> str:
    """Return "--steps NUMBER" for typer's "--steps <int>"."""
    return _TYPE.sub(lambda found: _VALUES.get(found[1].lower(), found[1].upper()), name)


def sorted_into(sections: Sections, there: Iterable[str], rest: str) -> dict[str, list[str]]:
    """Return title -> names that are there, in the order of the sections and without empty ones; then `rest`."""
    present = list(there)
    named = {name for names in sections.values() for name in names}
    whole = {**sections, rest: [name for name in present if name not in named]}
    found = {title: [name for name in names if name in present] for title, names in whole.items()}
    return {title: names for title, names in found.items() if names}

"""Reads the imports of a source tree, without running it, and checks them against a table of floors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_LAZY_NAME = re.compile(r"(\w+(?:\.\w+)+):\w+")


@dataclass(frozen=True)
class Import:
    """`importer` (a module) refers to `target` (a module, or a package's facade) at `line`.

    `at_start` tells imports that run with the module from those in functions, in TYPE_CHECKING blocks and in
    tables of lazy names ("package.module:Name").
    """

    importer: str
    target: str
    line: int
    at_start: bool


class Tree:
    """The modules of one package below a source folder."""

    def __init__(self, source: Path, package: str) -> None:
        self.package = package
        self.files = {_module_name(path, source): path for path in sorted((source / package).rglob("*.py"))}
        self.parsed = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}

    def imports(self) -> list[Import]:
        """Return every reference from one module of the package to another."""
        return [found for name in self.files for found in self._imports_of(name)]

    def external(self) -> Iterator[tuple[str, str]]:
        """Yield (module, name of the foreign package that it imports)."""
        for name, module in self.parsed.items():
            for node in ast.walk(module):
                targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    targets = [node.module]
                yield from ((name, target) for target in targets if not self._is_ours(target))

    def calls(self) -> Iterator[tuple[str, str, ast.Call]]:
        """Yield (module, dotted name called, call), for example ("undiffuse.models", "torch.save", ...)."""
        for name, module in self.parsed.items():
            for node in ast.walk(module):
                if isinstance(node, ast.Call):
                    yield name, ast.unparse(node.func), node

    def _imports_of(self, importer: str) -> Iterator[Import]:
        for node, at_start in _nodes(self.parsed[importer], at_start=True):
            for target in self._targets(importer, node):
                lazy = isinstance(node, ast.Constant)
                yield Import(importer, target, node.lineno, at_start and not lazy)  # type: ignore[attr-defined]

    def _targets(self, importer: str, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names if self._is_ours(alias.name)]
        if isinstance(node, ast.ImportFrom):
            base = self._absolute(importer, node)
            found = [self._member(base, alias.name) for alias in node.names] if self._is_ours(base) else []
            return [target for target in found if target != f"{self.package}.__version__"]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = _LAZY_NAME.fullmatch(node.value)
            return [match[1]] if match and self._is_ours(match[1]) else []
        return []

    def _absolute(self, importer: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self.files[importer].name == "__init__.py"
        parts = importer.split(".")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _member(self, base: str, name: str) -> str:
        """`from base import name`: a module of its own, the version, or something inside `base`."""
        dotted = f"{base}.{name}"
        return dotted if dotted in self.files or dotted == f"{self.package}.__version__" else base

    def _is_ours(self, name: str) -> bool:
        return name == self.package or name.startswith(f"{self.package}.")


def upward_imports(tree: Tree, floors: Mapping[str, int]) -> list[str]:
    """Return a line per import that goes up, or whose end is in no floor. The facade (the root) is above all."""
    lines = []
    for found in tree.imports():
        if found.importer == tree.package:
            continue
        above, below = (_floor(name, tree.package, floors) for name in (found.importer, found.target))
        where = f"{found.importer}:{found.line} imports {found.target}"
        if above is None or below is None:
            lines.append(f"{where}: {found.importer if above is None else found.target} is on no floor")
        elif below > above:
            lines.append(f"{where}: floor {above} looks up to floor {below}")
    return lines


def unknown_packages(tree: Tree, floors: Mapping[str, int]) -> list[str]:
    """Return the modules that are on no floor."""
    return [name for name in tree.files if _floor(name, tree.package, floors) is None]


def circles(tree: Tree) -> list[list[str]]:
    """Return each group of modules that need one another while they are being imported.

    Importing `a.b.c` runs `a` and `a.b` first; that counts for every such package that the importer is not inside.
    """
    graph: dict[str, set[str]] = {name: set() for name in tree.files}
    for found in tree.imports():
        if found.at_start:
            graph[found.importer] |= {name for name in _runs(found) if name in graph and name != found.importer}
    reach = {name: _reachable(graph, name) for name in graph}
    together = {frozenset(m for m in reach[name] if name in reach[m]) for name in graph if name in reach[name]}
    return sorted(sorted(group) for group in together)


def _floor(module: str, package: str, floors: Mapping[str, int]) -> int | None:
    if module == package:
        return max(floors.values()) + 1
    return floors.get(module.split(".")[1])


def _runs(found: Import) -> list[str]:
    parts = found.target.split(".")
    parents = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return [found.target, *(name for name in parents if not f"{found.importer}.".startswith(f"{name}."))]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [*graph[start]]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(graph[name])
    return seen


def _nodes(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node below `node`, and whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        later = later or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield child, at_start
        yield from _nodes(child, at_start and not later)


def _module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

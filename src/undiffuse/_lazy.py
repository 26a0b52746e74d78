"""Packages that resolve their public names on first use, so that `import undiffuse` and torch-free
`options` modules stay cheap."""

from __future__ import annotations

TYPE_CHECKING = False  # known to type checkers; importing `typing` would be most of the cost of `import undiffuse`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def lazy(package: str, table: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return (`__getattr__`, `__dir__`, `__all__`) for a package whose names live elsewhere.

    Args:
        package: The package's `__name__`.
        table: Public name -> "module:attribute", or "module" for the module itself.
    """
    import sys

    names = sorted(table)

    def public(name: str) -> Any:
        """Resolve a public name and keep it for next time."""
        owner = sys.modules[package]
        if name not in table:
            # `name` and `obj` let Python suggest the nearest name.
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=owner)
        value = resolve(table[name])
        setattr(owner, name, value)
        return value

    return public, lambda: sorted({*vars(sys.modules[package]), *names}), names


def resolve(location: str) -> Any:
    """Return what stands at "module:attribute", or the module itself where there is no attribute; it is imported."""
    from importlib import import_module

    module, _, attribute = location.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found

"""Published benchmarks of compositionality, read from the folders that their authors publish."""

from __future__ import annotations

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "LAYOUTS": "undiffuse.analysis.compositionality.layouts.table:LAYOUTS",
        "Layout": "undiffuse.analysis.compositionality.layouts.table:Layout",
        "open_layout": "undiffuse.analysis.compositionality.layouts.table:open_layout",
    },
)

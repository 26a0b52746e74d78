"""Every key of a recipe, with its type, default and meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from undiffuse.cli.output import Output


def show_keys(output: Output, recipe: str | None = None) -> None:
    """Print the table of keys with their defaults, and before it what a named recipe sets."""
    from undiffuse.config import describe
    from undiffuse.training.recipe import Recipe

    rows = describe(Recipe)
    set_here = _values(recipe) if recipe is not None else {}
    if recipe is not None:
        output.say(f"Recipe {recipe}. Keys that it sets:")
        output.pairs(set_here)
        output.say("\nAll keys:")
    output.table(("key", "type", "default", "meaning"), [tuple(row) for row in rows])
    output.result({"recipe": recipe, "sets": set_here, "keys": [row._asdict() for row in rows]})


def _values(recipe: str) -> dict[str, str]:
    """Return what a recipe's file sets, flat."""
    from undiffuse.training.recipe import recipe_layer

    flat: dict[str, str] = {}

    def walk(tree: dict[str, object], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = str(value)

    walk(recipe_layer(recipe), "")
    return flat

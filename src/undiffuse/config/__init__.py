"""Option trees: one parser for YAML recipes, the command line and keyword arguments.

Options are frozen keyword-only dataclasses; a recipe is a tree of them. `resolve` lays plain values over the
defaults, layer by layer, and builds the tree:

    resolve(Recipe, load_yaml("recipe.yaml"), ["train.steps=20_000", "model=unet", "model.channels=64"])

A field whose type is a union of option classes, each with a `kind: Literal[...]`, is a *tagged group*: naming a
kind (`model=unet`, `model.kind=unet`, or `kind` in a mapping) starts the group afresh from that class's own
defaults. Nothing here imports torch; pydantic and PyYAML are imported on first use.
"""

from __future__ import annotations

from undiffuse.config.layers import resolve
from undiffuse.config.plain import dump_yaml, load_yaml, to_dict
from undiffuse.config.rows import Row, describe

__all__ = ["Row", "describe", "dump_yaml", "load_yaml", "resolve", "to_dict"]

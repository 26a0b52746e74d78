from __future__ import annotations

from tests.config.recipes import Recipe, Required
from undiffuse.config import Row, describe, resolve, to_dict


def rows(recipe: type) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in describe(recipe):
        found.setdefault(row.key, []).append(row)
    return found


def test_a_row_is_key_type_default_and_help():
    key, kind, default, help = describe(Recipe)[1]
    assert (key, kind, default, help) == ("model", "unet | transformer", "unet", "The network.")


def test_every_kind_lists_its_options_with_its_own_defaults():
    channels = rows(Recipe)["model.channels"]
    assert channels == [
        Row("model.channels", "int", "48", "[model=unet] Width of the first level."),
        Row("model.channels", "int", "128", "[model=transformer]"),
    ]


def test_types_and_defaults_read_as_one_would_type_them():
    found = {key: (row.type, row.default) for key, (row, *_) in rows(Recipe).items()}
    assert found["train.seed"] == ("int | none", "none")
    assert found["train.resume"] == ("true | false", "false")
    assert found["train.decay"] == ("'cosine' | 'none' | 'linear'", "cosine")
    assert found["train.betas"] == ("tuple[float, float]", "[0.9, 0.99]")
    assert found["train.max_norm"] == ("float | 'off'", "1.0")
    assert found["guidance"] == ("{...} | none", "none")
    assert found["guidance.scale"] == ("float", "2.0")
    assert found["student"] == ("unet | transformer | none", "none")


def test_groups_of_one_fixed_class_have_no_row_of_their_own():
    assert "train" not in rows(Recipe)
    assert "train.steps" in rows(Recipe)
    assert not any(key.endswith(".kind") and key != "data.kind" for key in rows(Recipe))


def test_required_values_say_so():
    found = rows(Required)
    assert found["source"][0].default == "(required)"
    assert found["model"][0].default == "(required)"


def test_typing_every_default_changes_nothing():
    arguments = [
        f"{row.key}={row.default}" for row in describe(Recipe) if not row.key.startswith(("student", "guidance"))
    ]
    once = [argument for argument in arguments if not argument.startswith("model") or "48" in argument]
    assert to_dict(resolve(Recipe, once)) == to_dict(Recipe())

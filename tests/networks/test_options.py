from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from undiffuse.networks.options import MLPOptions, TransformerOptions, UNetOptions


@pytest.mark.parametrize("options", [MLPOptions, UNetOptions, TransformerOptions])
def test_every_option_has_help_and_the_kind_is_the_tag(options):
    assert all(field.metadata.get("help") for field in fields(options))
    assert options().kind in {"mlp", "unet", "transformer"}


def test_options_do_not_import_torch():
    code = "import sys, undiffuse.networks.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_negative_levels_count_from_the_coarsest():
    assert UNetOptions(attention=(-1, 0)).attention_levels == {0, 2}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MLPOptions(width=0), "width=0"),
        (lambda: UNetOptions(multipliers=()), "at least one level"),
        (lambda: UNetOptions(multipliers=(1, 2), attention=(2,)), "attention level 2 does not exist.*0 to 1"),
        (lambda: UNetOptions(channels=10, multipliers=(1,)), "10 channels do not split into heads=4"),
        (lambda: UNetOptions(channels=4, temporal=True), "of even size"),
        (lambda: UNetOptions(dropout=1.0), "dropout=1.0"),
        (lambda: TransformerOptions(width=12, heads=4), "multiple of 8"),
    ],
)
def test_impossible_sizes_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()

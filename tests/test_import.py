from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import undiffuse

HEAVY = {"torch", "pydantic", "yaml", "numpy"}


def loaded_after(code: str) -> set[str]:
    """Run `code` in a fresh interpreter and return the names of the modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_after("import undiffuse; dir(undiffuse); undiffuse.__version__")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("undiffuse")} == {"undiffuse", "undiffuse._lazy"}


def test_the_check_for_heavy_modules_sees_them():
    assert HEAVY & loaded_after("import undiffuse; undiffuse.noise") == {"torch", "numpy"}


@pytest.mark.parametrize(
    "module",
    [
        "undiffuse.config",
        "undiffuse.spec",
        "undiffuse.errors",
        "undiffuse.events",
        "undiffuse.process.options",
        "undiffuse.networks.options",
        "undiffuse.training.options",
    ],
)
def test_option_modules_load_no_torch(module: str):
    assert not loaded_after(f"import {module}") & HEAVY


@pytest.mark.parametrize("name", sorted(undiffuse.PUBLIC))
def test_every_public_name_resolves(name: str):
    module, _, attribute = undiffuse.PUBLIC[name].partition(":")
    value = getattr(undiffuse, name)
    assert name in dir(undiffuse)
    assert name in undiffuse.__all__
    if attribute:
        assert value is getattr(import_module(module), attribute)
        assert not isinstance(value, ModuleType), "a sub-module hides the public name"
    else:
        assert value is import_module(module)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        undiffuse.lode  # noqa: B018


@pytest.mark.parametrize("package", [name for name, location in undiffuse.PUBLIC.items() if ":" not in location])
def test_no_public_name_is_also_a_submodule(package):
    # Importing such a submodule would put the module in the name's place.
    module = import_module(f"undiffuse.{package}")
    names = [name for name in getattr(module, "__all__", []) if not isinstance(getattr(module, name), ModuleType)]
    if hasattr(module, "__path__"):
        assert [name for name in names if importlib.util.find_spec(f"undiffuse.{package}.{name}")] == []

"""The architecture as tests: no import goes up, none goes in a circle, nothing unpickles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.imports import Tree, circles, unknown_packages, upward_imports

ROOT = Path(__file__).parents[1]
FLOORS = {
    "cli": 6,
    "papers": 6,
    "__main__": 6,
    "analysis": 5,
    "tasks": 5,
    "report": 5,
    "training": 4,
    "distillation": 4,
    "models": 3,
    "data": 3,
    "metrics": 3,
    "pretrained": 3,
    "sampling": 2,
    "guidance": 2,
    "codecs": 2,
    "operators": 2,
    "denoisers": 1,
    "networks": 1,
    "process": 0,
    "noise": 0,
    "spec": 0,
    "words": 0,
    "limits": 0,
    "config": 0,
    "images": 0,
    "errors": 0,
    "events": 0,
    "files": 0,
    "cache": 0,
    "_lazy": 0,
}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT / "src", "undiffuse")


def test_no_import_goes_up(tree: Tree):
    assert upward_imports(tree, FLOORS) == []


def test_no_import_goes_in_a_circle(tree: Tree):
    assert circles(tree) == []


def test_every_module_has_a_floor(tree: Tree):
    assert unknown_packages(tree, FLOORS) == []


def test_the_floors_are_those_of_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.+?) \|", page, flags=re.MULTILINE)
    documented = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == {name: floor for name, floor in FLOORS.items() if not name.startswith("_")}


def test_nothing_is_pickled(tree: Tree):
    assert picklers(tree) == []


def picklers(tree: Tree) -> list[str]:
    """Return a line per import or call that reads or writes pickles."""
    imported = [f"{name} imports {what}" for name, what in tree.external() if what.split(".")[0] in PICKLERS]
    called = [f"{name} calls {what}" for name, what, call in tree.calls() if what in UNPICKLING_CALLS]
    allowed = [f"{name} allows pickles" for name, _, call in tree.calls() if _allows_pickle(call)]
    return imported + called + allowed


def _allows_pickle(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    value = given.get("allow_pickle")
    return value is not None and not (isinstance(value, ast.Constant) and value.value is False)


# --- the checker itself, on small trees that break one rule each

HOUSE = {"roof": 1, "cellar": 0}


def house(folder: Path, files: dict[str, str]) -> Tree:
    """Write a package `home` with the packages roof and cellar; `files` is path in it -> text."""
    for package in ("", "roof", "cellar"):
        (folder / "home" / package).mkdir(parents=True, exist_ok=True)
        (folder / "home" / package / "__init__.py").write_text("")
    for name, text in files.items():
        (folder / "home" / f"{name}.py").write_text(text)
    return Tree(folder, "home")


@pytest.mark.parametrize(
    "text",
    [
        "import home.cellar.wine",
        "from home.cellar import wine",
        "from home.cellar.wine import red",
        "from ..cellar import wine",
        "from home import cellar",
        "from home import __version__",
        "import os, torch",
        "NAMES = {'red': 'home.cellar.wine:red'}",
    ],
)
def test_imports_that_go_down_pass(tmp_path: Path, text: str):
    tree = house(tmp_path, {"roof/tiles": text, "cellar/wine": "red = 1"})
    assert upward_imports(tree, HOUSE) == []
    assert circles(tree) == []
    assert picklers(tree) == []


@pytest.mark.parametrize(
    "text",
    [
        "import home.roof",
        "import os, home.roof.tiles as tiles",
        "from home.roof import tiles",
        "from home.roof.tiles import clay",
        "from home import roof",
        "from home import clay",
        "import home",
        "from ..roof import tiles",
        "from .. import roof",
        "def f():\n    from home.roof import tiles",
        "class A:\n    def f(self):\n        import home.roof.tiles",
        "if TYPE_CHECKING:\n    from home.roof import tiles",
        "try:\n    import home.roof\nexcept ImportError:\n    pass",
        "NAMES = {'clay': 'home.roof.tiles:clay'}",
    ],
)
def test_imports_that_go_up_are_found(tmp_path: Path, text: str):
    tree = house(tmp_path, {"cellar/wine": text, "roof/tiles": "clay = 1"})
    (line,) = upward_imports(tree, HOUSE)
    assert "home.cellar.wine:" in line
    assert "floor 0 looks up to floor" in line


def test_modules_without_a_floor_are_found(tmp_path: Path):
    tree = house(tmp_path, {"shed": "", "cellar/wine": "from home.shed import spade"})
    assert unknown_packages(tree, HOUSE) == ["home.shed"]
    assert upward_imports(tree, HOUSE) == ["home.cellar.wine:1 imports home.shed: home.shed is on no floor"]


def test_a_package_may_gather_its_modules(tmp_path: Path):
    tree = house(
        tmp_path,
        {
            "cellar/__init__": "from home.cellar.wine import red",
            "cellar/wine": "from home.cellar.rack import wood\nfrom home.cellar import rack",
            "cellar/rack": "",
        },
    )
    assert circles(tree) == []


@pytest.mark.parametrize("text", ["from home.cellar.wine import red", "if True:\n    from home.cellar import wine"])
def test_circles_of_two_modules_are_found(tmp_path: Path, text: str):
    tree = house(tmp_path, {"cellar/wine": "import home.cellar.rack", "cellar/rack": text})
    assert circles(tree) == [["home.cellar.rack", "home.cellar.wine"]]


def test_a_module_that_imports_its_own_package_is_a_circle(tmp_path: Path):
    tree = house(tmp_path, {"cellar/__init__": "from .wine import red", "cellar/wine": "from home.cellar import other"})
    assert circles(tree) == [["home.cellar", "home.cellar.wine"]]


def test_circles_through_the_packages_that_an_import_runs_are_found(tmp_path: Path):
    tree = house(
        tmp_path,
        {
            "roof/__init__": "from home.roof.tiles import clay",
            "roof/tiles": "from home.cellar import red",
            "roof/beams": "",
            "cellar/__init__": "from home.cellar.wine import red",
            "cellar/wine": "import home.roof.beams",
        },
    )
    assert circles(tree) == [["home.cellar", "home.cellar.wine", "home.roof", "home.roof.tiles"]]


@pytest.mark.parametrize(
    "text", ["def f():\n    import home.cellar.wine", "if TYPE_CHECKING:\n    import home.cellar.wine"]
)
def test_imports_that_run_later_make_no_circle(tmp_path: Path, text: str):
    tree = house(tmp_path, {"cellar/wine": "import home.cellar.rack", "cellar/rack": text})
    assert circles(tree) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import joblib.hashing",
        "x = torch.load('x.pt', weights_only=True)",
        "torch.save(x, 'x.pt')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader)",
    ],
)
def test_pickles_are_found(tmp_path: Path, text: str):
    assert len(picklers(house(tmp_path, {"cellar/wine": text}))) == 1


@pytest.mark.parametrize(
    "text", ["np.load(path, allow_pickle=False)", "'''torch.load( is not used'''", "yaml.safe_load(x)"]
)
def test_what_does_not_pickle_passes(tmp_path: Path, text: str):
    assert picklers(house(tmp_path, {"cellar/wine": text})) == []

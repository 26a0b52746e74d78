"""The documentation is true: its code runs, its commands exist, its errors are those printed, its links lead somewhere.

Python blocks of a page share a namespace and run in a folder with small data. Trainings and evaluations in them are cut
short: the functions are replaced by ones of few steps or samples. What follows `<!-- not run: reason -->` is left out.
Lines of shell blocks are parsed, not run. Lines after `$` in console blocks are run, and must print the lines below.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

import undiffuse as ud
from undiffuse.cli import main as command
from undiffuse.config import resolve
from undiffuse.distillation import accelerate, distill
from undiffuse.metrics import Evaluation, evaluate
from undiffuse.training.codec_run import train_codec
from undiffuse.training.recipe import RECIPES, Recipe, override_layers, recipe_layer
from undiffuse.training.refit import refit_codebook
from undiffuse.training.run import Run, choose, train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S)
CALL = re.compile(r"`((?:ud|model)\.\w+\([^`]*\))`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHORT = ("train.steps=2", "train.batch_size=8", "train.preview_every=0", "train.validate_items=16")
SMALL = {
    "unet": ("model.channels=8",),
    "diffusers-unet": ("model.channels=8", "model.groups=4"),
    "dit": ("model.width=16", "model.heads=2"),
    "mlp": ("model.width=16",),
    "transformer": ("model.width=16", "model.depth=1", "model.heads=2"),
    "autoencoder": ("codec.width=8", "codec.steps=2", "codec.batch_size=8"),
    "vq": ("codec.width=8", "codec.steps=2", "codec.batch_size=8", "codec.codes=16"),
}


class Block(NamedTuple):
    """A fenced block: language, text, the number of its first line, and why it is not run, if it says so."""

    language: str
    text: str
    line: int
    reason: str | None


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = (
        Block(m["language"], m["text"], text.count("\n", 0, m.start("text")) + 1, m["reason"])
        for m in FENCE.finditer(text)
    )
    return [block for block in found if block.language in languages]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_blocks(*languages: str) -> list[Any]:
    return [pytest.param(page, id=name(page)) for page in PAGES if blocks(page, *languages)]


# -- the world in which pages run -------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that pages speak of: pictures, a text, broken data, and two runs of two steps."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for place in [f"photos/{kind}/{i}" for kind in ("cats", "dogs") for i in range(10)] + [
        f"broken/{i}" for i in range(6)
    ]:
        path = root / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)
    for i in range(2):
        (root / "broken" / f"{i}.png").write_bytes(b"no picture")
    (root / "empty").mkdir()
    holes = np.zeros((40, 2))
    holes[3, 1] = np.nan
    np.save(root / "holes.npy", holes)
    pangram = "sphinx of black quartz, judge my vow. "
    (root / "notes.txt").write_text(pangram * 90, encoding="utf-8")
    (root / "short.txt").write_text("too short", encoding="utf-8")
    people = [f"{('Rome', 'Oslo')[i % 2]},{('tea', '', 'milk')[i % 3]},{20 + i}" for i in range(60)]
    (root / "people.csv").write_text("\n".join(["city,drink,age", *people]), encoding="utf-8")
    (root / "names.csv").write_text("\n".join(["name", *(f"person {i}" for i in range(1200))]), encoding="utf-8")
    short_train("digits", out=root / "runs" / "digits")
    short_train(root / "notes.txt", out=root / "runs" / "text")
    return root


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world as the working directory."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here_without_runs(here: Path) -> Path:
    """The same before anything was trained, for pages that train it."""
    shutil.rmtree(here / "runs")
    return here


# -- python -----------------------------------------------------------------------------------------


def short_train(
    source: Any = None, recipe: Any = None, *, out: Any = None, overrides: Sequence[str] = (), **options: Any
) -> Run:
    """Train as asked, but a small network for two steps."""
    chosen = choose(source, recipe, override_layers(overrides, **options))[0]
    small = SMALL[chosen.model.kind] + SMALL.get(chosen.codec.kind, ())
    return train(source, recipe, out=out, overrides=(*overrides, *small, *SHORT), **options)


def short_evaluate(*arguments: Any, **options: Any) -> Evaluation:
    """Evaluate as asked, but on 20 samples."""
    return evaluate(*arguments, **{**options, "n": 20})


def short_accelerate(*arguments: Any, **options: Any) -> Any:
    """Tune as asked, but for two steps, and without the comparison."""
    short = {"train_steps": 2, "batch_size": 8, "samples": 0}
    return accelerate(*arguments, **{**options, **short})


def short_distill(*arguments: Any, **options: Any) -> Any:
    """Distil as asked, but for two steps."""
    short = {"steps": 2, "batch_size": 8, "preview_every": 0}
    return distill(*arguments, **{**options, **short})


def short_train_codec(*arguments: Any, overrides: Sequence[str] = (), **options: Any) -> Any:
    """Train a codec as asked, but a small one for two steps."""
    return train_codec(*arguments, overrides=(*overrides, *SMALL["vq"], "train.preview_every=0"), **options)


def short_refit(*arguments: Any, **options: Any) -> Any:
    """Rebuild a small codebook, and fine-tune for two steps."""
    return refit_codebook(*arguments, **{**options, "codes": 16, "train_steps": 2, "train_batch_size": 8})


@pytest.mark.parametrize("page", with_blocks("python"))
@pytest.mark.filterwarnings("ignore:Frechet distance of 20")
def test_the_python_of_a_page_runs(page: Path, here_without_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ud, "train", short_train)
    monkeypatch.setattr(ud, "evaluate", short_evaluate)
    monkeypatch.setattr(ud, "accelerate", short_accelerate)
    monkeypatch.setattr(ud, "distill", short_distill)
    monkeypatch.setattr(ud, "train_codec", short_train_codec)
    monkeypatch.setattr(ud, "refit_codebook", short_refit)
    monkeypatch.setattr("undiffuse.distillation.mmd_features._EPOCHS", 1)
    monkeypatch.setattr("undiffuse.distillation.mmd_build._WATCHED", 70)
    namespace: dict[str, Any] = {"__name__": "page"}
    run = 0
    for block in blocks(page, "python"):
        if block.reason is None:
            padded = "\n" * (block.line - 1) + block.text  # so that errors name the line of the page
            exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)
            run += 1
    assert run, "a page whose code is never run promises nothing"


# -- commands ---------------------------------------------------------------------------------------


def command_lines() -> Iterator[Any]:
    for page in PAGES:
        for block in blocks(page, "sh", "bash", "shell"):
            for number, line in enumerate(block.text.splitlines(), block.line):
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{name(page)}:{number}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_a_command_line_is_one_that_exists(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert [word for word in rest if "=" not in word and word not in targets] == []
    elif program == "undiffuse":
        check_usage(rest)
    else:
        assert words[:2] in (["pip", "install"], ["python", "docs/make_pictures.py"]), words


def check_usage(words: list[str]) -> None:
    """Parse a line of `undiffuse` without running it; keys of a recipe are resolved."""
    app = command._sub_command(words[0])
    typer.main.get_command(app).make_context(words[0], words[1:])
    keys = [word for word in words[1:] if re.match(r"[a-z]+(\.\w+)?=", word)]
    if words[0] == "train" and keys:
        source, chosen = words[1], "text" if words[1].endswith(".txt") else "image"
        resolve(Recipe, recipe_layer(source if source in RECIPES else chosen), keys)


def test_a_line_with_an_unknown_option_or_key_would_be_noticed() -> None:
    for line in ("sample digits --labels 3", "train photos train.stesp=3", "smaple digits"):
        with pytest.raises(Exception):  # noqa: B017  each layer has its own
            check_usage(line.split())


@pytest.mark.parametrize("page", with_blocks("console"))
def test_a_page_shows_the_errors_that_are_printed(page: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page, "console"):
        for line, expected in sessions(block.text):
            capsys.readouterr()
            program, *words = shlex.split(line)
            assert program == "undiffuse"
            code = command.run(words)
            printed = capsys.readouterr().err.splitlines()
            assert printed == expected, f"{name(page)}, block at line {block.line}: {line}"
            assert code != 0


def sessions(text: str) -> list[tuple[str, list[str]]]:
    """Split a console block into (command, lines printed)."""
    parts = re.split(r"^\$ ", text, flags=re.M)[1:]
    return [(first, rest) for first, *rest in (part.splitlines() for part in parts)]


# -- links and pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_links_lead_to_files_that_exist(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in LINK.findall(prose) if "://" not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs')}" in navigation


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in ud.PUBLIC if f"`ud.{name}`" not in page and f"::: undiffuse.{name}" not in page] == []


def test_every_picture_is_small_sharp_and_shown() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size <= 60_000, picture
        assert f"pictures/{picture.name}" in shown, picture
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert image.width >= 400


def test_calls_in_the_readme_fit_what_they_call() -> None:
    """Its tables are no code that runs; that the arguments exist is what can be held to them."""
    found = CALL.findall(PAGES[0].read_text(encoding="utf-8"))
    assert len(found) > 10
    for text in found:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute), text
        owner = call.func.value
        while not isinstance(owner, ast.Name):  # of ud.load(...).sample(...) the last call
            owner = getattr(owner, "value", None) or owner.func  # type: ignore[union-attr, attr-defined]
        of_model = owner.id == "model" or not isinstance(call.func.value, ast.Name)
        function = getattr(ud.Model if of_model else ud, call.func.attr)
        positional = [None] * (len(call.args) + of_model)
        inspect.signature(function).bind(*positional, **{str(key.arg): None for key in call.keywords})

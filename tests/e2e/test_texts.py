"""Texts through the command: options of first-hitting sampling, long texts, the baseline, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import TINY_TEXT, Command
from undiffuse.cli.main import run


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps of a network that reads from left to right; tests must not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "reader"
    causal = ("model.causal=true", "objective=autoregressive")
    assert run(["train", "prose", *TINY_TEXT, *causal, "--out", str(folder)]) == 0
    return folder


def test_options_of_the_solver_reach_it_and_cost_what_they_say(undiffuse: Command, text_run: Path):
    words = (
        "--solver",
        "first-hitting",
        "--steps",
        4,
        "--solver-option",
        "order=2",
        "--solver-option",
        "corrections=3",
    )
    answer = undiffuse("sample", text_run, "-n", 2, *words, "--out", "x", "--json")
    assert json.loads(answer.out)["evaluations"] == 7
    assert json.loads(answer.out)["sampling"]["solver_options"] == {"order": 2, "corrections": 3}


def test_long_texts_begin_with_their_prefix(undiffuse: Command, text_run: Path):
    words = ("--length", 40, "--stride", 4, "--temperature", 0.5, "--top-k", 5)
    answer = undiffuse("sample", text_run, "-n", 2, "--prefix", "the ", *words, "--out", "x", "--json")
    texts = Path(json.loads(answer.out)["main"]).read_text(encoding="utf-8").split("\n\n----\n\n")
    assert len(texts) == 2 and all(text.startswith("the ") and len(text.rstrip("\n")) <= 40 for text in texts)


def test_the_baseline_samples_and_judges(undiffuse: Command, text_run: Path, reader: Path):
    drawn = undiffuse("sample", reader, "-n", 2, "--prefix", "the ", "--out", "x", "--json")
    assert json.loads(drawn.out)["evaluations"] == 12  # of 16 tokens four are given
    judged = undiffuse("evaluate", text_run, "--reference", reader, "-n", 4, "--out", "y", "--json")
    names = [row["name"] for row in json.loads(judged.out)["rows"]]
    assert names.index("entropy per sample") == names.index("generative perplexity") + 1


def test_what_a_text_model_cannot_do_is_refused(undiffuse: Command, text_run: Path, reader: Path, digits_run: Path):
    def refused(model: Path, *words: object) -> Command:
        return undiffuse("sample", model, "-n", 1, "--out", "x", *words).refuses

    assert refused(text_run, "--length", 0)("length=0", "at least 1")
    assert refused(text_run, "--stride", 4)("stride=4", "more than 16 tokens")
    assert refused(digits_run, "--length", 4)("is for texts")
    assert refused(digits_run, "--temperature", 0.5)("continuous")
    assert refused(text_run, "--solver-option", "order=7")("order=7")
    assert refused(text_run, "--solver-option", "ordr=2")("has no option 'ordr'")
    assert refused(text_run, "--solver", "left-to-right")("model.causal=true")
    assert refused(reader, "--solver", "first-hitting")("solver=left-to-right")
    assert refused(reader, "--steps", 5)("steps=5", "one for each token")
    assert refused(reader, "--autoguide", text_run, "--guidance", 2)("from left to right")
    assert refused(reader, "--solver", "left-to-right", "--purity", 1)("token after token")
    assert refused(reader, "--top-k", 0)("top_k=0")
    assert undiffuse("train", "prose", "model.causal=true").refuses("objective=autoregressive")
    assert undiffuse("train", "prose", "objective=autoregressive").refuses("model.causal=true")
    assert undiffuse("evaluate", text_run, "--reference", text_run, "--out", "x").refuses("does not read from left")
    assert undiffuse("evaluate", text_run, "--reference", "nowhere", "--out", "x").refuses("no config.json")
    assert undiffuse("evaluate", digits_run, "--reference", reader, "--out", "x").refuses("reference judges texts")
    assert undiffuse("papers", "principles", "--data", "x").refuses("makes its own data")

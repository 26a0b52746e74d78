"""A study: what it tells of itself, and that a stopped one leaves what there was."""

from __future__ import annotations

import json

import pytest

from undiffuse.cli import main
from undiffuse.events import Finished, Message, silent
from undiffuse.papers import catalogue
from undiffuse.papers.catalogue import PAPERS, find_paper, load_reproduction
from undiffuse.papers.study import Part, Study, drop, run_parts, short
from undiffuse.report.measures import Measure


def part(title: str, value: float = 1.0) -> Part:
    measures = [Measure("figure", value, asked=2.0), Measure("other", 5.0)]
    return Part(title=title, text="How.", columns=("a", "b"), rows=[("x", "1")], numeric=(1,), measures=measures)


def test_every_paper_can_be_loaded_and_takes_the_same_arguments():
    import inspect

    for paper in PAPERS.values():
        names = set(inspect.signature(load_reproduction(paper)).parameters)
        assert {"quick", "seed", "listener", "keep"} <= names, paper.title


def test_an_unknown_paper_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'princples' is unknown.*principles"):
        find_paper("princples")


def test_a_study_counts_what_reaches_what_is_asked():
    study = Study((part("one"), part("two", 3.0)), {"seed": 0})
    assert study.tally() == "1 of 2 figures that something is asked of reach it."
    assert Study((), {}).tally() == "Nothing is asked of these figures."
    page = study.report("principles", PAPERS["principles"]).html()
    assert "short by 50.0 %" in page and "undiffuse papers principles" in page
    told = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert [measure["met"] for measure in told["measures"]] == [True, None, False, None]


def test_parts_are_handed_over_one_by_one():
    kept, heard = [], []

    def fails() -> Part:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        run_parts("x", [("a", lambda: part("a")), ("b", fails)], {}, silent, kept.append)
    assert [len(study.parts) for study in kept] == [1]
    study = run_parts("x", [("a", lambda: part("a")), ("b", lambda: part("b"))], {}, heard.append, drop)
    assert [p.title for p in study.parts] == ["a", "b"]
    assert [e.text for e in heard if isinstance(e, Message)] == ["a", "b"] and isinstance(heard[-1], Finished)


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0"), (0.0123, "0.012"), (1e-4, "1.0e-04"), (2e4, "2.0e+04")]
)
def test_short_figures(value, text):
    assert short(value) == text


def test_the_command_writes_after_each_part(tmp_path, monkeypatch, capsys):
    def reproduce(*, quick, seed, listener, keep):
        assert quick and seed == 3

        def stops() -> Part:
            assert "How." in (tmp_path / "out" / "report.html").read_text()
            raise KeyboardInterrupt

        return run_parts("x", [("a", lambda: part("a")), ("b", stops)], {}, listener, keep)

    monkeypatch.setattr(catalogue, "load_reproduction", lambda paper: reproduce)
    assert main.run(["papers", "principles", "--quick", "--seed", "3", "--out", str(tmp_path / "out")]) == 130
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["parts"]) == 1


def test_the_command_hands_on_what_a_paper_takes_and_refuses_the_rest(tmp_path, monkeypatch, capsys):
    heard = {}

    def reproduce(*, quick, seed, listener, keep, seeds=1, folder=None):
        heard.update(seeds=seeds, folder=folder)
        return run_parts("x", [("a", lambda: part("a"))], {}, listener, keep)

    monkeypatch.setattr(catalogue, "load_reproduction", lambda paper: reproduce)
    out = tmp_path / "out"
    assert main.run(["papers", "mmd-ddm", "--seeds", "2", "--out", str(out)]) == 0
    assert heard == {"seeds": 2, "folder": out / "networks"}
    assert main.run(["papers", "mmd-ddm", "--out", str(out)]) == 0 and heard["seeds"] == 1
    assert main.run(["papers", "mmd-ddm", "--data", "x.txt", "--out", str(out)]) != 0
    assert "--data x.txt has no use for mmd-ddm, which makes its own data" in " ".join(capsys.readouterr().err.split())


def test_the_command_lists_and_refuses(tmp_path, capsys):
    assert main.run(["papers", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["papers"]) == set(PAPERS)
    assert main.run(["papers", "nothing"]) != 0
    assert "unknown; choose one of principles" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "file").write_text("")
    assert main.run(["papers", "principles", "--out", str(tmp_path / "file" / "x")]) == 1
    assert "cannot make the out folder" in " ".join(capsys.readouterr().err.split())

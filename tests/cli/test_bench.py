"""`undiffuse bench` on a folder of small scripts: one that works, one that fails, one that is no benchmark."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from undiffuse.cli import bench
from undiffuse.cli.main import run

GOOD = '''"""Measures nothing.

More words.
"""
import sys

from undiffuse.report.measures import Measure, Results, publish, script_options

asked = script_options(__doc__).parse_args()
print("half way", file=sys.stderr)
publish(Results("Nothing", "Quick: " + str(asked.quick), (Measure("part", 0.25, asked=0.5),), {}), asked.out)
'''
BAD = '''"""Fails."""
from undiffuse.report.measures import publish  # publish( is never reached
raise RuntimeError("no such luck")
'''
SILENT = '''"""Ends well but says nothing."""
import undiffuse.report.measures  # never calls publish(
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "scripts"
    place.mkdir()
    for name, text in {"a_bad": BAD, "b_good": GOOD, "helper": "x = 1\n"}.items():
        (place / f"{name}.py").write_text(text, encoding="utf-8")
    return place


def test_a_failing_script_does_not_lose_the_others(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "new" / "bench.html"
    assert run(["bench", "--folder", str(folder), "--out", str(page)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"met  part: 0.25, asked ≤ 0.5", said)
    assert "half way" in said and "a_bad failed" in said
    html = page.read_text(encoding="utf-8")
    assert "no such luck" in html and "Quick: False" in html and "exit code 1" in html


def test_one_script_by_name_as_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "bench.html"
    words = ["bench", "b_good.py", "--quick", "--json", "--folder", str(folder), "--out", str(page)]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page"] == str(page)
    assert list(found["scripts"]) == ["b_good"]
    assert found["scripts"]["b_good"]["summary"] == "Quick: True"
    assert found["scripts"]["b_good"]["measures"][0]["value"] == 0.25


def test_a_script_that_publishes_nothing_has_failed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "silent.py").write_text(SILENT, encoding="utf-8")
    assert run(["bench", "silent", "--folder", str(folder), "--out", str(tmp_path / "b.html")]) == 1
    assert "publish(results, out)" in capsys.readouterr().out


def test_list_names_the_benchmarks_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "--list", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == ["a_bad   Fails.", "b_good  Measures nothing."]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_unknown_name_is_refused_before_anything_runs(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "b_god", "--folder", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "there is no benchmark 'b_god'" in said and "Did you mean 'b_good'?" in said


def test_no_scripts_says_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "--folder", str(tmp_path)]) == 1
    assert "part of the source repository" in capsys.readouterr().err


def test_the_scripts_of_this_repository_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    scripts = bench.find_scripts(bench.find_folder(None))
    assert {"import_time", "sampler_cost", "training_step", "peers_training", "throughput"} <= set(scripts)
    assert not {"classifier_cifar10", "peer_loops"} & set(scripts)
    assert all(bench.first_line(path) for path in scripts.values())


def test_an_interruption_keeps_what_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    real = bench.run_script

    def interrupted(name: str, *rest: object) -> object:
        if name == "b_good":
            raise KeyboardInterrupt
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "run_script", interrupted)
    page = tmp_path / "bench.html"
    assert run(["bench", "--folder", str(folder), "--out", str(page)]) == 130
    assert f"1 of 2 benchmarks are done; {page} holds them." in capsys.readouterr().err
    html = page.read_text(encoding="utf-8")
    assert "no such luck" in html and "stopped before: b_good" in html


@pytest.mark.parametrize("deaf", [False, True])
def test_a_script_does_not_outlive_an_interruption(deaf: bool, monkeypatch: pytest.MonkeyPatch):
    started: list[subprocess.Popen[str]] = []

    def tell(line: str) -> None:
        raise KeyboardInterrupt

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(bench, "_GRACE", 0.2)
    monkeypatch.setattr(subprocess, "Popen", Watched)
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    code = f"{ignoring}import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        bench._call([bench.sys.executable, "-c", code], tell)
    assert started[0].returncode == (-9 if deaf else -15)


def test_facts_do_without_git(tmp_path: Path):
    found = bench.facts(tmp_path)
    assert "commit" not in found
    assert {"undiffuse", "torch", "python", "processors", "date"} <= set(found)

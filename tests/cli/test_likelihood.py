"""`undiffuse likelihood`: figures, files, and one line for what cannot be answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from undiffuse.cli.main import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(["likelihood", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_digits_have_bits_per_dimension_and_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits", "-n", "4", "--divergence", "hutchinson", "--integrator", "heun", "--steps", "2", "--probes", "2")
    code, out, err = asked(capsys, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["n"], found["dims"], found["units"], found["evaluations"]) == (4, 64, "levels", 4)
    assert len(found["log_p"]) == len(found["log_p_error"]) == 4
    assert found["backward_passes"] == 8
    assert "held out of training" in err
    assert json.loads(Path(found["likelihood"]).read_text())["log_p"] == found["log_p"]
    page = Path(found["report"]).read_text()
    assert "most likely items" in page
    assert "least likely items" in page
    assert page.count("data:image/png") >= 3
    again = json.loads(asked(capsys, *words, "--json", "--out", "there")[1])
    assert again["log_p"] == found["log_p"]
    assert Path("there/likelihood.html").is_file()


def test_the_bound_of_given_data(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("new.npy", np.random.default_rng(0).integers(0, 17, (6, 8, 8)).astype(np.uint8))
    code, out, err = asked(capsys, "digits", "new.npy", "--method", "elbo", "--draws", "2")
    assert code == 0, err
    assert "6 of 6 items" in out
    assert "bits per dimension" in out
    assert "upper bound" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits", "--divergence", "exakt"), "Did you mean 'exact'?"),
        (("digits", "--steps", "0"), "steps=0 must be at least 1"),
        (("digits", "--t-min", "2"), "t_min=2.0 must lie from 0.001"),
        (("digits", "moons"), "items of shape (2,) but the model expects (1, 8, 8)"),
        (("digits", "-n", "0"), "n=0 must be at least 1"),
        (("nothing",), "nothing"),
        (("digits", "--tolerance", "0"), "--tolerance 0 must be positive"),
        (("digits", "--steps", "5"), "--steps has no effect here, it belongs to --integrator heun; leave it out"),
        (("digits", "--grid", "t"), "--grid has no effect here, it belongs to --integrator heun"),
        (("digits", "--integrator", "heun", "--tolerance", "1e-4"), "belongs to --integrator dormand-prince"),
        (
            ("digits", "--method", "elbo", "--divergence", "exact"),
            "--divergence has no effect here, it belongs to --met",
        ),
        (("digits", "--method", "ode", "--draws", "16"), "--draws has no effect here, it belongs to --method elbo"),
        (("digits", "--levels", "9"), "--levels has no effect here, it belongs to --method elbo"),
        (("digits", "--divergence", "exact", "--probes", "2"), "it belongs to --divergence hutchinson"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, err = asked(capsys, *words)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_whole_numbers_likelier_than_certain_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits", "-n", "4", "--integrator", "heun", "--steps")
    code, out, _ = asked(capsys, *words, "1")
    assert code == 0 and "bits per dimension cannot be" in out and "take more steps of heun" in out
    code, out, _ = asked(capsys, *words, "8")
    assert code == 0 and "cannot be" not in out

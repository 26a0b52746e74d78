"""What sub-commands say beside their results."""

from __future__ import annotations

import warnings

import pytest

from undiffuse.cli.output import Output


def test_a_warning_is_said_once_from_wherever_it_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    Output()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for text in ("too few rows;\ngive more", "too few rows; give more", "another one"):
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().out.splitlines() == ["warning: too few rows; give more", "warning: another one"]

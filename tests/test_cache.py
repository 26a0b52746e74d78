from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.cache import ContentHash, cache_folder, content_hash, load_or_make

_X = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({"x": _X + 1e-7}, {"a": 1}),
        ({"x": _X.double()}, {"a": 1}),
        ({"x": _X.view(3, 2)}, {"a": 1}),
        ({"y": _X}, {"a": 1}),
        ({"x": _X, "y": _X}, {"a": 1}),
        ({"x": _X}, {"a": 2}),
        ({"x": _X}, {"b": 1}),
    ],
)
def test_whatever_differs_makes_another_name(tensors, config):
    assert content_hash(tensors, config) != content_hash({"x": _X}, {"a": 1})


def test_layout_order_and_kind_of_array_play_no_part():
    expected = content_hash({"a": _X, "b": _X + 1}, {"one": 1, "two": [2]})
    assert len(expected) == 40
    assert content_hash({"b": _X + 1, "a": _X}, {"two": [2], "one": 1}) == expected
    assert content_hash({"a": _X.T.contiguous().T, "b": (_X + 1).numpy()}, {"one": 1, "two": [2]}) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
def test_any_dtype_has_a_name(dtype):
    x = torch.tensor([0, 1]).to(dtype)
    assert content_hash({"x": x}, {}) == content_hash({"x": x.clone()}, {}) != content_hash({"x": 1 - x.int()}, {})


def test_a_hash_can_be_fed_piece_by_piece():
    state = ContentHash({"a": 1})
    before = state.name()
    state.add("0", _X[:1])
    state.add("1", _X[1:])
    assert state.name() == content_hash({"0": _X[:1], "1": _X[1:]}, {"a": 1}) != before


def test_options_must_be_plain():
    with pytest.raises(TypeError, match="JSON"):
        content_hash({}, {"path": Path("x")})


def test_what_was_made_is_made_once_and_comes_back_bit_for_bit(tmp_path: Path):
    calls = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": _X.T, "y": torch.tensor([1.5], dtype=torch.bfloat16)}

    path = tmp_path / "deep" / "name.safetensors"
    for _ in range(3):
        found = load_or_make(path, make)
        assert torch.equal(found["x"], _X.T) and found["y"].dtype == torch.bfloat16
    assert len(calls) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["name.safetensors"]


def test_a_damaged_file_is_made_again_and_said_so(tmp_path: Path):
    path = tmp_path / "name.safetensors"
    load_or_make(path, lambda: {"x": _X})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="is damaged"):
        found = load_or_make(path, lambda: {"x": _X + 1})
    assert torch.equal(found["x"], _X + 1)
    assert torch.equal(load_or_make(path, dict)["x"], _X + 1)


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="set UNDIFFUSE_CACHE"):
        assert torch.equal(load_or_make(tmp_path / "file" / "x.safetensors", lambda: {"x": _X})["x"], _X)


def test_nothing_is_kept_of_a_failure(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        load_or_make(tmp_path / "x.safetensors", lambda: {"x": _X * (1 // 0)})
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("UNDIFFUSE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "undiffuse"


def test_arrays_need_not_be_contiguous():
    x = np.arange(12.0).reshape(3, 4)[:, ::2]
    assert content_hash({"x": x}, {}) == content_hash({"x": x.copy()}, {})

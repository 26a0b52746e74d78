"""Text: units, vocabularies, windows, and text that a model cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undiffuse.data import DataOptions, TextDataset, decode_text, encode_text, open_data, split
from undiffuse.data.text import BYTES
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

TEXT = "One fish.\nTwo fish.\nRed fish, blue fish.\n"


def opened(source: Path | str, spec: DataSpec | None = None, **options) -> TextDataset:
    dataset = open_data(str(source), DataOptions(**{"length": 8, **options}), spec)
    assert isinstance(dataset, TextDataset)
    return dataset


def written(tmp_path: Path, content: str | bytes, name: str = "a.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("units", ["characters", "bytes"])
def test_every_window_reads_as_that_part_of_the_text(tmp_path: Path, units: str):
    dataset = opened(written(tmp_path, TEXT), units=units)
    assert len(dataset) == len(TEXT) - 8 + 1
    batch = dataset.batch(torch.arange(len(dataset)))
    assert batch["x"].dtype == torch.int64
    assert dataset.spec.shape == (8,)
    for i, row in enumerate(batch["x"]):
        assert decode_text(row, dataset.spec) == TEXT[i : i + 8]
    assert batch["index"].tolist() == list(range(len(dataset)))


def test_characters_are_the_sorted_ones_of_the_text(tmp_path: Path):
    dataset = opened(written(tmp_path, "\ufeff" + "aß→b" * 4))
    assert dataset.spec.vocabulary == ("a", "b", "ß", "→")
    assert opened(written(tmp_path, TEXT), units="bytes").spec.vocabulary == BYTES


@pytest.mark.parametrize("content", [b"\xff\xfe\x00abc" * 9, b"a\0b" * 9])
def test_what_is_not_text_is_read_as_bytes(tmp_path: Path, content: bytes):
    dataset = opened(written(tmp_path, content))
    assert dataset.spec.vocabulary == BYTES
    assert bytes(dataset.tokens.tolist()) == content


def test_characters_asked_of_bytes_are_refused_with_the_place(tmp_path: Path):
    with pytest.raises(DataError, match="byte 0xff at offset 3"):
        opened(written(tmp_path, b"abc\xff" * 9), units="characters")


def test_the_end_is_held_out_in_windows_that_do_not_overlap(tmp_path: Path):
    train, held_out = split(opened(written(tmp_path, TEXT * 10)), 0.25)
    assert isinstance(train, TextDataset) and isinstance(held_out, TextDataset)
    cut = len(TEXT * 10) - round(len(TEXT * 10) * 0.25)
    assert len(train) == cut - 8 + 1
    batch = held_out.batch(torch.arange(len(held_out)))
    assert "".join(decode_text(row, held_out.spec) for row in batch["x"]) == (TEXT * 10)[cut:][: 8 * len(held_out)]
    assert batch["index"].tolist() == [cut + 8 * i for i in range(len(held_out))]
    assert len(TEXT * 10) - cut - 8 * len(held_out) < 8


def test_nothing_may_be_held_out_but_no_part_may_be_too_short(tmp_path: Path):
    dataset = opened(written(tmp_path, TEXT))
    assert [len(part) for part in split(dataset, 0)] == [len(dataset), 0]
    for holdout in (0.1, 0.9):
        with pytest.raises(DataError, match="shorter than one item of 8"):
            split(dataset, holdout)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_encoding_and_decoding_are_inverse(text: str):
    spec = DataSpec(kind="tokens", shape=(8,), vocabulary=tuple(sorted(set(text))))
    assert decode_text(encode_text(text, spec), spec) == text
    in_bytes = DataSpec(kind="tokens", shape=(8,), vocabulary=BYTES)
    assert decode_text(encode_text(text, in_bytes), in_bytes) == text


def test_a_mask_reads_as_a_mark():
    spec = DataSpec(kind="tokens", shape=(3,), vocabulary=("a", "b"))
    assert decode_text(torch.tensor([0, 2, 1]), spec) == "a_b"
    assert decode_text(torch.tensor([97, 256]), DataSpec(kind="tokens", shape=(2,), vocabulary=BYTES), "?") == "a?"


def test_characters_outside_of_the_vocabulary_are_named_with_their_place(tmp_path: Path):
    spec = opened(written(tmp_path, TEXT)).spec
    assert len(opened(written(tmp_path, TEXT[::-1]), spec)) > 0
    with pytest.raises(DataError, match=r"2 character\(s\) .* first 'é' at line 2, column 4"):
        opened(written(tmp_path, "One fish.\nTwoé fishé."), spec)


def test_text_for_another_kind_of_model_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="kind 'vector'"):
        opened(written(tmp_path, TEXT), DataSpec(kind="vector", shape=(2,)))
    with pytest.raises(DataError, match="not made of characters"):
        opened(written(tmp_path, TEXT), DataSpec(kind="tokens", shape=(2,), vocabulary=("One", "fish")))


def test_empty_short_and_too_large_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="is empty"):
        opened(written(tmp_path, ""))
    with pytest.raises(DataError, match="has 3 tokens but one item takes 8"):
        opened(written(tmp_path, "abc"))
    monkeypatch.setattr("undiffuse.data.memory.free_bytes", lambda: 500)
    with pytest.raises(DataError, match="of memory"):
        opened(written(tmp_path, TEXT))


def test_the_limit_counts_characters(tmp_path: Path):
    assert len(opened(written(tmp_path, "ß" * 100), limit=20).tokens) == 20


def test_an_unknown_suffix_is_text_when_units_are_given(tmp_path: Path):
    path = written(tmp_path, TEXT, "a.xyz")
    with pytest.raises(DataError, match=r"unknown suffix '\.xyz'.*data\.units"):
        opened(path)
    assert len(opened(path, units="bytes").tokens) == len(TEXT)


def test_the_prose_is_plain_and_does_not_repeat_itself():
    dataset = opened("prose", length=64)
    assert 12_000 < len(dataset.tokens) < 20_000
    assert max(map(ord, dataset.spec.vocabulary)) < 128
    text = decode_text(dataset.tokens, dataset.spec)
    sentences = [s.strip() for s in text.replace("\n", " ").split(". ") if len(s.strip()) > 30]
    assert len(set(sentences)) == len(sentences)
    assert any("distinct of a vocabulary" in line for line in dataset.summary())

"""Text by tokenizers of Hugging Face: round trips, what travels with a model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from undiffuse.data import DataOptions, open_data
from undiffuse.data.text import decode_text, encode_text
from undiffuse.errors import DataError
from undiffuse.models.model import Model
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.run import choose

TEXT = "the cat sat on the mat. the dog sat on the log; wo der Hund saß. " * 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE, with special tokens of its own, a mask among them."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<mask>"]
    made.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made.enable_truncation(4)  # what a file says of cutting and filling up is for batches of its own model
    made.enable_padding(length=4)
    made.save(str(path := tmp_path_factory.mktemp("bpe") / "tokenizer.json"))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_text_is_read_in_tokens_and_written_back(text: Path, tokenizer: Path):
    data = open_data(str(text), DataOptions(tokenizer=str(tokenizer), length=16))
    count = data.spec.categories
    assert data.spec.vocabulary[:2] == ("<s>", "<mask>")
    assert len(data.tokens) < len(TEXT) / 2  # far fewer than characters, and not cut at 4
    assert decode_text(data.tokens, data.spec) == TEXT
    assert "tokens" in data.summary()[0] and any("id 1" in line and f"id {count}" in line for line in data.summary())
    again = DataSpec.from_json(data.spec.to_json())
    assert again == data.spec
    ids = encode_text("the dog saß", again)
    assert decode_text(ids, again) == "the dog saß"
    gap = torch.cat((ids[:1], torch.tensor([count]), ids[1:]))
    assert decode_text(gap, again) == "the_ dog saß"


def test_the_model_carries_its_tokenizer(text: Path, tokenizer: Path, tmp_path: Path):
    words = ["model.width=16", "model.depth=1", "model.heads=2", "data.length=8", f"data.tokenizer={tokenizer}"]
    recipe, data = choose(str(text), "text", [words])
    Model(build_denoiser(recipe, data.spec).eval(), data.spec).save(tmp_path / "model")
    tokenizer_text, _ = tokenizer.read_text(encoding="utf-8"), tokenizer.rename(tokenizer.with_suffix(".gone"))
    try:
        from undiffuse.models import load

        model = load(tmp_path / "model")
        texts = model.text(model.sample(3, prefix="the dog"))
        assert all(line.startswith("the dog") for line in texts)
        assert torch.equal(open_data(str(text), spec=model.spec).tokens, data.tokens)
    finally:
        tokenizer.write_text(tokenizer_text, encoding="utf-8")


def test_unknown_words_are_counted(text: Path, tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "the": 1, "cat": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    data = open_data(str(text), DataOptions(tokenizer=str(tmp_path), length=4))
    unknown = int((data.tokens == 0).sum())
    assert f"{unknown} of {len(data.tokens)} tokens are ?" in data.summary()[-1]
    assert data.spec.vocabulary == ("?", "the", "<unused 2>", "cat")


def test_padded_rows_have_no_bound(text: Path, tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "the": 1, "cat": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    small = ["model.width=16", "model.depth=1", "model.heads=2", "data.length=4", f"data.tokenizer={tmp_path}"]
    recipe, data = choose(str(text), "text", [small])
    model = Model(build_denoiser(recipe, data.spec).eval(), data.spec)
    assert model.elbo(torch.tensor([[1, 2, 1, 2], [2, 0, 1, 2]])).mean > 0
    for row in ([1, 2, 0, 0], [0, 1, 2, 1]):
        with pytest.raises(ValueError, match=r"1 of 2 row\(s\) begin or end in '\[PAD\]'.*one length at a time"):
            model.elbo(torch.tensor([[1, 2, 1, 2], row]))


def test_what_is_no_tokenizer_or_no_data_is_refused(text: Path, tokenizer: Path, tmp_path: Path):
    with pytest.raises(DataError, match="there is no tokenizer"):
        open_data(str(text), DataOptions(tokenizer=str(tmp_path / "missing")))
    with pytest.raises(DataError, match="is no tokenizer of Hugging Face"):
        open_data(str(text), DataOptions(tokenizer=str(text)))
    text.write_text(TEXT + "<mask>", encoding="utf-8")
    with pytest.raises(DataError, match="'<mask>' in it 1 time"):
        open_data(str(text), DataOptions(tokenizer=str(tokenizer)))
    with pytest.raises(ValueError, match="leave one out"):
        DataOptions(tokenizer="x", units="bytes")

"""Texts judged by models that read from left to right: ours, and those of Hugging Face."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.errors import CheckpointError
from undiffuse.metrics.evaluation import evaluate
from undiffuse.metrics.reference import CausalReference, PretrainedReference, open_reference
from undiffuse.metrics.text import sequence_entropy
from undiffuse.models.model import Model
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.run import choose

TINY = ("model.width=16", "model.depth=1", "model.heads=2", "data.length=16")
CAUSAL = (*TINY, "model.causal=true", "objective=autoregressive")


def model(*words: str) -> Model:
    recipe, data = choose("prose", "text", [list(words)])
    denoiser = build_denoiser(recipe, data.spec)
    for parameter in denoiser.backbone.leave.parameters():  # it starts at 0, where all texts are alike
        parameter.data = torch.full_like(parameter, 0.1) * torch.arange(len(parameter)).view(
            -1, *[1] * (parameter.ndim - 1)
        )
    return Model(denoiser.eval().requires_grad_(False), data.spec)


def test_our_reference_reads_tokens_as_they_are_and_texts_of_others_by_their_characters():
    judge = model(*CAUSAL)
    reference, x = CausalReference(judge), np.arange(40).reshape(2, 20) % 30
    found = reference.score(x, judge.spec)
    rows = torch.from_numpy(x)
    nats = [16 * judge.elbo(row[None, :16]).mean + 4 * judge.elbo(row[None, 16:]).mean for row in rows]
    assert found.nats == pytest.approx(nats) and found.tokens.tolist() == [20, 20]
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / 40))
    turned = DataSpec(kind="tokens", shape=(20,), vocabulary=judge.spec.vocabulary[::-1])
    assert reference.score(judge.spec.categories - 1 - x, turned).nats == pytest.approx(nats)
    with pytest.raises(ValueError, match="does not read from left to right"):
        CausalReference(model(*TINY))


def test_generative_perplexity_comes_with_the_entropy_and_a_temperature_trades_them(tmp_path: Path):
    judge = model(*CAUSAL)
    judge.save(tmp_path)
    options = {"metrics": "generative", "n": 64, "reference": tmp_path}
    plain, cool = (evaluate(judge, "prose", temperature=t, **options) for t in (1.0, 0.5))
    assert [row.name for row in plain.rows] == ["generative perplexity", "entropy per sample"]
    assert cool.rows[0].value < plain.rows[0].value and cool.rows[1].value < plain.rows[1].value
    x = judge.sample(64, temperature=1.0).numpy()
    assert plain.rows[1].value == pytest.approx(sequence_entropy(x))
    with pytest.raises(ValueError, match="--reference"):
        evaluate(judge, "prose", metrics="generative", n=64)


def test_entropy_of_sequences_sees_repetition_within_a_row():
    assert sequence_entropy(np.array([[0, 0], [1, 1]])) == 0.0
    assert sequence_entropy(np.array([[0, 1], [1, 1]])) == pytest.approx(0.5)


def test_a_folder_without_a_language_model_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no causal language model"):
        open_reference(tmp_path)


@pytest.mark.slow
def test_a_model_of_hugging_face_gives_its_own_loss(tmp_path: Path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    letters = Tokenizer(WordLevel({c: i for i, c in enumerate("abc?")}, unk_token="?"))
    letters.pre_tokenizer = Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?").save_pretrained(tmp_path)
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=6))
    network.requires_grad_(False).save_pretrained(tmp_path)
    spec = DataSpec(kind="tokens", shape=(8,), vocabulary=("c", "b", "a"))
    x = np.array([[0, 1, 2, 2, 1, 0, 0, 1], [2, 2, 2, 2, 2, 2, 2, 2]])
    found = PretrainedReference(str(tmp_path)).score(x, spec)
    ids = torch.from_numpy(2 - x)
    wanted = [
        sum(float(network.eval()(p, labels=p).loss) * (p.shape[1] - 1) for p in row[None].split(6, 1)) for row in ids
    ]
    assert found.nats == pytest.approx(wanted, rel=1e-5) and found.tokens.tolist() == [6, 6]

"""New codebooks: the encoder stays bit for bit, all codes are used, old denoisers are refused."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import undiffuse as ud
from tests.codecs.test_codecs import items, spec_of
from tests.codecs.test_quantised import SMALL, tiny_vqmodel, vq_of
from undiffuse.codecs import build_codec
from undiffuse.codecs.options import AutoencoderOptions, PretrainedCodecOptions
from undiffuse.config import resolve
from undiffuse.data import TensorDataset
from undiffuse.errors import CheckpointError, ConfigError, DataError
from undiffuse.metrics.codebook import codebook_health, perplexity
from undiffuse.models import Model
from undiffuse.models.codecs import load_codec, save_codec
from undiffuse.training.latents import start_codec
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.refit import rebuild, refit_codebook

SPEC = replace(spec_of("image"), range=None, classes=())


def data(n: int = 24) -> TensorDataset:
    return TensorDataset(data=items(SPEC, n), spec=SPEC)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_the_encoder_stays_bit_for_bit_and_the_rest_moves(rule: str) -> None:
    codec = vq_of("image", replace(SMALL, codebook=rule))  # type: ignore[arg-type]
    before = copy.deepcopy(codec.state_dict())
    found = refit_codebook(codec, data(), codes=7, train_steps=3, train_batch_size=8)
    after = found.codec.state_dict()
    assert all(torch.equal(before[key], codec.state_dict()[key]) for key in before)  # what was given is as it was
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("encoder."))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("decoder."))
    assert after["vectors"].shape == (7, 3) and found.codec.latent.categories == 7
    assert found.codec.latent.codebook == found.codec.identity() != codec.identity()
    assert found.rebuilt.usage == 1.0 and found.after is not None


def test_a_rebuilt_codebook_uses_all_codes_and_is_never_further_from_the_encodings() -> None:
    codec, given = vq_of("image"), data()
    new, clusters = rebuild(codec, given, 11)
    old, now = codebook_health(codec, given), codebook_health(new, given)
    assert now.usage == 1.0 and now.distance <= old.distance
    assert now.distance == pytest.approx(clusters.error, rel=1e-5)
    assert old.tokens == 24 * 24 and sum(old.counts) == old.tokens
    exact, lossless = rebuild(codec, data(1), 24)  # 24 different encodings
    assert lossless.error < 1e-12 and codebook_health(exact, data(1)).distance < 1e-10


def test_perplexity_counts_equal_shares() -> None:
    assert perplexity(torch.tensor([3, 3, 0, 3])) == pytest.approx(3.0)
    assert perplexity(torch.tensor([0, 5])) == pytest.approx(1.0)


def test_a_vqmodel_of_diffusers_is_refit_too(tmp_path: Path) -> None:
    codec = build_codec(PretrainedCodecOptions(path=str(tiny_vqmodel(tmp_path / "vq"))), SPEC)
    assert codec is not None
    found = refit_codebook(codec, data(), codes=30, train_steps=2, train_batch_size=8, out=tmp_path / "new")
    old, new = codec.state_dict(), found.codec.state_dict()
    assert all(torch.equal(old[k], new[k]) for k in old if k.startswith(("network.encoder.", "network.quant_conv.")))
    again = load_codec(tmp_path / "new")
    assert again.latent.categories == 30
    assert torch.equal(again.encode(data().data), found.codec.encode(data().data))


def test_code_vectors_that_the_data_do_not_use_can_be_dropped(tmp_path: Path) -> None:
    path = str(tiny_vqmodel(tmp_path / "vq"))
    whole = build_codec(PretrainedCodecOptions(path=path), SPEC)
    assert whole is not None
    words = ["codec.kind=pretrained", f"codec.path={path}", "codec.used_only=true"]
    codec = start_codec(resolve(Recipe, recipe_layer("vq-image"), words), data())
    assert codec is not None
    tokens = whole.encode(data().data)
    used = tokens.unique()
    assert codec.latent.categories == len(used) < whole.latent.categories
    assert torch.equal(used[codec.encode(data().data)], tokens)


def test_tokens_of_the_old_codec_do_not_go_with_the_new_one(tmp_path: Path) -> None:
    codec = vq_of("image")
    codec.seal()
    save_codec(codec, tmp_path / "old")
    refit_codebook(tmp_path / "old", data(), train_steps=0, out=tmp_path / "new")
    quick = {"steps": 2, "batch_size": 8, "preview_every": 0, "warmup": 1}
    words = ["model.width=16", "model.depth=1", "model.heads=2"]
    trained = ud.train(data(), "vq-image", out=tmp_path / "run", overrides=words, codec=str(tmp_path / "old"), **quick)
    model = trained.model
    assert model.spec.kind == "image" and model.state_spec.codebook == codec.identity()
    assert model.sample(2, steps=2).shape == (2, 3, 8, 12)
    with pytest.raises(ValueError, match="tokens changed their meaning"):
        Model(model.denoiser, model.spec, codec=load_codec(tmp_path / "new"))
    with pytest.raises(CheckpointError, match=r"another codebook.*codec\.path"):
        ud.train(
            data(), "vq-image", out=tmp_path / "other", overrides=words, codec=str(tmp_path / "new"),
            **quick, init=str(tmp_path / "run"),
        )  # fmt: skip
    shutil.copytree(tmp_path / "old", tmp_path / "kept")
    shutil.copytree(tmp_path / "new", tmp_path / "old", dirs_exist_ok=True)  # rebuilt in place: not what it began with
    with pytest.raises(CheckpointError, match="tokens numbers of another codebook"):
        ud.train(
            data(), "vq-image", out=tmp_path / "run", overrides=words, codec=str(tmp_path / "old"),
            **{**quick, "steps": 4},
        )  # fmt: skip
    shutil.copytree(tmp_path / "kept", tmp_path / "old", dirs_exist_ok=True)
    again = ud.train(
        data(), "vq-image", out=tmp_path / "run", overrides=words, codec=str(tmp_path / "old"), **{**quick, "steps": 4}
    )
    assert again.model.info["step"] == 4
    again.model.to(dtype=torch.bfloat16).save(tmp_path / "half")  # whose codebook is another by its rounding
    assert ud.load(tmp_path / "half").sample(1, steps=2).shape == (1, 3, 8, 12)
    weights = (tmp_path / "new" / "codec.safetensors").read_bytes()
    (tmp_path / "run" / "codec.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="tokens changed"):
        ud.load(tmp_path / "run")


def test_what_cannot_be_rebuilt_is_refused(tmp_path: Path) -> None:
    codec = vq_of("image")
    with pytest.raises(DataError, match="577 vectors was asked for, but there are 576"):
        refit_codebook(codec, data(), codes=577, train_steps=0)
    autoencoder = build_codec(AutoencoderOptions(width=4, halvings=1), SPEC)
    assert autoencoder is not None
    with pytest.raises(ConfigError, match="no codebook"):
        refit_codebook(autoencoder, data(), train_steps=0)
    broken = TensorDataset(data=items(SPEC, 4) * float("nan"), spec=SPEC)
    with pytest.raises(ValueError, match="not finite"):
        refit_codebook(codec, broken, train_steps=0)
    with pytest.raises(ConfigError, match="shape"):
        refit_codebook(codec, TensorDataset(data=torch.zeros(4, 3, 8, 8), spec=replace(SPEC, shape=(3, 8, 8))))
    with pytest.raises(ValueError, match="codes=1"):
        refit_codebook(codec, data(), codes=1)

"""Training on latents: the codec is trained first, data are encoded once, samples come back as data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import undiffuse as ud
from undiffuse.codecs.autoencoder import Autoencoder
from undiffuse.codecs.build import build_codec
from undiffuse.codecs.options import AutoencoderOptions, VQOptions
from undiffuse.codecs.vq import VQCodec
from undiffuse.data import DataOptions, TensorDataset, open_data
from undiffuse.errors import ConfigError
from undiffuse.events import Message
from undiffuse.noise import KeyedNoise
from undiffuse.spec import DataSpec
from undiffuse.training.latents import encode_data
from undiffuse.training.reconstruction import ReconstructionObjective, Reconstructor
from undiffuse.training.run import train

QUICK = {"steps": 4, "batch_size": 16, "preview_every": 4, "previews": 4, "warmup": 1}
PCA = ("codec.kind=pca", "codec.patch=2", "codec.share=1.0", "model.kind=unet", "model.channels=8")
AUTOENCODER = (
    "codec.kind=autoencoder", "codec.halvings=1", "codec.width=8", "codec.steps=6", "codec.batch_size=16",
    "model.kind=unet", "model.channels=8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latents"


@pytest.mark.parametrize("codec", [PCA, AUTOENCODER])
def test_a_latent_run_gives_samples_in_data_units(tmp_path: Path, codec: tuple[str, ...]) -> None:
    run = train("digits", out=tmp_path / "run", overrides=codec, **QUICK)
    model = run.model
    assert model.spec.shape == (1, 8, 8) and model.state_spec.shape[1:] == (4, 4)
    samples = model.sample(3, cond={"label": [0, 1, 2]})
    assert samples.shape == (3, 1, 8, 8) and float(samples.min()) >= 0 and float(samples.max()) <= 16
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_the_latents_that_are_sampled_are_those_of_the_data(tmp_path: Path) -> None:
    """With every component kept, encoding and decoding is the identity on data units."""
    model = train("digits", out=tmp_path / "run", overrides=PCA, **QUICK).model
    digits = open_data("digits").batch(torch.arange(20))["x"]
    data = model.spec.from_model(digits)
    torch.testing.assert_close(model.decode(model.encode(data)), data, atol=1e-3, rtol=0)  # of 16 grey levels


def test_a_second_run_finds_its_latents_in_the_cache(tmp_path: Path, cache: Path) -> None:
    train("digits", out=tmp_path / "one", overrides=PCA, **QUICK)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 2  # training part and held-out part
    train("digits", out=tmp_path / "two", overrides=PCA, **QUICK)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    train("digits", out=tmp_path / "three", overrides=(*PCA, "codec.fit_items=500"), **QUICK)
    assert len(list(cache.iterdir())) == 4


def test_tokens_are_kept_until_the_codebook_is_another(cache: Path) -> None:
    """By a hash of items, weights and code vectors: what is found again was not encoded again."""
    spec = DataSpec(kind="image", shape=(1, 4, 4), range=(0, 1))
    data = TensorDataset(data=torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), spec=spec)
    codec = build_codec(VQOptions(width=4, halvings=1, codes=5, channels=2), spec, seed=0)
    assert isinstance(codec, VQCodec)
    codec.eval().requires_grad_(False)

    def tokens_of(codec: VQCodec) -> torch.Tensor:
        return encode_data(codec, data, torch.device("cpu"), lambda event: None).data

    first = tokens_of(codec)
    assert first.dtype == torch.int64 and first.shape == (6, 4)
    found = codec.with_codebook(codec.codebook.clone()).eval()
    found.encode = None  # type: ignore[assignment, method-assign]
    assert torch.equal(tokens_of(found), first) and len(list(cache.iterdir())) == 1
    other = codec.with_codebook(codec.codebook.flip(0)).eval()
    assert torch.equal(tokens_of(other), 4 - first) and len(list(cache.iterdir())) == 2


def test_encoded_data_keep_labels_conditions_and_mirror_images(tmp_path: Path) -> None:
    spec = DataSpec(kind="image", shape=(1, 4, 4), range=(0, 1), classes=("cat", "dog"))
    data = TensorDataset(data=torch.rand(6, 1, 4, 4), spec=spec, labels=torch.arange(6) % 2, mirror=True)
    codec = Autoencoder(spec, AutoencoderOptions(width=4, halvings=1)).eval()
    latents = encode_data(codec, data, torch.device("cpu"), lambda event: None)
    assert len(latents) == 12
    given, made = data.batch(torch.tensor([2, 8])), latents.batch(torch.tensor([2, 8]))
    assert torch.equal(given["cond"]["label"], made["cond"]["label"])
    with torch.no_grad():
        torch.testing.assert_close(made["x"], codec.encode(given["x"]), atol=1e-6, rtol=0)


def test_pictures_that_cannot_be_read_while_encoding_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(30):
        Image.new("L", (8, 8), 8 * number).save(folder / f"{number:02}.bmp")
    damaged = folder / "07.bmp"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    said: list[str] = []
    train(
        folder,
        out=tmp_path / "run",
        overrides=(*PCA, "data.lazy=true"),
        listener=lambda event: said.append(event.text) if isinstance(event, Message) else None,
        **QUICK,
    )
    assert [line for line in said if "1 item(s) could not be read" in line and "07.bmp" in line]


def test_a_run_resumes_with_the_codec_it_trained(tmp_path: Path) -> None:
    """2 n steps = n steps, then the same call with 2 n: codec and denoiser come out bit for bit."""
    whole = train("digits", out=tmp_path / "whole", overrides=AUTOENCODER, **QUICK)
    folder = tmp_path / "parts"
    stopper = Stopper(after=3)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train("digits", out=folder, overrides=(*AUTOENCODER, "train.checkpoint_every=2"), listener=stopper, **QUICK)
    resumed = train("digits", out=folder, overrides=(*AUTOENCODER, "train.checkpoint_every=2"), **QUICK)
    for name in ("model.safetensors", "codec.safetensors"):
        assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


class Stopper:
    """A listener that fails after so many steps of the codec's training."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, event: object) -> None:
        if getattr(event, "task", "") == "train" and getattr(event, "done", 0) >= self.after:
            raise RuntimeError("stopped by the test")


def test_the_objective_is_the_evidence_bound_per_value() -> None:
    spec = DataSpec(kind="image", shape=(1, 4, 4), range=(0, 1))
    codec = Autoencoder(spec, AutoencoderOptions(width=4, halvings=1, channels=2))
    noise = KeyedNoise(0, range(5))
    x = KeyedNoise(1, range(5)).normal("data", 0, spec.shape)
    loss = ReconstructionObjective(kl=0.5).losses(Reconstructor(codec), {"x": x}, noise).per_sample
    mean, log_var = codec.encoder(x).chunk(2, dim=1)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    drawn = mean + q.stddev * noise.normal("data", 0, codec.latent.shape)
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    expected = 0.5 * (codec.decoder(drawn) - x).square().mean((1, 2, 3)) + 0.5 * divergence / 16
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_a_trained_autoencoder_reconstructs_held_out_digits(tmp_path: Path) -> None:
    """It must leave less than a tenth of the variance unexplained; a constant answer leaves all of it."""
    overrides = ("codec.kind=autoencoder", "codec.halvings=1", "codec.steps=400", "model.channels=8")
    model = train("digits", out=tmp_path / "run", overrides=overrides, **QUICK).model
    held_out = ud.data.split(open_data("digits", DataOptions()))[1]
    data = model.spec.from_model(held_out.batch(torch.arange(len(held_out)))["x"])
    error = (model.decode(model.encode(data)) - data).square().mean() / (data - data.mean(0)).square().mean()
    assert float(error) < 0.1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("codec.kind=pca", "codec.patch=3"), ("8 x 8", "data.size")),
        (("codec.kind=pretrained",), ("codec.path",)),
        (("codec.kind=pac",), ("pca",)),
    ],
)
def test_what_cannot_be_encoded_is_refused(tmp_path: Path, overrides: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        train("digits", out=tmp_path / "run", overrides=overrides, **QUICK)
    assert all(word in str(caught.value) for word in words)

"""Codecs: closed forms of PCA, shapes of every kind, and the way to JSON and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from undiffuse.codecs import Autoencoder, Codec, PatchPCA, build_codec, codec_from_json, codec_to_json
from undiffuse.codecs.options import (
    AutoencoderOptions,
    CodecOptions,
    NoCodecOptions,
    PCAOptions,
    PretrainedCodecOptions,
)
from undiffuse.codecs.pca import fit_pca
from undiffuse.errors import CheckpointError
from undiffuse.noise import KeyedNoise
from undiffuse.spec import DataSpec

SHAPES = {"signal": (2, 16), "image": (3, 8, 12), "volume": (1, 4, 8, 4), "video": (5, 3, 8, 4)}
SMALL = AutoencoderOptions(width=4, halvings=1, channels=2)


def spec_of(kind: str) -> DataSpec:
    return DataSpec(kind=kind, shape=SHAPES[kind], range=(0, 255), classes=("cat", "dog"))  # type: ignore[arg-type]


def items(spec: DataSpec, n: int = 40) -> Tensor:
    """Correlated items, so that some components matter more than others."""
    x = KeyedNoise(0, range(n)).normal("data", 0, spec.shape, torch.float64)
    return (x.cumsum(-1) / 3 + 0.2).float()


@pytest.mark.parametrize("kind", SHAPES)
def test_all_components_lose_nothing(kind: str) -> None:
    spec = spec_of(kind)
    x = items(spec)
    codec = build_codec(PCAOptions(patch=2, share=1.0), spec, x)
    assert codec is not None
    z = codec.encode(x)
    assert z.shape[1:] == codec.latent.shape
    assert codec.latent.classes == spec.classes and codec.latent.range is None
    torch.testing.assert_close(codec.decode(z), x, atol=2e-5, rtol=0)  # float32 sums over a patch


@pytest.mark.parametrize("kind", ["signal", "image", "volume", "video"])
def test_other_sizes_have_codes_too(kind: str) -> None:
    """Twice as long on the last axis; the shape that is promised is the shape that comes."""
    spec = spec_of(kind)
    for codec in (PatchPCA(spec, PCAOptions(patch=2), channels=3), build_codec(SMALL, spec)):
        assert codec is not None
        assert codec.code_shape(spec.shape) == codec.latent.shape
        wide = (*spec.shape[:-1], 2 * spec.shape[-1])
        z = codec.encode(torch.zeros(1, *wide))
        assert tuple(z.shape[1:]) == codec.code_shape(wide)
        assert tuple(codec.decode(z).shape[1:]) == wide
        with pytest.raises(ValueError, match="no multiple of 2"):
            codec.code_shape((*spec.shape[:-1], 5))
        with pytest.raises(ValueError, match="not what this codec codes"):
            codec.code_shape((7, *spec.shape))


def test_components_hold_the_variances_of_the_eigenvalues() -> None:
    """The lost variance is the sum of the eigenvalues left out, and components are uncorrelated."""
    spec = spec_of("image")
    x = items(spec, 200)
    codec = fit_pca(PCAOptions(patch=4, channels=5), spec, x)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(patches.T, correction=0)).flip(0)
    lost = (codec.decode(codec.encode(x)) - x).double().square().sum() / len(patches)
    torch.testing.assert_close(lost, eigenvalues[5:].sum(), rtol=1e-4, atol=0)
    code = codec.encode(x).movedim(1, 0).flatten(1).double()
    torch.testing.assert_close(torch.cov(code, correction=0), torch.diag(torch.diag(torch.cov(code, correction=0))),
                               atol=1e-4, rtol=0)  # fmt: skip
    assert float(code.square().mean()) == pytest.approx(1.0, abs=1e-4)


def test_distances_keep_their_proportions() -> None:
    """On one scale the code is an isometry of what is kept."""
    spec = spec_of("image")
    x = items(spec)
    codec = fit_pca(PCAOptions(patch=2, share=1.0), spec, x)
    ratio = torch.pdist(codec.encode(x).flatten(1)) / torch.pdist(x.flatten(1))
    assert float(ratio.max() / ratio.min()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_the_share_asked_for_is_kept(share: float) -> None:
    spec = spec_of("image")
    x = items(spec, 200)
    codec = fit_pca(PCAOptions(patch=2, share=share), spec, x)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(patches.T, correction=0)).flip(0)
    held = eigenvalues.cumsum(0) / eigenvalues.sum()
    kept = len(codec.basis)
    assert held[kept - 1] >= share and (kept == 1 or held[kept - 2] < share)


@pytest.mark.parametrize("kind", SHAPES)
def test_autoencoders_keep_shapes_and_calibrate(kind: str) -> None:
    spec = spec_of(kind)
    codec = build_codec(SMALL, spec, seed=3)
    assert isinstance(codec, Autoencoder)
    x = items(spec)
    codec.calibrate(x)
    with torch.no_grad():
        z = codec.encode(x)
        assert codec.decode(z).shape == x.shape
    per_channel = z.movedim(codec.latent.channel_axis + 1, 0).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(per_channel.std(1), torch.ones(2), atol=1e-3, rtol=0)


def test_fresh_weights_follow_from_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (build_codec(SMALL, spec_of("image"), seed=1) for _ in range(2))
    assert first is not None and second is not None
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_divergence_is_that_of_gaussians() -> None:
    spec = spec_of("image")
    codec = build_codec(SMALL, spec)
    assert isinstance(codec, Autoencoder)
    x = items(spec, 6)
    mean, log_var = codec.encoder(x).chunk(2, dim=1)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    told = codec.reconstruct(x, torch.zeros_like(mean))
    torch.testing.assert_close(told.divergence, expected)
    torch.testing.assert_close(told.x, codec.render(codec.code(x)))


@pytest.mark.parametrize("options", [PCAOptions(patch=2, channels=3), SMALL])
def test_what_comes_back_from_json_is_the_same_codec(options: CodecOptions) -> None:
    spec = spec_of("image")
    x = items(spec)
    codec = build_codec(options, spec, x)
    assert codec is not None
    codec.calibrate(x)
    again = codec_from_json(json.loads(json.dumps(codec_to_json(codec))), spec)
    again.load_state_dict(codec.state_dict())
    assert again.latent == codec.latent
    assert torch.equal(again.encode(x), codec.encode(x))


def test_there_may_be_no_codec() -> None:
    assert build_codec(NoCodecOptions(), spec_of("image")) is None


@pytest.mark.parametrize(
    ("options", "spec", "words"),
    [
        (PCAOptions(patch=5), spec_of("image"), ("5", "8 x 12", "data.size")),
        (PCAOptions(patch=2, channels=13), spec_of("image"), ("13", "12 values")),
        (PCAOptions(), DataSpec(kind="vector", shape=(8,)), ("vector", "codec=none")),
        (AutoencoderOptions(halvings=3), spec_of("image"), ("8 x 12", "multiple of 8")),
    ],
)
def test_what_does_not_fit_is_refused(options: CodecOptions, spec: DataSpec, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        build_codec(options, spec, items(spec) if spec.kind == "image" else torch.zeros(2, 8))
    assert all(word in str(caught.value) for word in words)


def tiny_vae(folder: Path) -> Path:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
    vae.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["model", "pipeline/vae"])
def test_a_diffusers_autoencoder_is_a_codec(tmp_path: Path, place: str) -> None:
    from diffusers import AutoencoderKL

    folder = tiny_vae(tmp_path / place)
    spec = spec_of("image")
    codec = build_codec(PretrainedCodecOptions(path=str(tmp_path / place.split("/")[0])), spec)
    assert isinstance(codec, Codec) and codec.latent.shape == (2, 4, 6)
    x = items(spec, 4)
    reference = AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        code = reference.encode(x).latent_dist.mode()
        torch.testing.assert_close(codec.encode(x), code * 0.5)
        torch.testing.assert_close(codec.decode(codec.encode(x)), reference.decode(code).sample)
    again = codec_from_json(json.loads(json.dumps(codec_to_json(codec))), spec)
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(x), codec.encode(x))


@pytest.mark.parametrize("content", [None, "{}", '{"_class_name": "UNet2DModel"}'])
def test_what_is_no_autoencoder_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "vae"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"codec\.path|autoencoder class"):
        build_codec(PretrainedCodecOptions(path=str(folder)), spec_of("image"))


def test_greyscale_does_not_fit_a_colour_autoencoder(tmp_path: Path) -> None:
    grey = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 255))
    with pytest.raises(ValueError, match=r"3 channels.*data\.channels=rgb"):
        build_codec(PretrainedCodecOptions(path=str(tiny_vae(tmp_path / "vae"))), grey)


def test_pca_is_a_projection() -> None:
    """Encoding what was decoded changes nothing, whatever was lost before."""
    spec = spec_of("image")
    x = items(spec)
    codec = fit_pca(PCAOptions(patch=4, channels=4), spec, x)
    assert isinstance(codec, PatchPCA)
    z = codec.encode(x)
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, atol=1e-4, rtol=0)

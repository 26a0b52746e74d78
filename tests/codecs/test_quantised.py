"""Codecs with a codebook: nearest codes, straight-through gradients, tokens on a grid, seals, VQModel of diffusers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.codecs.test_codecs import items, spec_of
from undiffuse.codecs import PretrainedVQ, VQCodec, build_codec, codec_from_json, codec_to_json
from undiffuse.codecs.options import PretrainedCodecOptions, VQOptions
from undiffuse.codecs.quantised import check_codebook, nearest
from undiffuse.errors import CheckpointError
from undiffuse.networks.convolution import SpatialAttention
from undiffuse.noise import KeyedNoise

SMALL = VQOptions(width=4, halvings=1, channels=3, codes=11)
GRIDS = {"signal": (8,), "image": (4, 6), "volume": (2, 4, 2), "video": (5, 4, 2)}


def vq_of(kind: str, options: VQOptions = SMALL) -> VQCodec:
    codec = build_codec(options, spec_of(kind), seed=1)
    assert isinstance(codec, VQCodec)
    return codec.eval().requires_grad_(False)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return KeyedNoise(seed, range(shape[0])).normal("data", 0, shape[1:], dtype)


@pytest.mark.parametrize("kind", GRIDS)
def test_tokens_lie_on_the_grid_of_the_smaller_axes(kind: str) -> None:
    codec, x = vq_of(kind), items(spec_of(kind), 6)
    z = codec.encode(x)
    assert codec.latent.kind == "tokens" and codec.latent.grid == GRIDS[kind] and codec.latent.categories == 11
    assert codec.latent.classes == codec.data.classes
    assert z.shape == (6, *codec.latent.shape) and z.dtype == torch.int64 and int(z.min()) >= 0 and int(z.max()) < 11
    assert codec.decode(z).shape == x.shape


@pytest.mark.parametrize("kind", GRIDS)
def test_attention_stands_at_the_coarsest_size_and_begins_as_the_identity(kind: str) -> None:
    spec, options = spec_of(kind), replace(SMALL, blocks=2, attention=4)
    codec, x = build_codec(options, spec), items(spec, 2)
    assert isinstance(codec, VQCodec)
    x = x.flatten(0, 1) if kind == "video" else x
    code = codec.code(x)
    found, decoded = code.detach(), codec.render(code)
    (decoded.square().sum() + code.square().sum()).backward()
    sizes = [*codec.encoder.blocks, *codec.decoder.blocks]
    layers = [[type(layer).__name__ for layer in size] for size in sizes]
    plain, attending = ["ResidualBlock"] * 2, ["ResidualBlock", "SpatialAttention"] * 2
    assert layers == [plain, attending, attending, plain]
    shown = [layer for size in sizes for layer in size if isinstance(layer, SpatialAttention)]
    assert all(bool(layer.attention.out.weight.grad.abs().sum() > 0) for layer in shown)
    for layer in shown:
        torch.nn.init.normal_(layer.attention.out.weight)
    assert not torch.allclose(codec.code(x), found, atol=1e-3)
    for size in sizes:
        for at in reversed([at for at, layer in enumerate(size) if isinstance(layer, SpatialAttention)]):
            del size[at]
    torch.testing.assert_close(codec.code(x).detach(), found)


def test_a_codec_of_before_there_was_attention_is_read_as_it_was() -> None:
    codec, x = vq_of("image"), items(spec_of("image"), 2)
    fields = codec_to_json(codec)
    assert fields["options"].pop("attention") == 0
    again = codec_from_json(json.loads(json.dumps(fields)), codec.data)
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(x), codec.encode(x))
    with pytest.raises(ValueError, match="the 8 channels of the coarsest size do not split into attention=3 heads"):
        replace(SMALL, attention=3)


def test_tokens_follow_each_other_frame_by_frame_and_row_by_row() -> None:
    """Token (f, i, j) is the code nearest to the encoding of frame f at row i and column j."""
    codec, x = vq_of("video"), items(spec_of("video"), 2)
    z = codec.encode(x).unflatten(1, codec.latent.grid)
    code = codec.code(x[1, 3][None])[0]  # (d, 4, 2)
    for i in range(4):
        for j in range(2):
            assert int(z[1, 3, i, j]) == int((codec.codebook - code[:, i, j]).square().sum(1).argmin())
    vectors = codec.codebook[z[1, 3]].movedim(-1, 0)[None]
    torch.testing.assert_close(codec.decode(codec.encode(x))[1, 3], codec.render(vectors)[0], atol=1e-5, rtol=0)


def test_the_nearest_code_is_that_of_float64_distances_also_far_from_zero() -> None:
    codes, vectors = normal(0, 50, 7) + 300.0, normal(1, 400, 7) + 300.0
    exact = torch.cdist(vectors.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = nearest(vectors, codes)
    best = exact.min(1).values
    # Squares of centred float32 numbers below 50 carry errors below 50 * 7 * 2^-23.
    assert float((exact.gather(1, chosen[:, None])[:, 0].square() - best.square()).max()) < 1e-4
    assert torch.equal(nearest(codes, codes), torch.arange(50))  # a code vector is its own nearest
    assert nearest(vectors.view(4, 100, 7), codes).shape == (4, 100)


def test_gradients_pass_straight_through() -> None:
    """The value is that of the code, the gradient that with respect to the code's copy."""
    codec = vq_of("image")
    z = normal(2, 5, 24, 3).requires_grad_(True)
    told = codec.quantise(z)
    assert torch.equal(told.chosen, codec.codebook[told.numbers])
    torch.testing.assert_close(told.passed, told.chosen, atol=1e-6, rtol=0)
    weight = normal(3, 5, 24, 3)
    (at_z,) = torch.autograd.grad((told.passed.square() * weight).sum(), z)
    copy = told.passed.detach().requires_grad_(True)
    (at_code,) = torch.autograd.grad((copy.square() * weight).sum(), copy)
    assert torch.equal(at_z, at_code)


def test_quantising_what_is_quantised_changes_nothing() -> None:
    codec = vq_of("image")
    told = codec.quantise(normal(4, 5, 24, 3))
    assert torch.equal(codec.quantise(told.chosen).numbers, told.numbers)


def test_a_codec_comes_back_from_json_sealed() -> None:
    codec, x = vq_of("image"), items(spec_of("image"), 4)
    codec.seal()
    again = codec_from_json(json.loads(json.dumps(codec_to_json(codec))), codec.data)
    again.load_state_dict(codec.state_dict())
    assert isinstance(again, VQCodec) and again.latent == codec.latent and codec.latent.codebook
    assert torch.equal(again.encode(x), codec.encode(x))
    again.check_seal()
    again.vectors[0] += 0.1
    with pytest.raises(CheckpointError, match="tokens changed"):
        again.check_seal()


def test_a_denoiser_of_other_tokens_is_refused() -> None:
    codec = vq_of("image")
    codec.seal()
    check_codebook(codec.latent, codec)
    other = codec.with_codebook(codec.codebook.flip(0))
    assert torch.equal(other.encoder.enter.weight, codec.encoder.enter.weight)  # type: ignore[arg-type]
    other.seal()
    with pytest.raises(ValueError, match="tokens changed their meaning"):
        check_codebook(codec.latent, other)
    smaller = codec.with_codebook(codec.codebook[:5])
    with pytest.raises(ValueError, match="5 code vectors"):
        check_codebook(codec.latent, smaller)


def test_encodings_that_are_not_finite_are_refused() -> None:
    codec, x = vq_of("image"), items(spec_of("image"), 2)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        codec.encode(x)


@pytest.mark.parametrize(
    ("change", "words"), [({"codes": 1}, "codes=1"), ({"decay": 1.0}, "decay"), ({"commitment": -1.0}, "commitment")]
)
def test_options_out_of_range_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)


def tiny_vqmodel(folder: Path) -> Path:
    from diffusers import VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            vq_embed_dim=3,
            num_vq_embeddings=20,
            norm_num_groups=4,
        )
        model.quantize.embedding.weight.data.normal_()
    model.save_pretrained(folder)
    return folder


def test_a_vqmodel_of_diffusers_is_a_codec_with_tokens(tmp_path: Path) -> None:
    from diffusers import VQModel

    folder = tiny_vqmodel(tmp_path / "pipeline" / "vqvae")
    codec = build_codec(PretrainedCodecOptions(path=str(tmp_path / "pipeline")), spec_of("image"))
    assert isinstance(codec, PretrainedVQ) and codec.latent.grid == (4, 6)
    x = items(spec_of("image"), 4)
    reference = VQModel.from_pretrained(folder)
    with torch.no_grad():
        latents = reference.encode(x).latents
        _, _, (_, _, numbers) = reference.quantize(latents)
        assert torch.equal(codec.encode(x).flatten(), numbers.flatten())
        torch.testing.assert_close(codec.decode(codec.encode(x)), reference.decode(latents).sample)
    again = codec_from_json(json.loads(json.dumps(codec_to_json(codec))), codec.data)
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(x), codec.encode(x))


def test_a_cut_codebook_decodes_as_the_original_rows(tmp_path: Path) -> None:
    path = str(tiny_vqmodel(tmp_path / "vq"))
    codec = build_codec(PretrainedCodecOptions(path=path), spec_of("image"))
    assert isinstance(codec, PretrainedVQ)
    x = items(spec_of("image"), 4)
    whole = codec.encode(x)
    used = whole.unique()
    cut = codec.with_codebook(codec.codebook[used])
    assert cut.latent.categories == len(used) < 20
    assert torch.equal(used[cut.encode(x)], whole)
    with torch.no_grad():
        torch.testing.assert_close(cut.decode(cut.encode(x)), codec.decode(whole))
    fresh = codec_from_json(json.loads(json.dumps(codec_to_json(cut))), cut.data)
    fresh.load_state_dict(cut.state_dict())
    assert torch.equal(fresh.encode(x), cut.encode(x))

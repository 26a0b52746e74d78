"""Features: which blocks are read, that pictures share their noise, and DINO's tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import undiffuse as ud
from undiffuse.errors import CheckpointError
from undiffuse.networks.diffusers_network import named_blocks
from undiffuse.networks.hooks import capture
from undiffuse.tasks.match import Matcher, MatchOptions
from undiffuse.tasks.match.dino import DinoFeatures
from undiffuse.tasks.match.frame import Frame, Picture, read_picture
from undiffuse.tasks.match.layers import correspondence_layers
from undiffuse.tasks.match.sources import position_code, raw_patches


@pytest.fixture(scope="module")
def model() -> ud.Model:
    return ud.load("digits")


def digit(seed: int = 0) -> Tensor:
    return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_blocks_of_our_networks():
    unet = ["in", "down0.0", "down0.1", "mid", "up2.0", "up2.1", "up1.0", "up1.1", "up0.0", "up0.1", "out"]
    shapes = {name: (4, 2, 2) for name in unet}
    assert correspondence_layers(unet, shapes) == ("up2.0", "up1.0")  # the finest level is left out
    assert correspondence_layers(["in", "mid", "up0.0", "out"], {"up0.0": (4, 8, 8)}) == ("up0.0",)
    blocks = [f"block{i}" for i in range(12)]
    assert correspondence_layers(blocks, dict.fromkeys(blocks, (4, 2, 2))) == ("block8",)


@pytest.mark.slow
def test_blocks_of_stable_diffusion_are_the_inputs_of_its_decoders_sub_blocks():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(  # as Stable Diffusion 1.5, but thin
        sample_size=16,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=2,
    ).eval()
    unet.blocks = named_blocks(unet)
    names = list(unet.blocks)
    x, read = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 8)
    with capture(unet, names) as every:
        unet(x, 100, read)
    shapes = {name: tuple(v.shape[1:]) for name, v in every.items() if isinstance(v, Tensor)}
    chosen = correspondence_layers(names, shapes)
    assert chosen == ("up0.resnet1", "up1.attention1", "up2.attention1")
    sub_blocks = [unet.up_blocks[i].resnets[2] for i in range(3)]  # numbers 2, 5 and 8 of 12
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda m, args: inputs.append(args[0])) for block in sub_blocks]
    with torch.no_grad():
        unet(x, 100, read)
    for hook in hooks:
        hook.remove()
    for name, taken in zip(chosen, inputs, strict=True):
        state = every[name][0] if isinstance(every[name], tuple) else every[name]
        torch.testing.assert_close(taken[:, : state.shape[1]], state)  # the skip is put behind it
    states = [every[name][0] if isinstance(every[name], tuple) else every[name] for name in chosen]
    assert [state.shape[-1] for state in states] == [2, 4, 8]


def test_pictures_share_their_noise_and_layers_and_times_stand_side_by_side(model: ud.Model):
    matcher = Matcher(model, MatchOptions(layers=("mid", "up0.0"), t=(0.05, 0.3)))
    same = [matcher.describe(digit()) for _ in range(2)]
    assert list(same[0].maps["diffusion"]) == ["mid@0.05", "up0.0@0.05", "mid@0.3", "up0.0@0.3"]
    for name, first in same[0].maps["diffusion"].items():
        assert torch.equal(first, same[1].maps["diffusion"][name])
    cells, _ = matcher.pair(*same)
    assert cells.grid == (8, 8)
    assert cells.vectors.shape == (64, 2 * (64 + 32))
    coarse = Matcher(model, MatchOptions(cells=4, layers=("up0.0",)))
    assert coarse.pair(*(coarse.describe(digit()) for _ in range(2)))[0].grid == (4, 4)
    assert Matcher(model, MatchOptions()).settings()["diffusion"]["layers"] == {"up1.0": [64, 4, 4]}


def test_files_are_described_once(model: ud.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from undiffuse.images.write import write_image

    pixels = ((digit()[0] + 1) * 127.5).to(torch.uint8).numpy()
    write_image(tmp_path / "a.png", pixels)
    matcher = Matcher(model, MatchOptions(features=("patch",)))
    first = matcher.describe(tmp_path / "a.png")
    assert matcher.describe(str(tmp_path / "a.png")) is first
    assert matcher.describe(pixels) is not first  # arrays may change
    write_image(tmp_path / "a.png", 255 - pixels)
    os.utime(tmp_path / "a.png", ns=(0, 0))  # as files do
    assert not torch.equal(matcher.describe(tmp_path / "a.png").picture.pixels, first.picture.pixels)


def test_co_pca_is_of_diffusion_features_alone(model: ud.Model):
    picture = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = MatchOptions(features=("diffusion", "patch"), layers=("mid",), pca=16, patch=5, size=16)
    matcher = Matcher(model, options)
    cells, _ = matcher.pair(*(matcher.describe(picture) for _ in range(2)))
    assert cells.vectors.shape[1] == 16 + 25
    wide = Matcher(None, MatchOptions(features=("patch",), patch=11))  # 363 numbers, more than the usual 256
    assert wide.pair(*(wide.describe(picture) for _ in range(2)))[0].vectors.shape[1] == 363


def test_a_size_counts_without_a_model():
    matcher = Matcher(None, MatchOptions(features=("patch", "position"), size=(6, 12)))
    assert matcher.ratio == 0.5
    cells, _ = matcher.pair(*(matcher.describe(torch.zeros(3, 20, 20)) for _ in range(2)))
    assert cells.grid == (6, 12)
    with pytest.raises(ValueError, match="size=64 has no use with the feature dino alone; use dino_size"):
        MatchOptions(features=("dino",), dino="somewhere", size=64)


def test_a_layer_without_places_is_refused(model: ud.Model, monkeypatch: pytest.MonkeyPatch):
    from undiffuse.tasks.features.encoder import FeatureEncoder

    monkeypatch.setattr(FeatureEncoder, "layers", property(lambda self: {"mid": (64, 1)}))
    with pytest.raises(ValueError, match="layers mid give no maps"):
        Matcher(model, MatchOptions(layers=("mid",)))


def test_raw_patches_and_positions_by_hand():
    x = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    patches = raw_patches(x, 3)
    assert patches[0, :, 1, 1].tolist() == list(range(1, 10))
    assert patches[0, :, 0, 0].tolist() == [-1, -1, -1, -1, 1, 2, -1, 4, 5]  # black beyond the edge
    code = position_code((5, 7)).flatten(1).T
    assert torch.cdist(code, code).fill_diagonal_(1).min() > 0.1  # every cell has a code of its own
    assert code[0].tolist() == pytest.approx([-0.98999, -0.14112, -0.98999, -0.14112], abs=1e-4)  # cos 3, -sin 3


def test_what_cannot_be_described_is_refused(model: ud.Model):
    with pytest.raises(ValueError, match="diffusion features need a model"):
        Matcher(None, MatchOptions())
    with pytest.raises(ValueError, match=r"'upp'.*The layers are in 32 x 8 x 8"):
        Matcher(model, MatchOptions(layers=("upp",)))
    with pytest.raises(ValueError, match="one side in pixels"):
        Matcher(model, MatchOptions(size=0))
    words = ud.Model(model.module, ud.DataSpec(kind="vector", shape=(2,)))
    with pytest.raises(ValueError, match="makes vector data"):
        Matcher(words, MatchOptions(features=("patch",)))


# -- DINO, tiny and random; transformers takes seconds to import -------------------------------------


def save_dino(kind: str, folder: Path) -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    configs = {
        "dinov2": ("Dinov2Config", "Dinov2Model", {"image_size": 56, "patch_size": 14}),
        "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"image_size": 56, "patch_size": 14}),
        "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"patch_size": 16, "num_register_tokens": 4}),
        "dinov1": ("ViTConfig", "ViTModel", {"image_size": 32, "patch_size": 8}),
    }
    config, network, more = configs[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, network)(getattr(transformers, config)(**small, **more))
        for parameter in made.parameters():  # so that no token, no norm and no scale is trivial
            parameter.data += 0.1 * torch.randn_like(parameter)
        made.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "patch", "skipped"), [("dinov1", 8, 1), ("dinov2", 14, 1), ("registers", 14, 5), ("dinov3", 16, 5)]
)
def test_dino_gives_the_patches_of_the_last_layer_before_the_norm(tmp_path: Path, kind: str, patch: int, skipped: int):
    pytest.importorskip("transformers")
    save_dino(kind, tmp_path)
    source = DinoFeatures(str(tmp_path), 5 * patch + 3)  # which is rounded down to five patches
    assert (source.patch, source.skipped) == (patch, skipped)
    assert not source.network.training
    pixels = torch.rand(3, 4 * patch, 5 * patch) * 2 - 1
    frame = Frame.around((4 * patch, 5 * patch), ratio=4 / 5)
    found = source.maps(Picture(pixels, "x"), frame)["dino"]
    assert found.shape == (32, 4, 5)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    more = {"interpolate_pos_encoding": True} if kind == "dinov1" else {}
    with torch.no_grad():
        last = source.network(pixel_values=((pixels + 1) / 2 - mean).div(std)[None], **more).last_hidden_state
        norm = source.network.norm if kind == "dinov3" else source.network.layernorm
        ours = norm(found.permute(1, 2, 0).reshape(20, 32))
    torch.testing.assert_close(ours, last[0, skipped:], atol=1e-4, rtol=1e-4)
    square = source.maps(read_picture(torch.rand(1, 30, 50)), Frame.around((30, 50)))["dino"]
    assert square.shape == (32, 5, 5)  # grey, and no multiple of the patch
    assert source.describe()["size"] == 5 * patch


@pytest.mark.slow
def test_what_is_no_dino_is_refused(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match=r"cannot read DINO from .* give a folder with config.json"):
        DinoFeatures(str(tmp_path), 56)
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read DINO|is a bert network; expected vit or dinov2"):
        DinoFeatures(str(tmp_path), 56)


@pytest.mark.slow
def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    import huggingface_hub

    asked: list[str] = []

    def unreachable(url: str, **_: object) -> None:
        asked.append(url)
        raise RuntimeError("no way there\nand more")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(CheckpointError, match=r"'nobody/no-such-dino' \(no way there\); give a folder"):
        DinoFeatures("nobody/no-such-dino", 56)
    assert len(asked) == 1
    with pytest.raises(CheckpointError, match="give a folder"):
        DinoFeatures("./no-such-folder", 56)
    assert len(asked) == 1


@pytest.mark.slow
def test_a_latent_model_of_texts_matches_and_swaps(tmp_path: Path):
    pytest.importorskip("diffusers")
    from tests.pretrained import tiny

    tiny.build("stable", tmp_path / "stable")
    model = ud.load(tmp_path / "stable", check=False)
    picture = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = ud.match(model, picture, [[3, 4], [20, 10]], other, cond={"prompt": "a red square"}, draws=2)
    assert found.settings["diffusion"]["layers"].keys() == {"up0.attention0"}
    assert found.settings["diffusion"]["cond"] == {"prompt": "a red square"}
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:15, 10:20] = True
    swapped = ud.swap(model, picture, other, mask, torch.ones(24, 24), start=0.3, steps=10, cond={"prompt": "a red"})
    assert torch.equal(swapped.picture[:, ~mask], picture[:, ~mask])
    assert swapped.settings["diffusion"]["cond"] == {"prompt": "a red"}
    assert not torch.equal(swapped.picture[:, mask], swapped.pasted[:, mask])

"""Models that restore in latents: pictures given beside the data are coded by the same codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import undiffuse as ud
from undiffuse import operators as ops
from undiffuse.codecs.build import build_codec
from undiffuse.codecs.options import PCAOptions
from undiffuse.codecs.pca import PatchPCA
from undiffuse.config import resolve
from undiffuse.data.dataset import TensorDataset
from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.errors import ConfigError
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.operators.parse import parse_operator
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.tasks.restore.latent import Decoded
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.degrade import make_transforms, told_spec
from undiffuse.training.latents import encode_data
from undiffuse.training.log import read_log
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.run import prepare, train
from undiffuse.training.stream import BatchStream

SPEC = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 1.0))
PAIRED = replace(SPEC, cond={"source": ConditionSpec(kind="map", width=1)})
SMALL = ("model.channels=8", "model.multipliers=[1]", "model.blocks=1")
QUICK = {"steps": 4, "batch_size": 8, "previews": 2, "warmup": 1, "validate_items": 8}
SPOILT = "data.degrade=downsample:2|noise:gaussian,0.05"
PCA = ("codec.kind=pca", "codec.patch=2", "codec.share=1.0", "process.data_std=1")
OP = ops.Downsample((1, 8, 8), 2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latents"


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def orthonormal(patch: int) -> PatchPCA:
    """A fixed codec that turns patches by an orthogonal matrix; of patches of one pixel, the identity."""
    codec = PatchPCA(PAIRED, PCAOptions(patch=patch), channels=patch**2)
    if patch > 1:
        codec.basis.copy_(torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0])
    return codec.eval().requires_grad_(False)


def awake(denoiser: Any) -> Any:
    """Return a fresh denoiser with other weights, for a fresh network answers 0."""
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=drawn))
    return denoiser.eval()


class Around(nn.Module):
    """A network of latents as one of pixels: encode, ask, decode."""

    def __init__(self, inner: Any, codec: PatchPCA, conditioners: nn.Module) -> None:
        super().__init__()
        self.inner, self.codec, self.conditioners = inner, codec, conditioners

    def forward(self, x: Tensor, level: Tensor, cond: Embedded) -> Tensor:
        assert cond.maps is not None
        told = replace(cond, maps=self.codec.encode(cond.maps))
        return self.codec.decode(self.inner(self.codec.encode(x), level, told)["out"])


def test_a_walk_of_orthonormal_latents_is_that_of_pixels() -> None:
    """With a linear codec Q every step commutes with it: the walk of Q x and Q y is Q times the walk of x and y."""
    codec = orthonormal(2)
    recipe = resolve(Recipe, recipe_layer("restoration"), [*SMALL])
    latent = awake(build_denoiser(recipe, codec.latent, told=True))
    network = Around(latent.backbone, codec, build_network(recipe.model, PAIRED).conditioners)
    pixel = ShiftedDenoiser(network, latent.process, "data", spec=PAIRED, data_std=0.5)
    x, y = 2 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)), pictures(3) * 2 - 1
    told: dict[str, Any] = {"cond": {"source": y}, "solver": "ddim", "steps": 5, "grid": "t"}
    of_pixels = Model(pixel, PAIRED).sample_result(3, start=x, **told).x
    of_latents = Model(latent, PAIRED, codec=codec).sample_result(3, start=codec.encode(x), **told).x
    torch.testing.assert_close(codec.decode(of_latents), of_pixels, atol=1e-5, rtol=0)
    told["cond"] = {"source": -y}
    other = Model(latent, PAIRED, codec=codec).sample_result(3, start=codec.encode(x), **told).x
    assert float((other - of_latents).abs().max()) > 0.1  # the given picture counts


def test_an_identity_codec_changes_nothing() -> None:
    """Neither the batches of the training, nor what `restore` and `sample` answer."""
    codec = orthonormal(1)
    recipe = resolve(Recipe, recipe_layer("restoration"), [*SMALL, SPOILT])
    denoiser = awake(build_denoiser(recipe, SPEC))
    objective = make_objective(recipe.objective, denoiser)
    data = TensorDataset(spec=SPEC, data=pictures(20))
    batches = []
    for coding in (None, codec):
        transforms = make_transforms(recipe.data, SPEC, coding)
        assert transforms.codec is coding
        stream = BatchStream(data, objective, denoiser, seed=4, batch_size=5, transforms=transforms)
        batches.append(stream.step(3))
    torch.testing.assert_close(batches[1].x, batches[0].x)
    torch.testing.assert_close(batches[1].cond["source"], batches[0].cond["source"])
    spec, y = told_spec(SPEC, recipe.data), OP(pictures(2) * 2 - 1)
    found = [ud.restore(Model(denoiser, spec, codec=c), y, OP, samples=2, steps=3, seed=1) for c in (None, codec)]
    assert [part.method for part in found] == ["supervised", "supervised"]
    torch.testing.assert_close(found[1].samples, found[0].samples, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1].residual_rms, found[0].residual_rms, atol=1e-5, rtol=0)
    for shape in ((1, 12, 18), (1, 6, 4)):  # by tiles, each shown its part of the given picture, and in a frame
        other = ops.Downsample(shape, 2)
        seen = other(torch.rand(1, *shape, generator=torch.Generator().manual_seed(5)) * 2 - 1)
        found = [ud.restore(Model(denoiser, spec, codec=c), seen, other, samples=2, steps=3) for c in (None, codec)]
        torch.testing.assert_close(found[1].samples, found[0].samples, atol=1e-5, rtol=0)


def test_a_measurement_on_the_grid_of_the_data_is_encoded_as_it_is() -> None:
    """As `data.degrade` gives it in training, also where the operator has an inverse of its own."""
    codec, y = orthonormal(2), pictures(2)
    masked = ops.Mask((1, 8, 8), (pictures(1)[0] > 0.5).float())
    for operator in (masked, parse_operator("jpeg:20", SPEC), parse_operator("blur:uniform,3", SPEC)):
        assert torch.equal(Decoded(operator, codec).to_items(y), codec.encode(y)), operator.kind


def test_a_run_that_spoils_its_items_encodes_them_on_the_way_and_resumes(tmp_path: Path, cache: Path) -> None:
    overrides = (*SMALL, *PCA, "data.degrade=downsample:2; inpaint:random,0.5|noise:gaussian,0.05")
    whole = train("digits", "restoration", out=tmp_path / "whole", overrides=overrides, **QUICK)
    assert not cache.exists()  # spoilt anew at each visit, so there is nothing to keep
    assert list((whole.folder / "samples").glob("step-*.png"))
    folder = tmp_path / "parts"
    with pytest.raises(RuntimeError, match="stopped by the test"):
        saved = (*overrides, "train.checkpoint_every=2")
        train("digits", "restoration", out=folder, overrides=saved, listener=stopper, **QUICK)
    resumed = train("digits", "restoration", out=folder, overrides=saved, **QUICK)
    assert (whole.folder / "model.safetensors").read_bytes() == (resumed.folder / "model.safetensors").read_bytes()
    model = resumed.model
    assert model.spec.cond["source"].width == 1 and model.state_spec.cond["source"].width == 4
    y = OP(pictures(2) * 2 - 1)
    found = ud.restore(model, y, OP, samples=2, steps=3, cond={"task": [0, 0]})
    assert (found.method, tuple(found.samples.shape)) == ("supervised", (2, 2, 1, 8, 8))
    plain = model.sample(2, steps=3, solver="ddim", grid="t", cond={"source": OP.pinv(y), "task": [0, 0]})
    still = ud.restore(model, y, OP, samples=1, steps=3, cond={"task": [0, 0]}, options={"eta": 0.0})
    torch.testing.assert_close(still.samples[0, :1], model.spec.to_model(plain)[:1], atol=1e-4, rtol=0)  # one noise
    with pytest.raises(ValueError, match=r"expected \(1, 8, 8\)"):
        model.sample(1, cond={"source": torch.zeros(4, 4, 4)})  # not latents


def stopper(event: object) -> None:
    if getattr(event, "task", "") == "train" and getattr(event, "done", 0) >= 3:
        raise RuntimeError("stopped by the test")


def pairs(n: int = 40) -> TensorDataset:
    clean = pictures(n)
    return TensorDataset(data=clean, maps={"source": 1 - clean}, spec=PAIRED, mirror=True)


def test_the_latents_of_both_pictures_of_a_pair_are_kept(tmp_path: Path, cache: Path) -> None:
    data, codec = pairs(), orthonormal(2)
    rows = torch.tensor([3, 43])  # an item and its mirror image
    for turn in range(2):
        latents = encode_data(codec, data, torch.device("cpu"), lambda event: None)
        given, made = data.batch(rows), latents.batch(rows)
        torch.testing.assert_close(made["x"], codec.encode(given["x"]))
        torch.testing.assert_close(made["cond"]["source"], codec.encode(given["cond"]["source"]))
        assert len(list(cache.iterdir())) == 1, turn
    run = train(data, "restoration", out=tmp_path / "run", overrides=(*SMALL, *PCA), **QUICK)
    assert list((run.folder / "samples").glob("step-*.png"))
    answer = run.model.sample(2, steps=2, cond={"source": data.batch(rows)["cond"]["source"]})
    assert answer.shape == (2, 1, 8, 8)
    again = encode_data(run.model.codec, data, torch.device("cpu"), lambda event: None)  # type: ignore[arg-type]
    assert again.spec.cond["source"].width == 4


def test_a_picture_for_all_frames_is_coded_as_one_frame() -> None:
    film = DataSpec(kind="video", shape=(3, 1, 4, 4), range=(0, 1), cond=PAIRED.cond)
    codec = PatchPCA(film, PCAOptions(patch=2), channels=4)
    codec.scale(torch.zeros(4), torch.full((4,), 2.0))
    one = pictures(2)[..., :4, :4]
    film_of_it = one[:, None].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(codec.encode_maps(one), codec.encode_maps(film_of_it)[:, 1])


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        ("vq-image", (SPOILT,), "no codec turns into tokens"),
        ("restoration", ("codec.kind=vq", SPOILT), "codec=vq makes tokens"),
        ("restoration", ("codec.kind=autoencoder",), "needs data with a given picture"),
        ("restoration", ("codec.kind=autoencoder", SPOILT, "data.augment=0.1"), "data.augment"),
    ],
)
def test_what_latents_cannot_restore_is_refused_before_a_codec_is_trained(
    tmp_path: Path, recipe: str, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train("digits", recipe, out=tmp_path / "run", overrides=overrides, **QUICK)


def test_pictures_of_other_channels_are_refused() -> None:
    coloured = replace(SPEC, cond={"source": ConditionSpec(kind="map", width=3)})
    with pytest.raises(ValueError, match="3 channels and the data 1"):
        build_codec(PCAOptions(patch=2), coloured, pictures(4))
    label = ConditionSpec(kind="label", classes=("scan", "film"))  # no picture, only called so
    called = replace(SPEC, cond={"source": label})
    assert PatchPCA(called, PCAOptions(patch=2), channels=4).latent.cond["source"] == label


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [((), False), ((*PCA[:3],), True), (PCA, False), (("codec.kind=pca", "process.data_std=0.7"), True)],
)
def test_the_scale_of_pictures_is_warned_of_in_latents(overrides: tuple[str, ...], warned: bool) -> None:
    """The recipe has 0.5, that of pictures; latents have 1."""
    recipe = resolve(Recipe, recipe_layer("restoration"), [*SMALL, SPOILT, *overrides])
    lines = prepare(recipe, TensorDataset(spec=SPEC, data=pictures(20))).plan.lines
    found = [line for line in lines if "process.data_std" in line]
    assert len(found) == warned and all(line.endswith("set process.data_std=1") for line in found)


@pytest.mark.slow
def test_training_improves_on_the_decoded_source(tmp_path: Path) -> None:
    overrides = ("model.channels=16", "model.multipliers=[1,2]", *PCA, SPOILT, "process.schedule=i2sb")
    small = {"steps": 300, "batch_size": 64, "warmup": 50, "lr": 2e-3}
    run = train("digits", "restoration", out=tmp_path / "run", overrides=overrides, **small)
    model = run.model
    held_out = ud.data.split(ud.data.open_data("digits"))[1]
    clean = held_out.batch(torch.arange(64))["x"]
    y = OP(clean) + 0.1 * KeyedNoise(7, range(64)).normal("measure", 0, (1, 4, 4))
    found = ud.restore(model, y, OP, "supervised", samples=4, steps=10)
    codec = model.codec
    assert codec is not None and read_log(run.folder / "log.jsonl")
    source = codec.decode(codec.encode(OP.pinv(y)))
    ratio = float((found.mean - clean).square().mean() / (source - clean).square().mean())
    assert ratio < 0.6  # measured: 0.45; of a model of pixels 0.41

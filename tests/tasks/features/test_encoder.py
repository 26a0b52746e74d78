"""Features equal what the blocks return, whatever the network, the batch, the pooling and the number of draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks.helpers import generator, randomise
from undiffuse.codecs.options import PCAOptions
from undiffuse.codecs.pca import PatchPCA
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.errors import DataError
from undiffuse.models.model import Model
from undiffuse.networks import DiTOptions, UNetOptions, capture
from undiffuse.networks.dit import DiT
from undiffuse.networks.mlp import MLP
from undiffuse.networks.token_unet import TokenUNet
from undiffuse.networks.transformer import Transformer
from undiffuse.networks.unet import UNet
from undiffuse.noise import KeyedNoise
from undiffuse.process import make_schedule
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.layers import layers_of

PROCESS = GaussianProcess(make_schedule("cosine"))
IMAGE = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 255))
X = torch.randn(5, 1, 8, 8, generator=generator())


def small_unet(dims: int = 2, **options: int) -> UNet:
    return randomise(UNet(dims, 1, UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, **options)))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(NetworkDenoiser(small_unet(), PROCESS, "v", spec=IMAGE).eval(), IMAGE)


class Toy(nn.Module):
    """A sequential network whose blocks are its submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 1, 1)
        self.calls = 0

    def forward(self, x, level, cond):
        hidden = self.first(x).tanh()
        self.calls += 1
        return self.second(hidden)


def hooks_left(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def noised(x: torch.Tensor, t: float, step: int = 0, seed: int = 0) -> torch.Tensor:
    return PROCESS.corrupt(x, t, KeyedNoise(seed, range(len(x))).normal("probe", step, tuple(x.shape[1:])))


def test_maps_are_what_the_blocks_of_a_full_forward_return(model: Model):
    network = model.denoiser.backbone
    before = model.denoiser(X, 0.3).mean
    with capture(network, ["down0.0", "mid", "up0.0"]) as taken:
        model.denoiser(noised(X, 0.3), 0.3)
    maps = FeatureEncoder(model, ["mid", "up0.0", "down0.0"], 0.3).maps(X)
    assert list(maps) == ["down0.0", "mid", "up0.0"]  # in order of execution
    for name, value in maps.items():
        torch.testing.assert_close(value, taken[name], rtol=0, atol=0)
    assert hooks_left(network) == 0
    assert torch.equal(model.denoiser(X, 0.3).mean, before)


def test_nothing_behind_the_last_layer_is_computed_and_hooks_go_also_after_an_error(model: Model):
    network = model.denoiser.backbone
    ran: list[str] = []
    handles = [
        block.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        for name, block in network.blocks.items()
    ]
    encoder = FeatureEncoder(model, ["down0.0", "mid"], 0.1)
    encoder.shapes()
    ran.clear()
    encoder(X)
    assert ran[-1] == "mid" and "up1.0" not in ran
    for handle in handles:
        handle.remove()
    with pytest.raises(ValueError, match="expects 1 channels"):
        encoder._reader.read(torch.zeros(2, 7, 8, 8), 0.1, None, ["mid"])
    assert hooks_left(network) == 0


def test_inputs_of_blocks(model: Model):
    with capture(model.denoiser.backbone, ["up0.0"], inputs=True) as taken:
        model.denoiser(noised(X, 0.1), 0.1)
    found = FeatureEncoder(model, "up0.0", 0.1, inputs=True).maps(X)["up0.0"]
    torch.testing.assert_close(found, taken["up0.0"], rtol=0, atol=0)


def test_features_near_the_clean_item_move_in_proportion_to_the_noise():
    toy = randomise(Toy(), scale=0.5).double()
    denoiser = NetworkDenoiser(toy, GaussianProcess(make_schedule("rf")), "data", spec=IMAGE).eval()
    x = X.double()
    clean = FeatureEncoder(denoiser, "first", 0.0).maps(x)["first"]
    gap = [(FeatureEncoder(denoiser, "first", t, seed=3).maps(x)["first"] - clean).norm() for t in (2e-2, 1e-2)]
    assert float(gap[0] / gap[1]) == pytest.approx(2.0, rel=0.05)  # first order, and a curvature of O(sigma)


def test_draws_are_averaged_and_features_do_not_depend_on_the_batch(model: Model):
    network = model.denoiser.backbone
    singles = []
    for step in range(3):
        with capture(network, ["mid"]) as taken:
            model.denoiser(noised(X, 0.2, step, seed=7), 0.2)
        singles.append(taken["mid"])
    settings = {"pool": 2, "draws": 3, "seed": 7}
    encoder = FeatureEncoder(model, "mid", 0.2, **settings)
    torch.testing.assert_close(encoder.maps(X)["mid"], sum(singles) / 3)
    one_by_one = FeatureEncoder(model, "mid", 0.2, batch_size=2, **settings)(X)
    torch.testing.assert_close(one_by_one, encoder(X), rtol=1e-5, atol=1e-6)  # matrix products round by their size
    torch.testing.assert_close(encoder(X[3:], index=torch.tensor([3, 4])), encoder(X)[3:], rtol=1e-5, atol=1e-6)
    assert not torch.equal(FeatureEncoder(model, "mid", 0.2, pool=2, draws=3, seed=8)(X), encoder(X))


def test_pooling_is_the_mean_at_1_the_identity_at_the_side_and_no_more_than_that(model: Model):
    mid = FeatureEncoder(model, "mid", 0.1).maps(X)["mid"]  # 16 x 4 x 4
    torch.testing.assert_close(FeatureEncoder(model, "mid", 0.1, pool=1)(X), mid.mean((2, 3)))
    torch.testing.assert_close(FeatureEncoder(model, "mid", 0.1, pool=4)(X), mid.flatten(1))
    torch.testing.assert_close(FeatureEncoder(model, "mid", 0.1, pool=9)(X), mid.flatten(1))
    encoder = FeatureEncoder(model, "mid", 0.1)
    by_pool = encoder.by_pool(X, (1, 4))
    torch.testing.assert_close(by_pool["mid", 1], mid.mean((2, 3)))
    torch.testing.assert_close(by_pool["mid", 4], mid.flatten(1))


def test_layers_and_times_stand_side_by_side(model: Model):
    encoder = FeatureEncoder(model, ["up1.0", "mid"], [0.05, 0.3], pool=1)
    assert encoder.keys == ["mid@0.05", "up1.0@0.05", "mid@0.3", "up1.0@0.3"]
    assert encoder.counts() == dict.fromkeys(encoder.keys, 16) and encoder.features() == 64
    torch.testing.assert_close(encoder(X)[:, 16:32], FeatureEncoder(model, "up1.0", 0.05, pool=1)(X))
    per_row = torch.full((1, 1), 0.3)
    torch.testing.assert_close(
        FeatureEncoder(model, "mid", torch.tensor(0.3))(X), FeatureEncoder(model, "mid", 0.3)(X), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="level"):
        FeatureEncoder(model, "mid", per_row).maps(X)  # this network has one time for an item


def test_layers_of_every_network_are_named_with_the_shapes_of_their_maps():
    vector, tokens = DataSpec(kind="vector", shape=(3,)), DataSpec(kind="tokens", shape=(6,), vocabulary=tuple("abcd"))
    grid = DataSpec(kind="tokens", shape=(12,), grid=(3, 4), vocabulary=tuple("abcd"))
    signal, video = DataSpec(kind="signal", shape=(1, 12)), DataSpec(kind="video", shape=(3, 1, 4, 4))
    masks = CategoricalProcess("absorbing", 4)
    dit = DiT(2, 1, DiTOptions(width=16, depth=2, heads=2, patch=2), sizes=(8, 8))
    cases = {
        "dit": (NetworkDenoiser(dit, PROCESS, "v", spec=IMAGE), "block1", (16, 4, 4)),
        "mlp": (NetworkDenoiser(MLP(3, width=8, depth=2), PROCESS, "v", spec=vector), "block0", (8, 1)),
        "signal": (NetworkDenoiser(small_unet(1), PROCESS, "v", spec=signal), "mid", (16, 6)),
        "video": (NetworkDenoiser(small_unet(), PROCESS, "v", spec=video), "mid", (16, 3, 2, 2)),
        "text": (CategoricalDenoiser(Transformer(4, 5, width=16, depth=2), masks, spec=tokens), "block1", (16, 6)),
        "grid": (
            CategoricalDenoiser(Transformer(4, 5, width=16, depth=1, grid=(3, 4)), masks, spec=grid),
            "block0",
            (16, 3, 4),
        ),
        "token unet": (
            CategoricalDenoiser(
                TokenUNet((3, 4), 4, 5, UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)),
                masks,
                spec=grid,
                time_dependent=True,
            ),
            "embedding",
            (8, 3, 4),
        ),
        "oracle": (GaussianDenoiser(torch.zeros(3), torch.eye(3), PROCESS, spec=vector), "mean", (3, 1)),
    }
    for name, (denoiser, layer, shape) in cases.items():
        assert layers_of(denoiser)[layer] == shape, name
        spec = denoiser.spec
        size = (2, *spec.shape)
        x = torch.zeros(size, dtype=torch.int64) if spec.is_discrete else torch.zeros(size)
        assert FeatureEncoder(denoiser, "auto", 0.1, pool=1)(x).shape[0] == 2, name
        assert FeatureEncoder(denoiser, layer, 0.1).maps(x)[layer].shape == (2, *shape), name


def test_tokens_are_corrupted_by_their_own_process():
    spec = DataSpec(kind="tokens", shape=(400,), vocabulary=tuple("abcd"))
    network = Transformer(4, 5, width=16, depth=1)
    denoiser = CategoricalDenoiser(network, CategoricalProcess("absorbing", 4), spec=spec)
    encoder = FeatureEncoder(denoiser, "in", 0.25)  # the embedding tells what the network was given
    found = encoder.maps(torch.ones(3, 400, dtype=torch.int64))["in"]
    masked = (found.movedim(1, 2) - network.embedding.weight[4]).abs().amax(2) < 1e-6
    kept = (found.movedim(1, 2) - network.embedding.weight[1]).abs().amax(2) < 1e-6
    assert bool((masked ^ kept).all())
    assert abs(float(masked.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 1200) ** 0.5


def test_latent_models_encode_first_and_conditions_reach_the_network():
    pca = PatchPCA(IMAGE, PCAOptions(patch=2, channels=3), channels=3)
    network = randomise(
        UNet(
            2,
            3,
            UNetOptions(channels=8, multipliers=(1,), blocks=1, heads=2),
            conditions={"label": ConditionSpec(kind="label", classes=("a", "b"))},
        )
    )
    data = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 255), classes=("a", "b"))
    latent = NetworkDenoiser(network, PROCESS, "v", spec=pca.latent).eval()
    labelled = DataSpec(kind="image", shape=(3, 4, 4), classes=("a", "b"))
    latent.spec, pca.latent = labelled, labelled
    model = Model(latent, data, codec=pca)
    states = pca.encode(X)
    encoder, bare = FeatureEncoder(model, "mid", 0.1), FeatureEncoder(latent, "mid", 0.1)
    torch.testing.assert_close(encoder.maps(X)["mid"], bare.maps(states)["mid"])
    told = FeatureEncoder(model, "mid", 0.1, cond={"label": "b"})(X)
    assert not torch.allclose(told, encoder(X))
    torch.testing.assert_close(encoder(X, cond={"label": ["b"] * 5}), told)
    with pytest.raises(ValueError, match="unknown to this model"):
        FeatureEncoder(model, "mid", 0.1, cond={"labl": 1})(X)


def test_conditions_that_the_model_must_have_may_come_with_the_items():
    conditions = {"source": ConditionSpec(kind="map", width=1, null="zero")}
    network = randomise(UNet(2, 1, UNetOptions(channels=8, multipliers=(1,), blocks=1), conditions=conditions))
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 255), cond=conditions)
    model = Model(ShiftedDenoiser(network, PROCESS, "data", spec=spec).eval(), spec)
    encoder = FeatureEncoder(model, "mid", 0.1)
    assert encoder.maps(X, cond={"source": X})["mid"].shape[0] == 5
    with pytest.raises(ValueError, match="source"):
        FeatureEncoder(model, "mid", 0.1).maps(X)


def test_responsibilities_of_a_mixture_are_features():
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    oracle = MixtureDenoiser(torch.ones(2), means, torch.ones(2), PROCESS)
    x = torch.tensor([[-2.0, 0.0], [0.0, 5.0]])
    found = FeatureEncoder(oracle, "responsibilities", 0.0)(x)
    expected = torch.sigmoid(torch.tensor([8.0, 0.0]))  # log odds of the left component: 2 * 2 * 2
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_bad_questions_are_answered_in_words(model: Model):
    with pytest.raises(ValueError, match=r"'midd', which does not exist. Did you mean 'mid'\? .* mid 16 x 4 x 4"):
        FeatureEncoder(model, "midd")
    for wrong in ({"t": 1.5}, {"t": []}, {"t": [0.1, 0.1]}, {"t": torch.zeros(3)}, {"pool": 0}, {"draws": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FeatureEncoder(model, "mid", **wrong)
    with pytest.raises(ValueError, match="names a layer twice"):
        FeatureEncoder(model, ["mid", "mid"])
    encoder = FeatureEncoder(model, "mid", 0.1, max_bytes=1000)
    with pytest.raises(DataError, match=r"5 items of 1 maps need 5.12 kB, above max_bytes=1 kB"):
        encoder.maps(X)
    with pytest.raises(ValueError, match="reads image items of 1 x 8 x 8"):
        encoder(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="item 1 is not finite"):
        encoder(torch.stack([X[0], X[1] * torch.nan]))
    with pytest.raises(ValueError, match="a number for each of 5 items"):
        encoder(X, index=torch.arange(3))
    with pytest.raises(TypeError, match="need a Model or a Denoiser"):
        FeatureEncoder("digits")
    with pytest.raises(ValueError, match="no inputs of them"):
        FeatureEncoder(GaussianDenoiser(torch.zeros(3), torch.eye(3), PROCESS), inputs=True)

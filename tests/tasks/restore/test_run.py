"""`restore`: the same answer however it is cut up, pictures of any size, latents, the choice of a method, bad input."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import process_of
from tests.tasks.test_completion import pictures as tokens
from undiffuse.cli.failures import message as message_of
from undiffuse.codecs.options import PCAOptions
from undiffuse.codecs.pca import PatchPCA
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.denoisers.tiled import Tiled
from undiffuse.events import Advanced, Event, Message, Started
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.thresholding import Thresholding
from undiffuse.models.model import Model
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.operators.blur import gaussian_blur
from undiffuse.operators.compose import chain
from undiffuse.operators.diagonal import Identity, Mask
from undiffuse.operators.jpeg import JPEG
from undiffuse.operators.mri import mri_scan
from undiffuse.operators.noise import NoiseModel, PoissonNoise, SaltPepperNoise, SpeckleNoise, UniformNoise
from undiffuse.operators.pointwise import Clip, Quantise
from undiffuse.operators.separable import Downsample
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.catalogue import FACTS
from undiffuse.tasks.restore.choose import choose, working_methods
from undiffuse.tasks.restore.constraints import poorly_conditioned
from undiffuse.tasks.restore.fitting import fit
from undiffuse.tasks.restore.latent import Decoded, LatentFit
from undiffuse.tasks.restore.prior import prior_of
from undiffuse.tasks.restore.registry import RESTORERS, make_restorer, restorer_class
from undiffuse.tasks.restore.restorer import NEEDS, Problem
from undiffuse.tasks.restore.run import _residual, restore

VP = process_of("vp")
SHAPE = (1, 8, 8)
HOLE = torch.ones(SHAPE)
HOLE[:, 2:6, 2:6] = 0


class Pixels(Denoiser):
    """White data of variance 0.3 and mean 0.2, pixel by pixel, of any size: exact, and opaque to those who ask."""

    spec = DataSpec(kind="image", shape=SHAPE, range=(0.0, 1.0))

    def __init__(self) -> None:
        super().__init__()
        self.process = VP

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
        alpha, sigma = self.process.coefficients(t, x)
        gain = 0.3 * alpha / (0.3 * alpha**2 + sigma**2)
        return Posterior(0.2 + gain * (x - alpha * 0.2))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Pixels(), Pixels.spec)


def pictures(count: int, *shape: int) -> Tensor:
    return (0.2 + 0.5 * KeyedNoise(3, range(count)).normal("data", 0, shape)).clamp(-1, 1)


def test_a_sample_depends_on_its_image_and_number_alone(model: Model) -> None:
    mask = torch.stack([HOLE, 1 - HOLE, HOLE.flip(1)])  # a mask per image
    operator = Mask(SHAPE, mask)
    y = operator(pictures(3, *SHAPE))
    options: dict[str, Any] = {"noise_std": 0.1, "steps": 4, "seed": 5, "clip": (-99, 99)}
    whole = restore(model, y, operator, "mmps", samples=3, **options)
    for method in ("mmps", "ddrm"):
        at_once = restore(model, y, operator, method, samples=3, **options)
        cut = restore(model, y, operator, method, samples=3, batch_size=2, **options)
        torch.testing.assert_close(cut.samples, at_once.samples)
    fewer = restore(model, y, operator, "mmps", samples=2, **options)
    torch.testing.assert_close(fewer.samples, whole.samples[:2])
    one = restore(model, y[1:2], operator.take(torch.tensor([1])), "mmps", samples=3, **options)
    assert one.samples.shape == (3, 1, *SHAPE)
    assert not torch.allclose(whole.samples[0], whole.samples[1])
    torch.testing.assert_close(whole.mean, whole.samples.mean(0))
    torch.testing.assert_close(whole.std, whole.samples.std(0))
    seen = (operator(whole.samples[0]) - y).flatten(1).square().sum(1) / mask.flatten(1).sum(1)
    torch.testing.assert_close(whole.residual_rms[0], seen.sqrt(), rtol=1e-4, atol=1e-5)


def test_the_posterior_of_white_data_is_met(model: Model) -> None:
    """Known pixels: N of precision 1 / 0.3 + 1 / 0.04; the others the prior. 5 standard errors of 600 draws."""
    operator, y = Mask(SHAPE, HOLE), 0.5 * HOLE[None]
    result = restore(model, y, operator, "mmps", noise_std=0.2, samples=600, steps=200, clip=(-9, 9), batch_size=600)
    known = HOLE.bool()
    var = 1 / (1 / 0.3 + 1 / 0.04)
    mean = var * (0.2 / 0.3 + 0.5 / 0.04)
    assert (result.mean[0][known] - mean).abs().max() < 5 * (var / 600) ** 0.5
    assert (result.mean[0][~known] - 0.2).abs().max() < 5 * (0.3 / 600) ** 0.5
    assert abs(float(result.std[0][known].square().mean()) / var - 1) < 0.1
    assert abs(float(result.std[0][~known].square().mean()) / 0.3 - 1) < 0.1


def test_large_pictures_have_no_seams(model: Model) -> None:
    """Pixel by pixel the tiles' answers are those of the whole picture, so their blend must be too."""
    shape = (1, 13, 21)
    operator = Mask(shape, (torch.arange(13 * 21).reshape(shape) % 2).float())
    y = operator(pictures(2, *shape))
    options: dict[str, Any] = {"noise_std": 0.1, "samples": 2, "steps": 4}
    for method in ("mmps", "dps", "diffpir"):
        tiled = restore(model, y, operator, method, **options)
        whole = restore(model, y, operator, method, tile=0, **options)
        torch.testing.assert_close(tiled.samples, whole.samples, rtol=1e-4, atol=1e-4)
    assert tiled.nfe == 4 * len(Tiled(Pixels(), (8, 8), 2).places((13, 21)))
    assert tiled.mean.shape == (2, *shape)


def test_tiles_cover_everything_and_overlap() -> None:
    tiles = Tiled(Pixels(), (8, 8), 3)
    places = tiles.places((20, 8))
    covered = torch.zeros(20, 8)
    for top, left in places:
        covered[top : top + 8, left : left + 8] += 1
    assert covered.min() >= 1
    assert all(b[0] - a[0] <= 5 for a, b in pairwise(places))
    x = KeyedNoise(0, range(3)).normal("data", 0, (1, 20, 8))
    t = torch.tensor([0.2, 0.5, 0.8])
    torch.testing.assert_close(tiles(x, t).mean, Pixels()(x, t).mean)
    with pytest.raises(ValueError, match="smaller than a tile"):
        tiles.places((7, 8))


def test_tiles_see_their_part_of_what_lies_on_the_grid() -> None:
    class Shown(Pixels):
        """Answers with the map that it is shown, and with the last estimate where there is one."""

        def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
            return Posterior(cond.maps + cond.vector[..., None, None] + (0 if cond.estimate is None else cond.estimate))

    x, maps = pictures(2, 1, 13, 8), pictures(2, 1, 13, 8) + 1
    told = Embedded(vector=torch.tensor([[1.0], [2.0]]), maps=maps, estimate=3 * maps)
    wanted = 4 * maps + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(Tiled(Shown(), (8, 8), 2)(x, 0.5, told).mean, wanted)
    everywhere = Embedded(vector=torch.zeros(2, 1), maps=torch.ones(2, 1, 1, 1))
    torch.testing.assert_close(Tiled(Shown(), (8, 8), 2)(x, 0.5, everywhere).mean, torch.ones_like(x))


def test_answers_on_the_way_may_be_bound(model: Model) -> None:
    """As by the wrapper; pixels of this prior leave [-1, 1] about once in ten."""
    hole = Mask(SHAPE, HOLE)
    y = hole(pictures(2, *SHAPE))
    options: dict[str, Any] = {"noise_std": 0.1, "samples": 4, "steps": 5, "clip": (-9, 9)}
    free = restore(model, y, hole, "mmps", **options)
    for mode in ("static", "dynamic"):
        bound = restore(model, y, hole, "mmps", threshold=mode, **options)
        wrapped = restore(model, y, hole, "mmps", wrap=lambda d, m=mode: Thresholding(d, m), **options)
        assert torch.equal(bound.samples, wrapped.samples)
        assert not torch.equal(bound.samples, free.samples)
    assert torch.equal(restore(model, y, hole, "mmps", threshold="none", **options).samples, free.samples)
    spec = DataSpec(kind="image", shape=SHAPE, range=(-1.0, 1.0))
    latent = Model(GaussianDenoiser(torch.zeros(3, 4, 4), torch.eye(48), VP), spec, codec=small_codec(spec))
    for asked, mode, said in ((latent, "static", "works on latents"), (model, "sideways", "choose 'static' or")):
        with pytest.raises(ValueError, match=said):
            restore(asked, y, hole, "dps", threshold=mode, **options)


def test_small_pictures_are_the_middle_of_larger_ones(model: Model) -> None:
    shape = (1, 5, 6)
    y = pictures(2, *shape)
    for operator in (Mask(shape, torch.ones(shape)), Identity(shape), gaussian_blur(shape, sigma=0.5)):
        seen = operator(y)
        result = restore(model, seen, operator, "mmps", noise_std=0.02, samples=2, steps=20)
        assert result.mean.shape == (2, *shape)
        assert result.residual_rms.max() < 0.06


def test_small_pictures_have_the_singular_values_of_a_mask(model: Model) -> None:
    operator = Identity((1, 5, 4))
    found = restore(model, pictures(1, 1, 5, 4), operator, "ddrm", noise_std=0.1, samples=2, steps=3)
    assert found.mean.shape == (1, 1, 5, 4)


@pytest.mark.parametrize("method", ["pigdm", "red-diff", "mmps"])
def test_labels_and_guidance_reach_the_prior(method: str) -> None:
    """Two classes of flat pictures, dark and light; y says nothing, so the label alone decides. Guided, more so."""
    means = torch.stack([torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5)])
    spec = DataSpec(kind="image", shape=SHAPE, range=(0.0, 1.0), classes=("dark", "light"))
    prior = MixtureDenoiser(torch.ones(2), means, torch.tensor([0.2, 0.2]), VP, labels=torch.tensor([0, 1]), spec=spec)
    hidden = Mask(SHAPE, 1 - HOLE)
    options: dict[str, Any] = {"noise_std": 50.0, "samples": 2, "steps": 10, "cond": {"label": ["dark", "light"]}}
    found = {
        scale: restore(Model(prior, spec), torch.zeros(2, *SHAPE), hidden, method, wrap=wrap, **options)
        for scale, wrap in ((1, None), (3, lambda denoiser: ClassifierFreeGuidance(denoiser, 3.0)))
    }
    for result in found.values():
        assert result.mean[0].mean() < -0.2 and result.mean[1].mean() > 0.2
    assert found[3].nfe == 2 * found[1].nfe


def test_noise_of_other_kinds(model: Model) -> None:
    y = 0.9 * pictures(1, *SHAPE)  # no pixel at the ends of the range
    pepper = y.clone()
    pepper[..., 0, :] = 1.0
    kept = restore(model, pepper, Identity(SHAPE), "mmps", noise=SaltPepperNoise(0.1), samples=64, steps=10)
    assert float(kept.mean[..., 0, :].abs().mean()) < 0.5  # the prior's, not the salt's
    torch.testing.assert_close(kept.mean[..., 1:, :], y[..., 1:, :], rtol=0, atol=0.1)
    counts = restore(model, y, Identity(SHAPE), noise=PoissonNoise(100.0), samples=2, steps=10)
    assert counts.method == "mmps"
    assert "PoissonNoise counts as" in " ".join(counts.warnings)
    assert not restore(model, y, Identity(SHAPE), "dps", noise=PoissonNoise(100.0), samples=1, steps=3).warnings


@pytest.mark.parametrize("law", [PoissonNoise(8.0), SpeckleNoise(4.0), UniformNoise(0.2), SaltPepperNoise(0.2)])
def test_gradients_of_any_likelihood_draw_to_the_measurement(model: Model, law: NoiseModel) -> None:
    """Dark pixels, where answers have negative intensities; laws of bounds and atoms, which have no slope."""
    clean = pictures(2, *SHAPE) - 0.4
    y = law.sample(clean.clamp(-1, 1), KeyedNoise(7, range(2)))
    known = law.known(y)
    far = (y - 0.2).square() if known is None else (y - 0.2).square()[known]
    for method in ("dps", "red-diff"):
        found = restore(
            model,
            y,
            Identity(SHAPE),
            method,
            noise=law,
            samples=1,
            steps=30,
            options={"lr": 0.1} if method == "red-diff" else {},
        )
        near = (y - found.samples[0]).square()
        assert near.isfinite().all()
        assert (near if known is None else near[known]).mean() < 0.5 * (far.mean() + 0.3), method


@pytest.mark.parametrize("method", ["dps", "tds", "daps-moments"])
def test_other_noise_does_not_couple_pictures_or_chunks(model: Model, method: str) -> None:
    y = torch.stack([torch.full(SHAPE, -0.9), torch.full(SHAPE, 0.9)])
    options: dict[str, Any] = {"noise": PoissonNoise(20.0), "samples": 2, "steps": 3}
    if method == "tds":
        options["options"] = {"particles": 4}
    whole = restore(model, y, Identity(SHAPE), method, **options)
    cut = restore(model, y, Identity(SHAPE), method, batch_size=2, **options)
    torch.testing.assert_close(cut.samples, whole.samples)
    if method == "dps":
        alone = restore(model, y[:1], Identity(SHAPE), method, **options)
        torch.testing.assert_close(alone.samples[:, 0], whole.samples[:, 0])


def test_residuals_count_what_was_measured(model: Model) -> None:
    """The truth's own residual, noise of 0.1: five standard errors of 32 numbers or more."""
    x, shape = pictures(4, *SHAPE), SHAPE
    scan = mri_scan(shape, pattern="equispaced", acceleration=2, centre=0.0)
    for operator in (scan, chain(gaussian_blur(shape, sigma=1.0), Mask(shape, HOLE))):
        noise = 0.1 * KeyedNoise(9, range(4)).normal("measure", 0, operator.out_shape)
        y = operator(x) + noise  # also where nothing is measured
        fitted = fit(prior_of(model, shape), y, operator, 0.1, None, None, None)
        assert torch.equal(fitted.y, operator(x) + operator.measured(noise))
        assert (_residual(fitted, x, make_restorer("ddnm"), {}) - 0.1).abs().max() < 0.1 * 5 / 64**0.5


@pytest.mark.parametrize("name", ["dps", "psld", "resample"])
def test_latent_models_are_restored_through_their_decoder(name: str) -> None:
    """An orthogonal codec: latents of Gaussian pictures; the measurement must be met better than by the prior."""
    spec = DataSpec(kind="image", shape=SHAPE, range=(-1.0, 1.0))
    codec = small_codec(spec)
    size = codec.latent.shape
    count = size[0] * size[1] * size[2]
    prior = GaussianDenoiser(torch.zeros(size), torch.eye(count), VP, spec=codec.latent)
    latent = Model(prior, spec, codec=codec)
    operator = Downsample(SHAPE, 2)
    y = operator(codec.decode(KeyedNoise(1, range(2)).normal("data", 0, size)))
    blind = (operator(codec.decode(KeyedNoise(2, range(2)).normal("data", 0, size))) - y).square().mean().sqrt()
    result = restore(latent, y, operator, name, noise_std=0.02, samples=2, steps=40)
    assert result.samples.shape == (2, 2, *SHAPE)
    assert result.residual_rms.mean() < 0.5 * blind
    with pytest.raises(ValueError, match=r"latent model.*methods that work: dps"):
        restore(latent, y, operator, "ddrm", noise_std=0.02)


def test_latents_are_fitted_alike_on_every_schedule() -> None:
    """The variance-exploding state is the variance-preserving one over alpha, at equal levels sigma / alpha."""
    codec = small_codec(DataSpec(kind="image", shape=SHAPE, range=(-1.0, 1.0)))
    operator = Decoded(Identity(SHAPE), codec)
    found = []
    z, x = pictures(2, *codec.latent.shape), pictures(2, *codec.latent.shape) + 0.3
    for process in (VP, process_of("ve")):
        levels = torch.tensor([-0.5, 0.2], dtype=torch.float64)  # half log-SNR before and after a step
        before, after = (float(t) for t in process.schedule.time(levels))
        alpha, sigma = process.coefficients(after, x)
        task = Problem(
            denoiser=Pixels(), y=pictures(2, *SHAPE), operator=operator, noise_std=0.0, shape=codec.latent.shape
        )
        rule = LatentFit(process, task, make_restorer("resample", every=1, descents=3))
        rule.correct(Posterior(z), x, before, after)
        length = (alpha**2 + sigma**2) ** 0.5
        found.append(rule.leave(length * x, after, 0, KeyedNoise(0, range(2)))[0] / length)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], x, atol=0.05)


def small_codec(spec: DataSpec) -> Any:
    return PatchPCA(spec, PCAOptions(patch=2), channels=3)


def test_auto_says_why(model: Model) -> None:
    blur, hole = gaussian_blur(SHAPE, sigma=1.0), Mask(SHAPE, HOLE)
    prior = GaussianDenoiser(torch.zeros(SHAPE), 0.3 * torch.eye(64), VP)
    asked = [
        (prior, hole, 0.1, None, "daps-moments"),
        (Pixels(), hole, 0.1, None, "mmps"),
        (Pixels(), hole, 0.1, 150, "pigdm"),
        (Pixels(), hole, 0.05, 40, "dds"),
        (Pixels(), blur, 0.05, 40, "diffpir"),
        (Pixels(), Clip(SHAPE), 0.1, None, "dps"),
        (Pixels(), Quantise(SHAPE, bits=2, straight_through=False), 0.1, None, "pigdm"),
    ]
    for denoiser, operator, std, budget, method in asked:
        choice = choose(denoiser, operator, std, True, budget)
        assert choice.method == method, (operator, budget)
        assert choice.why
        if budget:
            assert choice.steps
            assert choice.steps <= budget
    told: list[Event] = []
    result = restore(model, hole(pictures(1, *SHAPE)), hole, noise_std=0.1, samples=1, steps=3, listener=told.append)
    assert (result.method, bool(result.why)) == ("mmps", True)
    assert [event.total for event in told if isinstance(event, Started)] == [3]
    assert [event.done for event in told if isinstance(event, Advanced)] == [1, 2, 3]
    assert any("mmps" in event.text for event in told if isinstance(event, Message))


def test_the_catalogue_is_that_of_the_classes() -> None:
    assert list(FACTS) == list(RESTORERS)
    for name, facts in FACTS.items():
        kind = restorer_class(name)
        told = (facts.needs, facts.noise, facts.gradient, facts.experimental)
        assert told == (kind.needs, kind.noise, kind.gradient, kind.experimental), name
        assert set(facts.needs) <= set(NEEDS)
        assert make_restorer(name)


def test_what_cannot_be_done_is_said(model: Model) -> None:
    hole, y = Mask(SHAPE, HOLE), pictures(1, *SHAPE)
    jpeg = JPEG(SHAPE, quality=20)
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"y has shape \(1, 1, 4, 4\); expected \(B, 1, 8, 8\)", {"y": y[..., :4, :4]}),
        ("negative; give a standard deviation in model units", {"noise_std": -0.1}),
        ("noise_std and noise both", {"noise_std": 0.1, "noise": PoissonNoise(9.0)}),
        ("2 values that are not finite", {"y": y.clone().flatten().index_fill(0, torch.tensor([0, 5]), torch.nan)}),
        ("methods that work: pigdm", {"operator": jpeg, "method": "ddrm"}),
        ("needs a mask", {"operator": Identity(SHAPE), "method": "repaint"}),
        ("y has 1 items and the operator .* parameters for 2", {"operator": Mask(SHAPE, torch.stack([HOLE, HOLE]))}),
        ("its own are: grid, weight, snr", {"method": "score-mri", "options": {"repeats": 2}}),
        ("its own are: grid, solver, lam, zeta", {"method": "diffpir", "options": {"eta": 0.5}}),
        ("needs a latent model", {"method": "resample"}),
        ("unknown; `undiffuse solvers --restore`.*mmps", {"method": "mmsp"}),
        ("its own are: eta, grid, scale", {"method": "dps", "options": {"zeta": 1}}),
        ("budget is for method='auto'", {"method": "dps", "budget": 10}),
        ("must be at least 1", {"samples": 0}),
        ("Channels must agree", {"operator": Identity((3, 8, 8)), "y": pictures(1, 3, 8, 8)}),
        ("leave tile out", {"tile": 4}),
        ("complex", {"y": y.to(torch.complex64)}),
        ("budget=0 must be at least 1", {"budget": 0}),
        ("tile=-3 must be at least 0", {"tile": -3}),
    ]
    for message, given in cases:
        seen = given.pop("y", y)
        seen = seen.reshape(1, *SHAPE) if seen.ndim == 1 else seen
        with pytest.raises(ValueError, match=message):
            restore(model, seen, given.pop("operator", hole), given.pop("method", "auto"), **{"steps": 2, **given})
    with pytest.raises(TypeError, match="needs a Model or a Denoiser"):
        restore("digits", y, hole)
    with pytest.raises(TypeError, match="this model's data are tokens") as refused:
        restore(tokens(), y, hole)
    assert "bug" not in message_of(refused.value) and "\n" not in message_of(refused.value)
    assert "ddrm" not in working_methods(jpeg) and "supervised" not in working_methods(jpeg)


def test_what_will_go_wrong_is_warned_of(model: Model) -> None:
    hole, blur, y = Mask(SHAPE, HOLE), gaussian_blur(SHAPE, sigma=1.0), pictures(1, *SHAPE)
    asked: list[tuple[str, Any, float, str]] = [
        ("ddnm", hole, 0.1, "will be reproduced"),
        ("ddnm", blur, 0.0, "ill-conditioned"),
        ("mmps", hole, 0.0, "was raised to 0.00577 (model units)"),
        ("diffpir", hole, 0.0, "was raised to 0.002 (model units)"),
        ("mmps", hole, 8.0, "Divide by 127.5"),
    ]
    for method, operator, std, warning in asked:
        result = restore(model, operator(y), operator, method, noise_std=std, samples=1, steps=2, clip=(-99, 99))
        assert warning in " ".join(result.warnings)
    assert poorly_conditioned(blur)
    assert not poorly_conditioned(hole)


def test_answers_far_from_the_measurement_are_warned_of(model: Model) -> None:
    y = pictures(1, *SHAPE)
    astray = restore(model, y, Identity(SHAPE), "dps", noise_std=0.1, samples=1, steps=2, options={"scale": 0.0})
    assert "times its noise (0.1)" in astray.warnings[-1]
    fair = restore(model, y, Identity(SHAPE), "mmps", noise_std=0.1, samples=1, steps=20)
    assert not any("times its noise" in text for text in fair.warnings)


def test_a_rough_start_saves_steps(model: Model) -> None:
    hole, y = Mask(SHAPE, HOLE), pictures(1, *SHAPE)
    options: dict[str, Any] = {"noise_std": 0.1, "samples": 1, "steps": 5}
    near = restore(model, hole(y), hole, "diffpir", start=0.05, x_init=y, **options)
    far = restore(model, hole(y), hole, "diffpir", **options)
    hidden = HOLE[None] == 0
    assert (near.mean - y)[hidden].square().mean() < 0.3 * (far.mean - y)[hidden].square().mean()

"""Noise of a drawn level that the network is told (conditioning augmentation), and what restoring does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import undiffuse as ud
from undiffuse import operators as ops
from undiffuse.codecs.options import PCAOptions
from undiffuse.codecs.pca import PatchPCA
from undiffuse.config import resolve
from undiffuse.data.options import DataOptions
from undiffuse.errors import ConfigError
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.degrade import Degrade, told_spec
from undiffuse.training.recipe import Recipe, recipe_layer

SPEC = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 1.0))
SMALL = {"model.channels": 8, "model.multipliers": [1], "model.blocks": 1}
RANGE = "downsample:2|noise:gaussian,0.05..0.2"
OP = ops.Downsample((1, 8, 8), 2)


def batch(n: int) -> dict[str, Any]:
    return {"x": torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, "cond": {}}


def untrained(text: str, codec: PatchPCA | None = None) -> Model:
    """Return a model of SR3's kind with other weights than fresh ones, which answer 0."""
    start = {"process.start": "noise", "process.schedule": "cosine", "process.prediction": "v"}
    recipe = resolve(Recipe, recipe_layer("restoration"), SMALL | start | {"data.degrade": text})
    told = told_spec(SPEC, recipe.data)
    made = None if codec is None else PatchPCA(told, PCAOptions(patch=2), channels=4)
    denoiser = build_denoiser(recipe, told if made is None else made.latent, told=True)
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=drawn))
    return Model(denoiser.eval(), told, codec=made)


def test_levels_are_drawn_told_and_keyed() -> None:
    degrade, noise = Degrade(RANGE, SPEC), KeyedNoise(3, torch.arange(6))
    cond = degrade(batch(6), noise)["cond"]
    assert cond["noise_level"].shape == (6, 1) and cond["noise_level"].dtype == torch.float32
    std = 2 * (0.05 + 0.15 * cond["noise_level"])  # model units
    y = OP(batch(6)["x"]) + std[..., None, None] * noise.normal("measure", 0, (1, 4, 4))
    torch.testing.assert_close(cond["source"], OP.pinv(y))
    alone = degrade({"x": batch(6)["x"][2:3], "cond": {}}, KeyedNoise(3, torch.tensor([2])))["cond"]
    assert torch.equal(alone["noise_level"], cond["noise_level"][2:3])
    torch.testing.assert_close(alone["source"], cond["source"][2:3])
    (told,) = (part for name, part in told_spec(SPEC, DataOptions(degrade=RANGE)).cond.items() if name != "source")
    assert told == ConditionSpec(kind="vector", width=1, mean=(0.05,), std=(told.std[0],), null="zero")
    assert told.std[0] == pytest.approx(0.15)
    many = degrade({"x": batch(1)["x"].expand(4000, 1, 8, 8), "cond": {}}, KeyedNoise(0, torch.arange(4000)))["cond"]
    level = many["noise_level"][:, 0].double().sort().values
    even = (torch.arange(4000).double() + 0.5) / 4000
    assert float((level - even).abs().max()) < 2.3 / 4000**0.5  # Kolmogorov: passed by chance once in 20 000


def test_every_way_of_all_in_one_tells_its_level() -> None:
    texts = "downsample:2; blur:uniform,3|noise:gaussian,0.1; noise:gaussian,0.05..0.2"
    degrade = Degrade(texts, SPEC)
    cond = degrade({"x": batch(1)["x"].expand(200, 1, 8, 8), "cond": {}}, KeyedNoise(0, torch.arange(200)))["cond"]
    level = 0.2 * cond["noise_level"][:, 0]  # of 0 to 0.2
    assert bool((level[cond["task"] == 0] == 0).all())
    torch.testing.assert_close(level[cond["task"] == 1], torch.full_like(level[cond["task"] == 1], 0.1))
    drawn = level[cond["task"] == 2]
    assert 0.05 <= float(drawn.min()) < float(drawn.max()) <= 0.2
    assert "noise_level" not in Degrade("downsample:2; noise:gaussian,0.1", SPEC).conditions(SPEC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("noise:poisson,10..30", "only gaussian may have"),
        ("noise:gaussian,0.2..0.1", "empty range"),
        ("noise:gaussian,0..5", "5 in 0..255 is 0.02"),
        ("noise:gaussian,0..", "0.."),
        ("noise:gaussian,-0.1..0.2", "-0.1"),
        ("noise:poisson; noise:gaussian,0..0.1", "told for gaussian alone"),
    ],
)
def test_bad_ranges_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Degrade(text, SPEC)


def test_a_condition_of_that_name_is_refused() -> None:
    named = DataSpec(kind="image", shape=(1, 8, 8), cond={"noise_level": ConditionSpec(kind="vector", width=1)})
    with pytest.raises(ConfigError, match="'noise_level' of their own"):
        Degrade(RANGE, named)
    Degrade("downsample:2|noise:gaussian,0.05", named)


class Heard:
    """Records the conditions of every restoration."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cond: list[dict[str, Tensor]] = []
        embed = model.denoiser.embed

        def listening(cond: Any, *given: Any, **named: Any) -> Any:
            self.cond.append(dict(cond))
            return embed(cond, *given, **named)

        monkeypatch.setattr(model.denoiser, "embed", listening)


@pytest.mark.parametrize("latent", [False, True])
def test_the_level_of_y_is_told_and_what_it_lacks_is_added(latent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = PatchPCA(SPEC, PCAOptions(patch=2), channels=4) if latent else None
    model = untrained("noise:gaussian,0.05..0.2", codec)
    heard, identity = Heard(model, monkeypatch), ops.Identity((1, 8, 8))
    y = batch(3)["x"]

    def told(noise_std: float, **given: Any) -> tuple[float, Tensor]:
        """The level told, and what was added to y (K, B, ...)."""
        options = {"level": given.pop("level")} if "level" in given else {}
        ud.restore(model, y, identity, "supervised", noise_std=noise_std, samples=40, steps=1, options=options, **given)
        cond = heard.cond[-1]
        assert bool((cond["noise_level"] == cond["noise_level"][0]).all())
        source = cond["source"] if model.codec is None else model.codec.decode(cond["source"])
        return float(cond["noise_level"][0]), (source - y.repeat_interleave(40, 0)).reshape(3, 40, 64)

    for noise_std, given, level, added in (
        (0.2, {}, (0.1 - 0.05) / 0.15, 0.0),  # 0.2 in model units is 0.1
        (0.2, {"level": 0.2}, 1.0, (0.4**2 - 0.2**2) ** 0.5),
        (0.0, {}, 0.0, 0.1),  # the lowest that it knows
        (0.2, {"cond": {"noise_level": [0.125]}}, 0.5, 0.0),  # said by hand
    ):
        found, noise = told(noise_std, batch_size=200, **given)
        assert found == pytest.approx(level, abs=1e-6)
        assert float(noise.std()) == pytest.approx(added, rel=5 / (2 * 7680) ** 0.5, abs=1e-6)
        if added:
            assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 5 * added**2 / 192**0.5  # samples have their own


def test_added_noise_is_keyed_and_lies_where_something_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained("inpaint:random,0.5|noise:gaussian,0..0.2")
    heard = Heard(model, monkeypatch)
    hole = torch.ones(1, 8, 8)
    hole[:, 2:6] = 0
    operator = ops.Mask((1, 8, 8), hole)
    y = operator(batch(2)["x"])
    options: dict[str, Any] = {"samples": 2, "steps": 2, "options": {"level": 0.1}}
    whole = ud.restore(model, y, operator, "supervised", **options)
    given = heard.cond[-1]["source"]
    assert bool((given[..., 2:6, :] == 0).all()) and bool(
        (given[..., :2, :] != y.repeat_interleave(2, 0)[..., :2, :]).all()
    )
    cut = ud.restore(model, y, operator, "supervised", batch_size=1, **options)
    torch.testing.assert_close(cut.samples, whole.samples)
    told = [ud.restore(model, y, operator, "supervised", **options | {"options": {"level": at}}) for at in (0.0, 0.2)]
    assert not torch.allclose(told[0].samples, told[1].samples, atol=1e-2)


def test_levels_that_cannot_be_are_refused() -> None:
    model, plain = untrained("noise:gaussian,0.05..0.2"), untrained("noise:gaussian,0.1")
    y, identity = batch(1)["x"], ops.Identity((1, 8, 8))
    few: dict[str, Any] = {"samples": 1, "steps": 1}
    for asked, options, said in (
        (model, {"options": {"level": 0.3}}, "level=0.3 is outside of what this model knows, 0.05 to 0.2"),
        (model, {"options": {"level": 0.01}}, "level=0.01 is outside"),
        (model, {"options": {"level": 0.1}, "noise_std": 0.3}, "y has noise of 0.15 already"),
        (model, {"options": {"level": 0.1}, "cond": {"noise_level": [0.1]}}, "give one of them"),
        (plain, {"options": {"level": 0.1}}, "not trained with a range of noise"),
    ):
        with pytest.raises(ValueError, match=said):
            ud.restore(asked, y, identity, "supervised", **few, **options)
    (warning,) = ud.restore(model, y, identity, "supervised", noise_std=0.6, **few).warnings[:1]
    assert "noise of 0.3 in y is more than this model knows" in warning


def test_a_run_previews_and_a_few_steps_make_the_level_count(tmp_path: Path) -> None:
    texts = [f"{key}={value}" for key, value in SMALL.items()]
    small = ["train.steps=6", "train.batch_size=8", "train.previews=2", "train.warmup=1", "train.validate_items=8"]
    run = ud.train("digits", "restoration", out=tmp_path, overrides=[*texts, *small, f"data.degrade={RANGE}"])
    assert list((tmp_path / "samples").glob("step-*.png"))
    model = ud.load(tmp_path)
    assert model.spec.cond["noise_level"] == run.model.spec.cond["noise_level"]
    given = {"source": batch(2)["x"]}
    low, default, high = (
        model.sample(2, steps=2, cond={**given, **({"noise_level": [at]} if at else {})}) for at in (0.05, None, 0.2)
    )
    assert torch.equal(low, default)  # not said: the lowest
    assert not torch.equal(low, high)


@pytest.mark.slow
def test_the_right_level_is_the_best_one_to_tell(tmp_path: Path) -> None:
    """A step from noisy digits to their mean: for every noise the error is least where the truth is told."""
    overrides = ["model.channels=16", "model.multipliers=[1]", "model.blocks=1", "process.schedule=i2sb"]
    overrides += ["data.degrade=noise:gaussian,0..0.5", "train.warmup=10", "train.lr=3e-3", "train.previews=1"]
    run = ud.train("digits", "restoration", out=tmp_path, overrides=[*overrides, "train.steps=250"])
    x = ud.data.split(ud.data.open_data("digits"))[1].batch(torch.arange(200))["x"]
    noise, denoiser = KeyedNoise(1, range(200)).normal("measure", 0, (1, 8, 8)), run.model.denoiser
    errors = torch.empty(3, 3)
    for i, level in enumerate((0.0, 0.25, 0.5)):
        for j, told in enumerate((0.0, 0.5, 1.0)):
            cond = {"source": x + 2 * level * noise, "noise_level": torch.full((200, 1), told)}
            with torch.no_grad():
                mean = denoiser(torch.zeros_like(x), 1.0, denoiser.embed(cond, 200)).mean
            errors[i, j] = (mean - x).square().mean()
    assert errors.argmin(1).tolist() == [
        0,
        1,
        2,
    ]  # measured: 0.010, 0.060, 0.155 where the others have 0.025, 0.064, 0.166

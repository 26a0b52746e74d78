"""Degrading on the fly, and models that walk from a given picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import undiffuse as ud
from undiffuse import operators as ops
from undiffuse.config import resolve
from undiffuse.data.dataset import TensorDataset
from undiffuse.data.options import DataOptions
from undiffuse.errors import ConfigError
from undiffuse.models import load
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.degrade import Degrade, make_transforms, told_spec
from undiffuse.training.recipe import Recipe, recipe_layer
from undiffuse.training.stream import BatchStream

SPEC = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 1.0))


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, "cond": {}}


def test_items_are_measured_with_keyed_noise() -> None:
    degrade = Degrade("downsample:2|noise:gaussian,0.05", SPEC)
    noise, x = KeyedNoise(3, torch.arange(6)), batch()["x"]
    given = degrade(batch(), noise)["cond"]["source"]
    op = ops.Downsample((1, 8, 8), 2)
    y = op(x) + 0.1 * noise.normal("measure", 0, (1, 4, 4))
    torch.testing.assert_close(given, op.pinv(y))
    part = {"x": x[2:3], "cond": {}}
    torch.testing.assert_close(degrade(part, KeyedNoise(3, torch.tensor([2])))["cond"]["source"], given[2:3])
    told = told_spec(SPEC, DataOptions(degrade="downsample:2"))
    assert told.cond == {"source": ConditionSpec(kind="map", width=1)}


def test_masks_are_drawn_for_every_item_and_visit() -> None:
    degrade = Degrade("inpaint:random,0.5", SPEC)
    ones = {"x": torch.ones(4, 1, 8, 8), "cond": {}}
    first = degrade(ones, KeyedNoise(0, torch.arange(4)))["cond"]["source"]
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 4
    later = degrade(ones, KeyedNoise(0, torch.arange(4, 8)))["cond"]["source"]
    assert not torch.equal(first, later)


def test_noise_lies_where_something_is_known() -> None:
    """As `restore` gives it to the network."""
    degrade = Degrade("inpaint:random,0.5|noise:gaussian,0.1", SPEC)
    ones = {"x": torch.ones(4, 1, 8, 8), "cond": {}}
    given = degrade(ones, KeyedNoise(0, torch.arange(4)))["cond"]["source"]
    assert 0.3 < float((given == 0).double().mean()) < 0.7


def test_all_in_one_takes_turns_and_tells_which() -> None:
    degrade = Degrade("downsample:2; blur:uniform,3 ;noise:gaussian,0.1", SPEC)
    rows = {"x": batch(1)["x"].expand(300, 1, 8, 8), "cond": {}}
    cond = degrade(rows, KeyedNoise(0, torch.arange(300)))["cond"]
    counts = torch.bincount(cond["task"], minlength=3)
    assert bool(((counts - 100).abs() < 5 * (300 * 2 / 9) ** 0.5).all())
    blurred = ops.uniform_blur((1, 8, 8), size=3)(rows["x"][:1])
    assert bool((cond["source"][cond["task"] == 1] - blurred).abs().max() < 1e-5)
    told = told_spec(SPEC, DataOptions(degrade="downsample:2; blur:uniform,3"))
    assert told.cond["task"].classes == ("downsample:2", "blur:uniform,3")


@pytest.mark.parametrize(
    ("text", "said"),
    [("downsmple:2", "Did you mean 'downsample'"), ("downsample:3", "does not divide"), ("noise:gausian", "gaussian")],
)
def test_bad_texts_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Degrade(text, SPEC)


SMALL = {"model.channels": 8, "model.multipliers": [1], "model.blocks": 1, "data.degrade": "downsample:2"}


@pytest.mark.parametrize("schedule", ["ir-sde", "resshift", "i2sb", "indi", "rddm", "cosine"])
def test_a_walk_from_the_given_picture_has_every_solver(schedule: str, tmp_path: Path) -> None:
    """An untrained network answers 0 at first, so it says nothing; what counts is that all is finite and goes by y."""
    recipe = resolve(Recipe, recipe_layer("restoration"), SMALL | {"process.schedule": schedule})
    model = Model(build_denoiser(recipe, SPEC), told_spec(SPEC, recipe.data))
    y = ops.Downsample((1, 8, 8), 2)(batch(2)["x"])
    given = {"source": y.repeat_interleave(2, -1).repeat_interleave(2, -2)}
    for solver in ("ddim", "ddpm", "dpm++2m", "sde-dpm++2m", "edm-heun", "euler"):
        x = model.sample(2, steps=4, solver=solver, grid="t", cond=given)
        assert bool(torch.isfinite(x).all()), solver
    again = load(model.save(tmp_path / "model"))
    assert torch.equal(
        again.sample(2, steps=4, solver="ddpm", cond=given), model.sample(2, steps=4, solver="ddpm", cond=given)
    )
    with pytest.raises(ValueError, match="restores a given picture"):
        model.sample(1, steps=2)


def test_the_network_is_shown_the_state_with_the_given_picture() -> None:
    recipe = resolve(Recipe, recipe_layer("restoration"), SMALL | {"process.schedule": "indi"})
    denoiser = build_denoiser(recipe, SPEC)
    seen = []
    denoiser.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, y = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    denoiser(x, 0.25, denoiser.embed({"source": y}, 2))
    scale = (0.0025**2 + 0.5**2) ** -0.5  # alpha = 0.75, sigma = 0.01 t, data_std = 0.5
    torch.testing.assert_close(seen[0][:, :1], scale * (x + 0.25 * y))
    denoiser(x, torch.tensor([0.25, 0.5]), denoiser.embed({"source": y}, 2))
    torch.testing.assert_close(seen[1][1, :1], (0.005**2 + 0.25) ** -0.5 * (x[1] + 0.5 * y[1]))
    assert "source" in denoiser.kept_conditions


@pytest.mark.parametrize(
    ("degrade", "told"),
    [
        ("inpaint:random|noise:poisson", ("source",)),
        ("downsample:2|noise:gaussian,0..0.2", ("source", "noise_level")),
    ],
)
def test_batches_are_functions_of_seed_and_step(degrade: str, told: tuple[str, ...]) -> None:
    recipe = resolve(Recipe, recipe_layer("restoration"), SMALL | {"data.degrade": degrade})
    denoiser = build_denoiser(recipe, SPEC)
    objective = make_objective(recipe.objective, denoiser)
    data = TensorDataset(spec=SPEC, data=torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    def stream() -> BatchStream:
        transforms = make_transforms(recipe.data, SPEC)
        return BatchStream(data, objective, denoiser, seed=4, batch_size=5, transforms=transforms)

    running = stream()
    walked = [running.step(k) for k in range(70)]  # more than a block
    resumed = stream().step(69)
    assert torch.equal(resumed.x, walked[69].x)
    for name in told:
        assert torch.equal(resumed.cond[name], walked[69].cond[name])
        assert not torch.equal(walked[68].cond[name], walked[69].cond[name])


def test_a_run_degrades_previews_validates_and_restores(tmp_path: Path) -> None:
    texts = [f"{key}={value}" for key, value in SMALL.items()]
    small = ["train.steps=4", "train.batch_size=8", "train.validate_items=8", "train.previews=2", "train.warmup=1"]
    ud.train("digits", "restoration", out=tmp_path, overrides=[*texts, *small, "process.schedule=i2sb"])
    assert list((tmp_path / "samples").glob("step-*.png"))
    model, op = load(tmp_path), ops.Downsample((1, 8, 8), 2)
    y = op(batch(2)["x"])
    found = ud.restore(model, y, op, "supervised", samples=2, steps=3, seed=1)
    assert found.samples.shape == (2, 2, 1, 8, 8) and bool(torch.isfinite(found.samples).all())
    assert found.nfe == 3
    plain = model.sample(2, steps=3, solver="ddim", grid="t", cond={"source": op.pinv(y)})
    still = ud.restore(model, y, op, "supervised", samples=1, steps=3, seed=0, options={"eta": 0.0})
    torch.testing.assert_close(still.samples[0, :1], model.spec.to_model(plain)[:1], atol=1e-4, rtol=0)  # one noise
    wide = ops.Downsample((1, 12, 16), 2)  # larger than the model: tiles, each shown its part of the given picture
    large = ud.restore(model, wide(torch.rand(1, 1, 12, 16)), wide, samples=1, steps=2)
    assert (large.method, tuple(large.mean.shape)) == ("supervised", (1, 1, 12, 16))
    assert "trained to restore" in large.why


def test_other_models_are_refused() -> None:
    op = ops.Downsample((1, 8, 8), 2)
    with pytest.raises(ValueError, match="trained with given pictures"):
        ud.restore(ud.load("digits"), torch.zeros(1, 1, 4, 4), op, "supervised")


def test_a_walk_needs_a_given_picture_with_the_channels_of_the_data() -> None:
    recipe = resolve(Recipe, recipe_layer("restoration"), {**SMALL, "data.degrade": ""})
    with pytest.raises(ConfigError, match=r"pairs \(data\.pair\) or data\.degrade"):
        build_denoiser(recipe, SPEC)
    grey = replace(SPEC, cond={"source": ConditionSpec(kind="map", width=3)})
    with pytest.raises(ConfigError, match="3 channels but the data have 1"):
        build_denoiser(recipe, grey)
    with pytest.raises(ConfigError, match="'source' of their own"):
        Degrade("downsample:2", grey)

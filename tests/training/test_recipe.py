"""The recipe tree, the shipped recipes, and the plan."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.training.test_resume import ROOT
from undiffuse.config import resolve, to_dict
from undiffuse.data import TensorDataset
from undiffuse.errors import ConfigError, TrainingError
from undiffuse.networks import build_network
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training import memory
from undiffuse.training.build import build_denoiser, make_objective, make_process
from undiffuse.training.degrade import told_spec
from undiffuse.training.memory import Footprint, footprint, require_training_memory
from undiffuse.training.planning import plan
from undiffuse.training.recipe import RECIPES, Recipe, changed_keys, choose_recipe, override_layers, recipe_layer
from undiffuse.training.stream import block_elements

SPECS = {
    "digits": DataSpec(kind="image", shape=(1, 8, 8), classes=tuple("0123456789")),
    "cifar10": DataSpec(kind="image", shape=(3, 32, 32), range=(0, 255), classes=tuple("abcdefghij")),
    "image": DataSpec(kind="image", shape=(3, 16, 16)),
    "restoration": DataSpec(kind="image", shape=(3, 16, 16), cond={"source": ConditionSpec(kind="map", width=3)}),
    "latent": DataSpec(kind="image", shape=(4, 8, 8)),
    "video": DataSpec(kind="video", shape=(4, 3, 16, 16)),
    "video-digits": DataSpec(kind="video", shape=(8, 1, 16, 16), classes=tuple("0123456789")),
    "signals": DataSpec(kind="signal", shape=(1, 64)),
    "table": DataSpec(kind="tokens", shape=(2,), vocabulary=tuple("abcde"), columns={"one": 2, "two": 3}),
    "vector": DataSpec(kind="vector", shape=(5,)),
    "text": DataSpec(kind="tokens", shape=(12,), vocabulary=tuple("abcdef")),
    "vq-image": DataSpec(kind="tokens", shape=(12,), grid=(3, 4), vocabulary=tuple("abcdef")),
    "vq-ddm": DataSpec(kind="tokens", shape=(12,), grid=(3, 4), vocabulary=tuple("abcdef")),
    "vq-diffusion": DataSpec(kind="tokens", shape=(12,), grid=(3, 4), vocabulary=tuple("abcdef")),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_builds_for_its_data(name):
    recipe = resolve(Recipe, recipe_layer(name))
    denoiser = build_denoiser(recipe, SPECS[name])
    make_objective(recipe.objective, denoiser)
    assert resolve(Recipe, to_dict(recipe)) == recipe
    named_only = ("digits", "cifar10", "latent", "restoration", "video-digits", "vq-image", "vq-ddm", "vq-diffusion")
    assert name in named_only or choose_recipe(SPECS[name]) == name


@pytest.mark.parametrize("name", ["digits", "video-digits"])
def test_built_in_data_choose_the_recipe_made_for_them(name):
    assert choose_recipe(SPECS[name], name) == name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    weights = []
    for seed in (0, 0, 1):
        recipe = resolve(Recipe, recipe_layer("vector"), {"train.seed": seed})
        weights.append(torch.cat([p.flatten() for p in build_denoiser(recipe, SPECS["vector"]).parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="digits"):
        recipe_layer("digit")


def test_bare_keywords_are_training_options():
    recipe = resolve(Recipe, *override_layers(["model.channels=16"], steps=20_000, sample={"steps": 5}))
    assert (recipe.train.steps, recipe.model.channels, recipe.sample.steps) == (20_000, 16, 5)
    with pytest.raises(ConfigError, match="nearest"):
        resolve(Recipe, *override_layers(stepz=3))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"model": "transformer"}, "process=categorical"),
        ({"process": "categorical", "model": "mlp"}, "model=transformer"),
        ({"objective": "masked-elbo"}, "denoising"),
        (
            {
                "model": "transformer",
                "process": {"kind": "categorical", "corruption": "uniform"},
                "objective": "categorical-elbo",
            },
            "time_dependent",
        ),
        ({"train.steps": -1}, "at least 1"),
        ({"train.lr": "fast"}, "expected float"),
        ({"train.ema": [0.5]}, "0.28"),
        ({"process.shift": 3.0}, "rf"),
        ({"objective.times": "importance", "objective.p_async": 0.2}, "p_async=0"),
        ({"sample.guidance_interval": [2.0, 1.0]}, "rising"),
        ({"sample.guidance_rescale": 1.5}, "share"),
        (
            {
                "model": "transformer",
                "process": "categorical",
                "objective": "masked-elbo",
                "sample.guidance_rescale": 0.5,
            },
            "tokens",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(layer, words):
    with pytest.raises(ConfigError, match=words):
        resolve(Recipe, layer)


def test_an_objective_must_fit_the_data():
    recipe = resolve(Recipe, recipe_layer("vector"), {"objective.p_async": 0.2})
    with pytest.raises(ConfigError, match="no frames"):
        make_objective(recipe.objective, build_denoiser(recipe, SPECS["vector"]))
    with pytest.raises(ConfigError, match="recipe text"):
        build_denoiser(recipe, SPECS["text"])


def test_changed_keys_are_named_and_runtime_keys_are_free():
    old = resolve(Recipe, recipe_layer("vector"))
    new = resolve(Recipe, recipe_layer("vector"), {"train.lr": 0.5, "train.keep": 9, "train.preview_every": 7})
    assert changed_keys(to_dict(old), new) == ["train.lr: 0.002 -> 0.5"]
    elsewhere = resolve(Recipe, recipe_layer("vector"), {"train.device": "cpu", "train.log_every": 3})
    assert not changed_keys(to_dict(old), elsewhere)


def test_a_path_may_be_spelled_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def changes(old: str, new: str) -> list[str]:
        recipes = [resolve(Recipe, recipe_layer("image"), {"data.source": name}) for name in (old, new)]
        return changed_keys(to_dict(recipes[0]), recipes[1])

    for spelling in ("photos/", "./photos", str(tmp_path / "photos"), "other/../photos"):
        assert not changes("photos", spelling)
    assert changes("photos", "other/photos")
    assert changes("digits", "./digits"), "a built-in name is no path"


@pytest.mark.parametrize("name", RECIPES)
def test_the_footprint_counts_parameters_exactly_and_builds_nothing(name):
    recipe = resolve(Recipe, recipe_layer(name))
    states = {"text": 7, "table": 6, "vq-image": 7, "vq-ddm": 6, "vq-diffusion": 7}.get(name)
    network = build_network(recipe.model, told_spec(SPECS[name], recipe.data), states=states)
    parameters = sum(p.numel() for p in network.parameters())
    need = footprint(recipe, SPECS[name])
    assert need.parameters == parameters
    own_block = 64 * block_elements(SPECS[name], recipe.train.batch_size)
    assert need.bytes > 6 * 4 * parameters + own_block
    assert footprint(resolve(Recipe, to_dict(recipe), {"train.accumulate": 2}), SPECS[name]).bytes < need.bytes


def test_a_network_beyond_the_memory_is_refused_before_it_is_built():
    recipe = resolve(Recipe, recipe_layer("digits"), {"model.channels": 40_000})
    need = footprint(recipe, SPECS["digits"])
    assert need.parameters > 10**11
    with pytest.raises(TrainingError, match=r"TB but .* are free"):
        require_training_memory(need, torch.device("cpu"))
    require_training_memory(Footprint(10, 10), torch.device("cpu"))


@pytest.mark.parametrize(("free", "moved"), [(10**6, True), (500, False), (None, True)])
def test_data_go_to_the_device_only_where_they_fit_beside_the_training(monkeypatch, free, moved):
    class Data:
        def __init__(self) -> None:
            self.values, self.device = torch.zeros(100), "cpu"

        def to(self, device: torch.device) -> Data:
            self.device = str(device)
            return self

    monkeypatch.setattr(memory, "free_on", lambda device: free)
    placed = memory.place_data(Data(), Footprint(10, 200), torch.device("meta"))
    assert (placed.device == "meta") is moved
    assert memory.data_bytes(placed) == 400


def test_the_plan_says_what_was_seen_and_what_will_happen():
    data = TensorDataset(data=torch.zeros(100, 5), spec=SPECS["vector"])
    text = "\n".join(plan(resolve(Recipe, recipe_layer("vector")), data, held_out=11).lines)
    for words in ("100 vectors", "11 items", "parameters", "4,000", "memory"):
        assert words in text


def test_options_need_no_torch():
    modules = "undiffuse.training.options, undiffuse.process.options, undiffuse.sampling.options"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")}, timeout=60)


def test_the_power_of_a_schedule_is_a_key() -> None:
    spec = DataSpec(kind="tokens", shape=(8,), vocabulary=tuple("abc"))
    t = torch.tensor(0.5, dtype=torch.float64)
    for words, kept in ((["process.power=3"], 1 - 0.5**3), ([], 1 - 0.5**2)):
        recipe = resolve(Recipe, recipe_layer("text"), ["process.keep=polynomial", *words])
        assert float(make_process(recipe.process, spec).keep.keep(t)) == pytest.approx(kept, rel=1e-12)
    for words in (["process.power=3"], ["process.keep=polynomial", "process.power=0"]):
        with pytest.raises(ConfigError, match=r"power=.* belongs to keep=polynomial"):
            resolve(Recipe, recipe_layer("text"), words)


def test_a_threshold_is_for_data_with_a_range_and_not_for_latents() -> None:
    assert resolve(Recipe, recipe_layer("image"), ["sample.threshold=dynamic"]).sample.threshold == "dynamic"
    for name in ("text", "latent"):
        with pytest.raises(Exception, match=r"sample\.threshold bounds data"):
            resolve(Recipe, recipe_layer(name), ["sample.threshold=dynamic"])

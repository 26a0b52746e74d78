"""Minibatch optimal transport: an exact assignment, both marginals as they were, straighter pairs, no score."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from tests.oracles.continuous import normals, process_of
from tests.training.tiny import vectors
from undiffuse.config import resolve
from undiffuse.denoisers import NetworkDenoiser
from undiffuse.errors import ConfigError, PlanError
from undiffuse.models import Model
from undiffuse.networks import MLPOptions, build_network
from undiffuse.noise import KeyedNoise
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.coupling import optimal_pairs
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.recipe import Recipe


def cost(x0, eps):
    return float((x0 - eps).square().sum())


def test_the_assignment_is_the_best_of_all():
    x0, eps = normals(5, 2, seed=1), normals(5, 2, seed=2)
    best = min(cost(x0, eps[list(order)]) for order in permutations(range(5)))
    assert cost(x0, eps[optimal_pairs(x0, eps, 5)]) == pytest.approx(best, rel=1e-12)


def test_in_one_dimension_it_sorts():
    x0, eps = normals(50, 1, seed=1), normals(50, 1, seed=2)
    paired = eps[optimal_pairs(x0, eps, 50)]
    assert torch.equal(paired[x0[:, 0].argsort()], eps[eps[:, 0].argsort()])


def test_batches_and_classes_are_paired_each_for_itself_and_marginals_stay():
    x0, eps, labels = normals(60, 3, 2, seed=1), normals(60, 3, 2, seed=2), torch.arange(60) % 3
    order = optimal_pairs(x0, eps, 20, labels)
    for start in (0, 20, 40):
        assert sorted(order[start : start + 20].tolist()) == list(range(start, start + 20))
    assert torch.equal(labels[order], labels)
    alone = optimal_pairs(x0[20:40], eps[20:40], 20, labels[20:40])
    assert torch.equal(order[20:40], alone + 20) and cost(x0, eps[order]) < 0.8 * cost(x0, eps)


def denoiser(spec: DataSpec) -> NetworkDenoiser:
    return NetworkDenoiser(build_network(MLPOptions(width=8, depth=1), spec), process_of("rf"), "velocity", spec=spec)


def test_the_objective_pairs_and_is_else_what_it_was():
    """Rows of x_t - t eps are the data in their order, whichever noise they got."""
    spec = DataSpec(kind="vector", shape=(2,), classes=("a", "b"))
    held = denoiser(spec)
    batch = {"x": normals(40, 2, seed=1).float(), "cond": {"label": torch.arange(40) % 2}}
    plain, paired = (
        make_objective(DenoisingOptions(coupling=kind), held).prepare(held, batch, KeyedNoise(0, range(40)), 20)
        for kind in ("independent", "optimal")
    )
    order = optimal_pairs(batch["x"], KeyedNoise(0, range(40)).normal("data", 0, (2,)), 20, batch["cond"]["label"])
    assert torch.equal(paired.t, plain.t) and not torch.equal(order, torch.arange(40))
    torch.testing.assert_close(paired.target + batch["x"], (plain.target + batch["x"])[order])


def test_what_it_cannot_mean_is_refused():
    spec = DataSpec(kind="vector", shape=(2,), cond={"size": ConditionSpec(kind="vector", width=1)})
    with pytest.raises(ConfigError, match=r"other conditions \(size\).*independent"):
        make_objective(DenoisingOptions(coupling="optimal"), denoiser(spec))
    with pytest.raises(ValueError, match="learn_variance"):
        DenoisingOptions(coupling="optimal", learn_variance=True)


def test_a_model_of_paired_noise_has_velocities_and_no_scores(tmp_path):
    base = {"model": "mlp", "model.width": 8, "process.schedule": "rf", "objective.coupling": "optimal"}
    recipe = resolve(Recipe, base)
    spec = vectors().spec
    held = build_denoiser(recipe, spec)
    assert held.process.source == "data"
    model = Model(held, spec)
    assert model.sample(2, solver="euler", steps=2).shape == (2, 2)
    with pytest.raises(PlanError, match="deterministic"):
        model.sample(2, solver="ddpm", steps=2)
    loaded = Model.load(model.save(tmp_path / "it")) if hasattr(Model, "load") else None
    assert loaded is None or loaded.module.process.source == "data"

from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import count, described, generator, parameters_without_gradient, randomise
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.mlp import MLP


def build(features: int = 3, **kwargs) -> MLP:
    return randomise(MLP(features, width=16, depth=2, **kwargs))


@pytest.mark.parametrize("features", [1, 2, 7])
def test_keeps_the_shape(features):
    network, x = build(features), torch.randn(5, features, generator=generator())
    assert network(x, torch.zeros(5))["out"].shape == x.shape
    assert network(x, torch.zeros(5, features))["out"].shape == x.shape


def test_starts_at_zero():
    x = torch.randn(5, 3, generator=generator())
    assert (MLP(3, width=16)(x, torch.zeros(5))["out"] == 0).all()


def test_equal_levels_per_element_equal_the_shared_level():
    network, level = build(), torch.tensor([0.3, -2.0, 1.1])
    x = torch.randn(3, 3, generator=generator())
    torch.testing.assert_close(
        network(x, level[:, None].expand(3, 3))["out"], network(x, level)["out"], rtol=1e-6, atol=1e-6
    )


def test_it_matters_which_element_has_which_level():
    network, x = build(), torch.randn(1, 3, generator=generator())
    first, second = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert not torch.allclose(network(x, first)["out"], network(x, second)["out"])


def test_rows_are_independent():
    network = build(conditions=described(3))
    x, level = torch.randn(4, 3, generator=generator()), torch.linspace(-1, 1, 4)
    cond = network.conditioners.embed({"label": torch.tensor([0, 1, 2, 0])}, 4)
    whole = network(x, level, cond)["out"]
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[order], level[order], cond.take(order))["out"], whole[order])


def test_no_condition_is_the_null_and_labels_matter():
    network, x = build(conditions=described(3)), torch.randn(2, 3, generator=generator())
    level, embed = torch.zeros(2), network.conditioners.embed
    assert torch.equal(network(x, level)["out"], network(x, level, embed(None, 2))["out"])
    drop = {"label": torch.tensor([True, False])}
    mixed = network(x, level, embed({"label": torch.tensor([1, 1])}, 2, drop))["out"]
    torch.testing.assert_close(mixed[:1], network(x, level)["out"][:1])
    assert not torch.allclose(mixed[1:], network(x, level)["out"][1:])


def test_gradient_reaches_every_parameter():
    network = build(conditions=described(2, pose=2))
    drop = {name: torch.tensor([True, False, False]) for name in ("label", "pose")}
    cond = {"label": torch.tensor([0, 0, 1]), "pose": torch.ones(3, 2)}
    x, level = torch.randn(3, 3, generator=generator()), torch.randn(3, 3, generator=generator(1))
    network(x, level, network.conditioners.embed(cond, 3, drop))["out"].square().sum().backward()
    assert parameters_without_gradient(network) == []


def test_a_shared_level_gives_every_parameter_a_gradient_tensor():
    network = build()
    network(torch.ones(2, 3), torch.zeros(2))["out"].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("x", "level", "cond", "match"),
    [
        (torch.zeros(2, 4), torch.zeros(2), None, r"expects \(B, 3\)"),
        (torch.zeros(2, 3), torch.zeros(3), None, r"expects \(2,\) or \(2, 3\)"),
        (torch.zeros(2, 3), None, None, "noise level is None"),
        (torch.zeros(2, 3), torch.zeros(2), Embedded(tokens=torch.zeros(2, 1, 1)), "does not read.*tokens"),
        (torch.zeros(2, 3), torch.zeros(2), Embedded(vector=torch.zeros(2, 16)), "does not read.*vector"),
    ],
)
def test_misfits_are_refused(x, level, cond, match):
    with pytest.raises(ValueError, match=match):
        build()(x, level, cond)


def test_a_condition_of_another_batch_is_refused():
    network = build(conditions=described(2))
    with pytest.raises(ValueError, match="has 1 rows but x has 2"):
        network(torch.zeros(2, 3), torch.zeros(2), network.conditioners.embed(None, 1))
    with pytest.raises(ValueError, match="holds no vector"):
        network(torch.zeros(2, 3), torch.zeros(2), Embedded())


def test_parameter_count_of_the_vector_recipe_size():
    assert 0.9e6 < count(MLP(2, width=256, depth=4)) < 1.6e6

from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator, randomise
from undiffuse.networks import DiTOptions, MLPOptions, TransformerOptions, UNetOptions, build_network, capture
from undiffuse.spec import DataSpec

CASES = {
    "mlp": (MLPOptions(width=16, depth=3), DataSpec(kind="vector", shape=(3,))),
    "unet": (
        UNetOptions(channels=8, multipliers=(1, 2), blocks=2, heads=2, dropout=0.3, temporal=True),
        DataSpec(kind="video", shape=(2, 1, 8, 8)),
    ),
    "transformer": (
        TransformerOptions(width=16, depth=3, heads=2, dropout=0.3),
        DataSpec(kind="tokens", shape=(9,), vocabulary=("a", "b")),
    ),
    "dit": (
        DiTOptions(width=16, depth=5, heads=2, dropout=0.3, route=0.5, route_first=1, route_last=-2),
        DataSpec(kind="video", shape=(2, 1, 8, 8)),
    ),
}


def network_and_input(kind: str):
    options, spec = CASES[kind]
    network = randomise(build_network(options, spec)).train()
    x = torch.randn(4, *spec.shape, generator=generator(1))
    return network, (x > 0).long() if kind == "transformer" else x


def gradients(network, x, recomputes: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    network.recomputes = recomputes
    network.dropout_generator = generator(7)
    network.zero_grad()
    network(x, torch.zeros(len(x)))["out"].square().sum().backward()
    following = torch.rand(3, generator=network.dropout_generator)
    return [p.grad.clone() for p in network.parameters() if p.grad is not None], following


@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_equal_bit_for_bit_with_dropout_and_routing(kind):
    network, x = network_and_input(kind)
    before = torch.random.get_rng_state()
    kept, after = gradients(network, x, False)
    again, after_again = gradients(network, x, True)
    assert len(kept) == len(again) > 4
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert torch.equal(after, after_again)  # recomputing leaves the generator where it was
    assert torch.equal(before, torch.random.get_rng_state())


def saved_bytes(network, x, recomputes: bool) -> int:
    network.recomputes, network.dropout_generator = recomputes, generator(7)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(x, torch.zeros(len(x)))["out"].sum()
    return sum(sizes.values())


@pytest.mark.parametrize("kind", ["unet", "transformer", "dit"])
def test_less_is_kept_for_the_backward_pass(kind):
    network, x = network_and_input(kind)
    assert saved_bytes(network, x, True) < 0.4 * saved_bytes(network, x, False)


def test_a_second_backward_pass_through_the_same_graph_works():
    network, x = network_and_input("dit")
    network.recomputes, network.dropout_generator = True, generator(7)
    loss = network(x, torch.zeros(4))["out"].square().sum()
    first = torch.autograd.grad(loss, list(network.body.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(network.body.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_hooks_and_sampling_are_as_ever():
    network, x = network_and_input("dit")
    network.eval()
    plain = network(x, torch.zeros(4))["out"]
    network.recomputes = True
    with torch.no_grad():
        assert torch.equal(network(x, torch.zeros(4))["out"], plain)
    with capture(network, ["block1"], stop_after="block1") as taken:
        network(x, torch.zeros(4))
    assert taken["block1"].shape == (8, 16, 16)

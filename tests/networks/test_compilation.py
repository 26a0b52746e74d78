from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.networks.helpers import generator, randomise
from undiffuse.networks import DiTOptions, UNetOptions, build_network, capture, compilation, edit
from undiffuse.networks.attention import math_attention
from undiffuse.networks.compilation import compile_blocks
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(1, 8, 8))
DIT = DiTOptions(width=16, depth=3, heads=2)


def network_and_input(options=DIT):
    x = torch.randn(4, *SPEC.shape, generator=generator(1))
    return randomise(build_network(options, SPEC)).eval(), x, torch.zeros(4)


class Unwanted(Exception):
    """Raised where compiled code would run."""


def pretend_to_compile(network: nn.Module) -> None:
    def compiled(*args):
        raise Unwanted

    for block in network.body:
        block._compiled_call_impl = compiled


def test_hooks_and_derivatives_run_the_blocks_own_code():
    network, x, level = network_and_input()
    out = network(x, level)["out"]
    pretend_to_compile(network)
    with pytest.raises(Unwanted):
        network(x, level)
    with capture(network, ["block1"]):
        assert torch.equal(network(x, level)["out"], out)
    with capture(network, ["block2.attention"]) as taken:
        network(x, level)
    assert taken["block2.attention"].shape == (4, 2, 16, 16)
    with edit(network, {"block1": torch.zeros_like}):
        assert not torch.equal(network(x, level)["out"], out)
    with math_attention():
        torch.func.jvp(lambda y: network(y, level)["out"], (x,), (x,))
    with pytest.raises(Unwanted):
        network(x, level)


def test_where_nothing_can_be_compiled_a_warning_says_why_and_the_network_goes_on(monkeypatch):
    network, x, level = network_and_input()
    out = network(x, level)["out"]

    def no_compiler(*args, **kwargs):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compilation._obstacle.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"the network runs as it is: .*No working C\+\+ compiler found"):
            assert not compile_blocks(network)
    finally:
        compilation._obstacle.cache_clear()
    assert torch.equal(network(x, level)["out"], out)


def test_all_blocks_of_parts_are_compiled_and_layers_are_not(monkeypatch):
    monkeypatch.setattr(compilation, "_obstacle", lambda device: "")
    seen = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: seen.append((self, settings["fullgraph"])))
    network, _, _ = network_and_input(UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, dropout=0.1))
    assert compile_blocks(network)
    names = {name for name, block in network.blocks.items() if any(block is one for one, _ in seen)}
    assert names == {"down0.0", "down1.0", "mid", "enlarge0", "up0.0", "up1.0"}
    assert {type(block).__name__: whole for block, whole in seen} == {"UNetBlock": False, "Upsample": True}


@pytest.mark.slow  # compiles for half a minute, several on a busy machine
def test_compiled_blocks_give_the_same_numbers_under_the_same_names():
    from torch._dynamo.utils import counters

    network, x, level = network_and_input()
    compiled = copy.deepcopy(network)
    names = list(compiled.state_dict())
    assert compile_blocks(compiled)
    assert list(compiled.state_dict()) == names
    counters.clear()
    losses = [one(x, level)["out"].square().sum() for one in (network, compiled)]
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]  # three blocks, compiled once
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for one, other in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
    with capture(compiled, ["block1"]) as taken:
        compiled(x, level)
    with capture(network, ["block1"]) as expected:
        network(x, level)
    assert torch.equal(taken["block1"], expected["block1"])
    assert copy.deepcopy(compiled).body[0]._compiled_call_impl is None  # copies run as they are

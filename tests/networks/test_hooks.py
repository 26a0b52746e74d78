from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks.helpers import generator, randomise
from undiffuse.networks import UNetOptions, capture, edit
from undiffuse.networks.hooks import direct, find_block
from undiffuse.networks.transformer import Transformer
from undiffuse.networks.unet import UNet

X = torch.randn(2, 1, 8, 8, generator=generator())
LEVEL = torch.zeros(2)


@pytest.fixture
def network() -> UNet:
    return randomise(UNet(2, 1, UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)))


def hooks_left(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_capture_returns_what_blocks_return(network):
    with capture(network, ["mid", "out"]) as taken:
        out = network(X, LEVEL)["out"]
    assert list(taken) == ["mid", "out"]
    assert taken["mid"].shape == (2, 16, 4, 4)
    assert taken["out"] is out
    assert hooks_left(network) == 0


def test_capture_of_inputs_returns_the_block_s_first_argument(network):
    with capture(network, ["in", "mid"], inputs=True) as taken, capture(network, ["reduce0"]) as outputs:
        network(X, LEVEL)
    assert taken["in"] is X
    assert taken["mid"].shape == (2, 16, 4, 4) and outputs["reduce0"].shape == (2, 8, 4, 4)


def test_stop_after_ends_the_forward_pass_there(network):
    ran = []
    for name, block in network.blocks.items():
        block.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    with capture(network, ["mid"], stop_after="mid") as taken:
        network(X, LEVEL)
        pytest.fail("the body must end with the forward pass")
    assert ran[-1] == "mid" and "up1.0" not in ran and "mid" in taken


def test_the_forward_pass_can_end_once_all_was_taken(network):
    ran = []
    for name, block in network.blocks.items():
        block.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    with capture(network, ["up1.0", "down0.0"], stop_when_full=True) as taken:  # in any order
        network(X, LEVEL)
        pytest.fail("the body must end with the forward pass")
    assert list(taken) == ["down0.0", "up1.0"] and "up0.0" not in ran
    assert hooks_left(network) == len(network.blocks)


def test_stop_after_need_not_be_captured(network):
    with capture(network, ["in"], stop_after="down0.0") as taken:
        network(X, LEVEL)
    assert list(taken) == ["in"]


def test_captured_values_carry_gradients(network):
    x = X.clone().requires_grad_()
    with capture(network, ["mid"], stop_after="mid") as taken:
        network(x, LEVEL)
    taken["mid"].sum().backward()
    assert x.grad.abs().sum() > 0


def test_an_outer_capture_s_stop_passes_through_an_inner_one(network):
    reached = []
    with capture(network, ["mid"], stop_after="mid") as outer:
        with capture(network, ["in"], stop_after="out") as inner:
            network(X, LEVEL)
        reached.append("after inner")
    assert "mid" in outer and "in" in inner and reached == []
    assert hooks_left(network) == 0


def test_edit_replaces_an_output(network):
    with edit(network, {"out": lambda out: out * 0 + 3}):
        assert (network(X, LEVEL)["out"] == 3).all()
    assert not (network(X, LEVEL)["out"] == 3).any()
    assert hooks_left(network) == 0


def test_edit_of_inputs_equals_running_the_block_on_them(network):
    with edit(network, {"in": lambda x: -x}, inputs=True):
        edited = network(X, LEVEL)["out"]
    torch.testing.assert_close(edited, network(-X, LEVEL)["out"], rtol=0, atol=0)


def test_capture_inside_edit_sees_the_edited_value(network):
    with edit(network, {"mid": torch.zeros_like}), capture(network, ["mid"], stop_after="mid") as taken:
        network(X, LEVEL)
    assert (taken["mid"] == 0).all()


def test_hooks_go_after_an_error(network):
    with pytest.raises(KeyError), edit(network, {"mid": lambda out: out}), capture(network, ["mid"]):
        raise KeyError
    with pytest.raises(ZeroDivisionError), edit(network, {"mid": lambda out: 1 / 0}):
        network(X, LEVEL)
    assert hooks_left(network) == 0


def test_an_unknown_name_names_the_nearest_and_leaves_nothing(network):
    with (
        pytest.raises(ValueError, match=r"block 'midd' does not exist; did you mean 'mid'"),
        capture(network, ["in", "midd"]),
    ):
        pass
    with pytest.raises(ValueError, match="does not exist"), capture(network, ["in"], stop_after=""):
        pass
    assert hooks_left(network) == 0


def test_submodules_of_any_network_have_names_too():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.ModuleDict({"a": nn.Linear(3, 3)})["a"])
    with capture(network, ["1"], stop_after="1") as taken:
        network(torch.ones(1, 2))
    assert taken["1"].shape == (1, 3)
    with pytest.raises(ValueError, match="did you mean '2'"):
        find_block(network, "22")


def test_blocks_may_be_a_module_dictionary_and_inputs_keywords():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({"one": nn.Identity()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks["one"](input=x)

    network = Net()
    with edit(network, {"one": lambda x: x + 1}, inputs=True), capture(network, ["one"], inputs=True) as taken:
        assert network(torch.zeros(1)).item() == 1
    assert taken["one"].item() == 1


def test_capturing_attention_gives_weights_that_sum_to_one_and_changes_nothing(network):
    randomise(network.mid.attention, scale=0.5)
    plain = network(X, LEVEL)["out"]
    with capture(network, ["mid.attention"]) as taken, capture(network, ["mid.attention"], inputs=True) as scores:
        watched = network(X, LEVEL)["out"]
    weights = taken["mid.attention"]
    assert weights.shape == (2, 2, 16, 16)  # (B, heads, positions, positions)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores["mid.attention"].softmax(dim=-1), weights, rtol=0, atol=0)
    torch.testing.assert_close(watched, plain, rtol=0, atol=1e-6)
    assert hooks_left(network) == 0


def test_edited_attention_reaches_the_output(network):
    randomise(network.mid.attention, scale=1.0)  # else all keys have nearly the same weight
    plain = network(X, LEVEL)["out"]
    with edit(network, {"mid.attention": lambda weights: torch.full_like(weights, 1 / weights.shape[-1])}):
        even = network(X, LEVEL)["out"]
    with edit(network, {"mid.attention": torch.zeros_like}, inputs=True):  # equal scores are the same thing
        equal = network(X, LEVEL)["out"]
    assert not torch.allclose(even, plain, atol=1e-3)
    torch.testing.assert_close(equal, even, rtol=0, atol=1e-6)


def test_attention_of_transformers_and_among_frames_has_names_too():
    transformer = randomise(Transformer(5, 5, width=8, depth=2, heads=2))
    with capture(transformer, ["block1.attention"]) as taken:
        transformer(torch.zeros(3, 7, dtype=torch.int64))
    assert taken["block1.attention"].shape == (3, 2, 7, 7)
    video = UNet(2, 1, UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, temporal=True))
    with capture(video, ["mid.attention", "mid.temporal.attention"]) as taken:
        video(torch.zeros(2, 3, 1, 8, 8), LEVEL)
    assert taken["mid.attention"].shape == (2 * 3, 2, 16, 16)
    assert taken["mid.temporal.attention"].shape == (2 * 16, 2, 3, 3)


def test_attention_that_nobody_watches_uses_the_fused_kernel(network, monkeypatch):
    monkeypatch.setattr(network.mid.attention.attention.weights, "forward", lambda scores: pytest.fail("it ran"))
    network(X, LEVEL)


def test_a_block_without_attention_is_said_to_have_none(network):
    with pytest.raises(ValueError, match=r"'down0.0.attention' does not exist; .*The blocks are .*mid\.attention"):
        find_block(network, "down0.0.attention")


def test_a_module_that_nobody_listens_to_is_called_by_its_forward():
    layer = nn.Linear(2, 2)
    assert direct(layer) == layer.forward
    listeners = (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    )
    for listen in listeners:
        handle = listen(lambda *_: None)
        assert direct(layer) is layer
        handle.remove()
        assert direct(layer) == layer.forward
    layer.compile(backend="eager")
    assert direct(layer) is layer

from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator, randomise
from undiffuse.networks import DiTOptions, build_network, capture
from undiffuse.networks.rope import axial_rotary
from undiffuse.networks.routing import TokenRouting
from undiffuse.spec import DataSpec

ROUTED = DiTOptions(width=16, depth=5, heads=2, route=0.5, route_first=1, route_last=-2)
PLAIN = DiTOptions(width=16, depth=5, heads=2)
IMAGE, VIDEO = DataSpec(kind="image", shape=(1, 8, 8)), DataSpec(kind="video", shape=(3, 1, 8, 8))


def route_of(share: float, rows: int = 4, tokens: int = 12, repeats: int = 1, seed: int = 0):
    routing = TokenRouting(share)
    routing.generator = generator(seed)
    return routing(rows, tokens, repeats, torch.device("cpu"))


@pytest.mark.parametrize(("share", "kept"), [(0.5, 6), (0.25, 9), (0.99, 1), (0.05, 11)])
def test_a_route_keeps_its_share_in_order_row_by_row(share, kept):
    route = route_of(share, rows=50)
    assert route.kept.shape == (50, kept)
    assert (route.kept.diff(dim=1) > 0).all() and route.kept.min() >= 0 and route.kept.max() < 12
    assert len({tuple(row) for row in route.kept.tolist()}) > 5
    assert torch.equal(route.kept, route_of(share, rows=50).kept)
    assert not torch.equal(route.kept, route_of(share, rows=50, seed=1).kept)


def test_every_token_is_kept_equally_often():
    counts = route_of(0.5, rows=4000).kept.flatten().bincount(minlength=12)
    assert ((counts / 4000 - 0.5).abs() < 5 * (0.25 / 4000) ** 0.5).all()  # 5 standard errors: false alarm below 1e-5


def test_frames_of_a_clip_share_their_route():
    kept = route_of(0.5, rows=2, repeats=3).kept
    assert kept.shape == (6, 6) and all(torch.equal(kept[3 * row], kept[3 * row + i]) for row in (0, 1) for i in (1, 2))


def test_nothing_is_routed_in_evaluation_or_where_the_share_is_less_than_a_token():
    assert TokenRouting(0.5).eval()(2, 12, 1, torch.device("cpu")) is None
    assert TokenRouting(0.0)(2, 12, 1, torch.device("cpu")) is None
    assert route_of(0.01) is None
    with pytest.raises(RuntimeError, match="dropout_generator"):
        TokenRouting(0.5)(2, 12, 1, torch.device("cpu"))


def test_tokens_come_back_to_their_places_and_keep_their_turns():
    route, tokens = route_of(0.5, rows=3), torch.randn(3, 12, 4, generator=generator())
    assert torch.equal(route.widen(route.narrow(tokens), tokens), tokens)
    changed = route.widen(route.narrow(tokens) + 1.0, tokens) - tokens
    assert torch.equal(changed.amax(-1) > 0.5, torch.zeros(3, 12).scatter(1, route.kept, 1.0).bool())
    rotary = axial_rotary((3, 4), 4, tokens)
    turned = route.narrow_rotary(rotary).turn(route.narrow(tokens)[:, None])[:, 0]
    torch.testing.assert_close(turned, route.narrow(rotary.turn(tokens)))


def networks(spec: DataSpec):
    pair = [randomise(build_network(options, spec)) for options in (ROUTED, PLAIN)]
    return pair[0].train(), pair[1].train()


@pytest.mark.parametrize("spec", [IMAGE, VIDEO])
def test_evaluation_is_that_of_the_network_without_routing(spec):
    routed, plain = networks(spec)
    x, level = torch.randn(2, *spec.shape, generator=generator()), torch.zeros(2)
    assert torch.equal(routed.eval()(x, level)["out"], plain(x, level)["out"])
    routed.train().dropout_generator = generator(0)
    assert not torch.allclose(routed(x, level)["out"], plain(x, level)["out"], atol=1e-4)


def test_training_is_a_function_of_the_generator_and_every_token_reaches_the_loss():
    routed, _ = networks(IMAGE)
    x, level = torch.randn(2, 1, 8, 8, generator=generator()).requires_grad_(), torch.zeros(2)
    outputs = []
    for seed in (1, 1, 2):
        routed.dropout_generator = generator(seed)
        outputs.append(routed(x, level)["out"])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    (grad,) = torch.autograd.grad(outputs[0].square().sum(), x)
    assert grad.abs().amin() > 0


@pytest.mark.parametrize("spec", [IMAGE, VIDEO])
def test_middle_blocks_see_and_change_the_kept_tokens_only(spec):
    routed, _ = networks(spec)
    frames = spec.shape[0] if spec.kind == "video" else 1
    routed.dropout_generator = generator(3)
    x, level = torch.randn(2, *spec.shape, generator=generator()), torch.zeros(2)
    with capture(routed, [f"block{i}" for i in range(5)], inputs=True) as entering:
        routed(x, level)
    lengths = [entering[f"block{i}"].shape[1] for i in range(5)]
    assert lengths == [16, 8, 8, 8, 16]  # tokens counted: 0.7 of all
    routing = TokenRouting(0.5)
    routing.generator = generator(3)
    route = routing(2, 16, frames, x.device)
    before, after = entering["block1"], entering["block4"]
    skipped = torch.ones(2 * frames, 16).scatter(1, route.kept, 0.0).bool()
    weights = [p for block in routed.body[1:4] for p in block.parameters()]
    owed = torch.autograd.grad(after[skipped].square().sum(), [before, *weights], retain_graph=True, allow_unused=True)
    assert all(grad is None or not grad.any() for grad in owed)  # skipped tokens owe the middle blocks nothing
    owed = torch.autograd.grad(after[~skipped].square().sum(), [before, *weights])
    assert all(grad.any() for grad in owed)


def test_skipped_tokens_pass_the_middle_blocks_untouched():
    routed, _ = networks(IMAGE)
    x, level = torch.randn(2, 1, 8, 8, generator=generator()), torch.zeros(2)
    with capture(routed.eval(), ["block0"]) as taken:
        routed(x, level)
    routed.train().dropout_generator = generator(3)
    with capture(routed, ["block4"], inputs=True) as entering:
        routed(x, level)
    same = (entering["block4"] == taken["block0"]).all(-1)
    assert same.sum(1).tolist() == [8, 8]

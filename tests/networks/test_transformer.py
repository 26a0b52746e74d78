from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.networks.helpers import count, described, generator, parameters_without_gradient, randomise
from undiffuse.networks.attention import math_attention
from undiffuse.networks.build import build_network
from undiffuse.networks.hooks import capture
from undiffuse.networks.options import TransformerOptions
from undiffuse.networks.rope import axial_rotary
from undiffuse.networks.transformer import Transformer
from undiffuse.networks.transformer_block import ConvolvedFeedForward, NeighbourMixing
from undiffuse.spec import DataSpec


def build(**kwargs) -> Transformer:
    return randomise(Transformer(5, 6, width=16, depth=2, heads=2, **kwargs))


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 6, (batch, length), generator=generator())


@pytest.mark.parametrize("length", [1, 2, 33])
@pytest.mark.parametrize("time_dependent", [False, True])
def test_any_length_gives_logits_over_clean_tokens(length, time_dependent):
    assert build(time_dependent=time_dependent)(ids(3, length), torch.zeros(3))["out"].shape == (3, length, 5)


def test_starts_with_uniform_probabilities():
    assert (Transformer(5, 6, width=16, heads=2)(ids(2, 4))["out"] == 0).all()


def test_time_free_network_ignores_the_level():
    network = build()
    assert torch.equal(network(ids(2, 4), torch.ones(2))["out"], network(ids(2, 4), None)["out"])


def test_equal_levels_per_token_equal_the_shared_level():
    network, level = build(time_dependent=True), torch.tensor([0.3, 0.9])
    x = ids(2, 7)
    per_token = network(x, level[:, None].expand(2, 7))["out"]
    torch.testing.assert_close(per_token, network(x, level)["out"], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(per_token, network(x, level + 0.5)["out"])


def test_it_matters_which_token_has_which_level():
    network, x = build(time_dependent=True), ids(1, 3)
    first, second = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert not torch.allclose(network(x, first)["out"], network(x, second)["out"])


def test_every_token_reads_both_sides_and_its_position():
    network, x = build(), torch.tensor([[0, 1, 2, 3, 4]])
    changed = x.clone()
    changed[0, 2] = 5
    difference = (network(changed)["out"] - network(x)["out"]).abs().amax(-1)[0]
    assert (difference > 1e-5).all()
    turned = network(x.flip(1))["out"].flip(1)
    assert not torch.allclose(turned, network(x)["out"])


def test_label_modulates_also_without_time():
    network, x = build(conditions=described(3)), ids(2, 4)
    embed = network.conditioners.embed
    given = network(x, None, embed({"label": torch.tensor([0, 2])}, 2))["out"]
    assert not torch.allclose(given, network(x)["out"])
    dropped = embed({"label": torch.tensor([0, 2])}, 2, {"label": torch.tensor([True, True])})
    assert torch.equal(network(x, None, dropped)["out"], network(x)["out"])


@pytest.mark.parametrize("time_dependent", [False, True])
def test_gradient_reaches_every_parameter(time_dependent):
    network = build(time_dependent=time_dependent, conditions=described(2))
    cond = network.conditioners.embed(
        {"label": torch.tensor([0, 0, 1])}, 3, {"label": torch.tensor([True, False, False])}
    )
    x = torch.arange(6).repeat(3, 1)
    network(x, torch.rand(3, 6, generator=generator()), cond)["out"].square().sum().backward()
    assert parameters_without_gradient(network) == []


def test_gates_are_a_learned_constant_where_nothing_else_modulates():
    plain, gated = (
        Transformer(5, 6, width=16, depth=2, heads=2),
        Transformer(5, 6, width=16, depth=2, heads=2, gated=True),
    )
    told = Transformer(5, 6, width=16, depth=2, heads=2, time_dependent=True, gated=True)
    assert plain.context is None and told.constant is None and gated.constant is not None
    x = torch.arange(8).view(2, 4) % 6
    torch.nn.init.normal_(gated.leave.weight)
    hidden = gated.leave(gated.norm(gated.embedding(x), gated.context(None, gated.constant)[:, None]))
    torch.testing.assert_close(gated(x)["out"], hidden)  # closed blocks are the identity
    for parameter in gated.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    gated(x)["out"].square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in gated.parameters())
    assert not bool((gated(x)["out"] - hidden).abs().max() < 1e-3)
    torch.testing.assert_close(gated(x)["out"], gated(x, torch.ones(2))["out"])  # and it stays free of time


def test_a_network_that_counts_masks_is_one_that_is_told_their_share() -> None:
    options: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
    counting = Transformer(5, 6, counts_masks=True, **options)
    told = Transformer(5, 6, time_dependent=True, **options)
    randomise(counting)
    told.load_state_dict(counting.state_dict())
    x = torch.tensor([[5, 5, 4, 0], [2, 5, 4, 0], [2, 3, 4, 0]])
    shares = torch.tensor([0.5, 0.25, 0.0])
    torch.testing.assert_close(counting(x)["out"], told(x, shares)["out"])
    assert not torch.allclose(counting(x)["out"], told(x, shares.flip(0))["out"], atol=1e-3)
    assert not counting.time_dependent


@pytest.mark.parametrize("other", [{"states": 5}, {"causal": True}, {"time_dependent": True}])
def test_masks_are_counted_only_where_there_are_some_and_nothing_else_tells(other: dict[str, Any]) -> None:
    options: dict[str, Any] = {"states": 6, "width": 16, "depth": 1, "heads": 2, "gated": True, **other}
    plain, counting = (Transformer(5, counts_masks=counts, **options) for counts in (False, True))
    assert not counting.counts and plain.state_dict().keys() == counting.state_dict().keys()


def test_forward_mode_derivative_in_time():
    network = build(time_dependent=True).double()
    x, level = ids(2, 4), torch.tensor([0.2, 0.7], dtype=torch.float64)
    with math_attention():
        _, jvp = torch.func.jvp(lambda at: network(x, at)["out"], (level,), (torch.ones_like(level),))
    difference = (network(x, level + 1e-5)["out"] - network(x, level - 1e-5)["out"]) / 2e-5
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("x", "level", "match"),
    [
        (torch.zeros(2, 4), torch.zeros(2), "expects token ids"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2), "expects token ids"),
        (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3), r"expects \(2,\) or \(2, 4\)"),
        (torch.zeros(2, 4, dtype=torch.int64), None, "noise level is None"),
    ],
)
def test_misfits_are_refused(x, level, match):
    with pytest.raises(ValueError, match=match):
        build(time_dependent=True)(x, level)


def test_parameter_count_of_the_reference_size():
    # 12 d^2 a block (4 d^2 attention, 8 d^2 feed-forward) of 4, plus embedding and head of 65 + 66 rows.
    expected = 4 * 12 * 128**2 + (65 + 66) * 128
    assert count(Transformer(65, 66)) == pytest.approx(expected, rel=0.02)


def test_mixing_of_neighbours_starts_as_the_identity_and_then_reaches_just_them():
    mixing = NeighbourMixing(6, 2)
    x = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mixing(x), x)
    torch.nn.init.normal_(mixing.convolution.weight, generator=torch.Generator().manual_seed(1))
    moved = x.clone()
    moved[:, 4] += 1
    changed = (mixing(moved) != mixing(x)).any(-1).any(0)
    assert changed.tolist() == [False, False, True, True, True, True, True, False, False]


def test_a_transformer_with_neighbours_works_at_any_length():
    network = Transformer(5, 6, width=16, depth=1, heads=2, neighbours=3)
    for length in (1, 4, 11):
        assert network(torch.zeros(2, length, dtype=torch.int64))["out"].shape == (2, length, 5)


def test_tokens_on_a_grid_turn_along_rows_and_columns():
    """Attention sees of two places their difference on each axis: turns of (i, j) split into those of i and of j."""
    network = build(grid=(3, 4))
    hidden = torch.zeros(1, 12, 16)
    turns = network._positions(hidden, 0)
    expected = axial_rotary((3, 4), 8, like=hidden)
    assert torch.equal(turns.cos, expected.cos) and torch.equal(turns.sin, expected.sin)
    line = build()
    line.load_state_dict(network.state_dict())
    x = ids(2, 12)
    assert not torch.allclose(network(x)["out"], line(x)["out"])
    with pytest.raises(ValueError, match="do not fill the grid"):
        network(ids(2, 11))
    with pytest.raises(ValueError, match="axes of the grid"):
        Transformer(5, 6, width=4, heads=2, grid=(3, 4))


def test_learned_places_are_those_of_row_and_column():
    network = build(grid=(3, 4), places=(3, 4))
    rows, columns = network.places.axes
    assert (rows.shape, columns.shape) == ((3, 16), (4, 16))
    x = ids(2, 12)
    with capture(network, ["block0"], inputs=True) as taken:
        network(x)
    for row, column in itertools.product(range(3), range(4)):
        at = 4 * row + column
        expected = network.embedding(x[:, at]) + rows[row] + columns[column]
        torch.testing.assert_close(taken["block0"][:, at], expected)
    network(x)["out"].square().sum().backward()
    assert all(bool(axis.grad.abs().amax(1).gt(0).all()) for axis in (rows, columns))


def test_without_its_places_a_network_knows_no_order():
    network = build(places=(12,))
    x, order = ids(1, 12), torch.randperm(12, generator=generator())
    assert not torch.allclose(network(x[:, order])["out"], network(x)["out"][:, order], atol=1e-4)
    with torch.no_grad():
        network.places.axes[0].zero_()
    torch.testing.assert_close(network(x[:, order])["out"], network(x)["out"][:, order], rtol=1e-4, atol=1e-5)


def test_a_causal_network_with_learned_places_reads_on_where_it_stopped():
    network, x = build(places=(2, 6), grid=(2, 6), causal=True).eval(), ids(2, 12)
    whole, past = network(x)["out"], network.new_past(12)
    parts = [network(x[:, at : at + 4], past=past)["out"] for at in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_learned_places_have_one_length_and_are_a_choice_of_recipes():
    spec = DataSpec(kind="tokens", shape=(12,), grid=(3, 4), vocabulary=tuple("abcde"))
    line = DataSpec(kind="tokens", shape=(7,), vocabulary=tuple("abcde"))
    options = TransformerOptions(width=16, depth=1, heads=2, positions="learned")
    assert build_network(options, spec, states=6).places.sizes == (3, 4)
    network = build_network(options, line, states=6)
    assert network.places.sizes == (7,)
    with pytest.raises(ValueError, match=r"8 tokens are not those of the training, 7, which learned positions"):
        network(ids(1, 8))
    assert build_network(TransformerOptions(width=16, depth=1, heads=2), spec, states=6).places is None


def test_neighbours_on_a_grid_are_above_below_left_and_right():
    mixing = NeighbourMixing(2, 1, grid=(3, 4))
    x = torch.randn(5, 12, 2, generator=generator())
    assert torch.equal(mixing(x), x)  # it starts as the identity
    with torch.no_grad():
        mixing.convolution.weight[:, :, 0, 1] = 1.0  # the token above
    above = torch.cat([torch.zeros(5, 4, 2), x[:, :8]], dim=1)
    torch.testing.assert_close(mixing(x), x + above)


@pytest.mark.parametrize("grid", [(), (3, 4)], ids=["line", "grid"])
def test_a_convolved_feed_forward_part_is_the_dense_one_where_only_the_middle_weighs(grid):
    dense, convolved = build(grid=grid), build(grid=grid, conv_mlp=True)
    with torch.no_grad():
        for plain, own in zip(dense.body, convolved.body, strict=True):
            own.load_state_dict(plain.state_dict(), strict=False)
            layers = own.feed_forward.inner.layers
            for number in (0, 2):
                middle = (slice(None), slice(None), *(1 for _ in grid or (0,)))
                layers[number].weight.zero_()[middle] = plain.feed_forward.inner[number].weight
                layers[number].bias.copy_(plain.feed_forward.inner[number].bias)
        for name in ("embedding", "norm", "leave"):
            getattr(convolved, name).load_state_dict(getattr(dense, name).state_dict())
    x = ids(2, 12)
    torch.testing.assert_close(convolved(x)["out"], dense(x)["out"], rtol=1e-5, atol=1e-6)


def test_a_convolved_feed_forward_part_sees_two_tokens_in_each_direction_of_the_grid():
    layer = randomise(ConvolvedFeedForward(8, 16, (5, 6)))
    x = torch.randn(1, 30, 8, generator=generator())
    changed = x.clone()
    changed[0, 0] += 1
    moved = ((layer(changed) - layer(x)).abs().amax(-1)[0] > 1e-6).view(5, 6)
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[:3, :3] = True
    assert torch.equal(moved, expected)


def test_a_causal_network_has_no_convolved_feed_forward_part():
    with pytest.raises(ValueError, match="conv_mlp"):
        build(causal=True, conv_mlp=True)
    with pytest.raises(ValueError, match="conv_mlp=false"):
        TransformerOptions(causal=True, conv_mlp=True)

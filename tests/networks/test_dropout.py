from __future__ import annotations

import copy

import pytest
import torch

from tests.networks.helpers import generator
from undiffuse.networks import TransformerOptions, UNetOptions, build_network
from undiffuse.networks.dropout import Dropout
from undiffuse.spec import DataSpec


def test_dropout_is_a_function_of_its_generator():
    dropout, x = Dropout(0.3), torch.ones(1000)
    outputs = []
    before = torch.random.get_rng_state()
    for seed in (5, 5, 6):
        dropout.generator = generator(seed)
        outputs.append(dropout(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_drops_its_share_and_keeps_the_mean():
    dropout = Dropout(0.3)
    dropout.generator = generator(0)
    out = dropout(torch.ones(100_000))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    share = (out == 0).float().mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5  # 5 standard errors: false alarm below 1e-6


def test_evaluation_and_rate_zero_change_nothing():
    x = torch.randn(10, generator=generator())
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_training_without_a_generator_says_what_to_set():
    with pytest.raises(RuntimeError, match="dropout_generator"):
        Dropout(0.5)(torch.ones(3))


@pytest.mark.parametrize(
    ("options", "spec", "x"),
    [
        (
            UNetOptions(channels=8, multipliers=(1, 2), blocks=1, dropout=0.5),
            DataSpec(kind="image", shape=(1, 4, 4)),
            torch.ones(2, 1, 4, 4),
        ),
        (
            TransformerOptions(width=8, depth=1, heads=1, dropout=0.5),
            DataSpec(kind="tokens", shape=(5,), vocabulary=("a", "b")),
            torch.ones(2, 5, dtype=torch.int64),
        ),
    ],
)
def test_a_network_draws_from_the_generator_it_is_given(options, spec, x):
    network = build_network(options, spec)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator(1))
    outputs = []
    for seed in (1, 1, 2):
        network.dropout_generator = generator(seed)
        outputs.append(network(x, torch.zeros(2))["out"])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert network.dropout_generator is not None
    assert copy.deepcopy(network).dropout_generator is not None  # averaged copies are made of networks in training
    network.eval().dropout_generator = None
    assert torch.equal(network(x, torch.zeros(2))["out"], network(x, torch.zeros(2))["out"])

from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator
from undiffuse.networks.attention import Rotary
from undiffuse.networks.rope import axial_rotary, grid_places


def test_places_count_row_by_row():
    assert grid_places((2, 3), torch.device("cpu")).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_on_a_line_it_is_the_transformer_s_rotary():
    like = torch.zeros(1, dtype=torch.float64)
    line, plain = axial_rotary((9,), 8, like), Rotary.make(9, 8, like)
    torch.testing.assert_close(line.cos, plain.cos)
    torch.testing.assert_close(line.sin, plain.sin)


@pytest.mark.parametrize("counts", [(12,), (5, 7), (3, 4, 5)])
@pytest.mark.parametrize("head_dim", [6, 8, 10])
def test_scores_depend_on_the_difference_of_places_alone(counts, head_dim):
    like = torch.zeros(1, dtype=torch.float64)
    query, key = torch.randn(2, 1, head_dim, dtype=like.dtype, generator=generator())
    rotary, places = axial_rotary(counts, head_dim, like), grid_places(counts, like.device)
    length = len(places)
    scores = rotary.turn(query.expand(length, -1)) @ rotary.turn(key.expand(length, -1)).T
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    for i in range(length):
        for j in range(length):
            step = tuple((places[i] - places[j]).tolist())
            torch.testing.assert_close(scores[i, j], seen.setdefault(step, scores[i, j]), rtol=0, atol=1e-12)
    values = torch.stack(list(seen.values()))
    apart = (values[:, None] - values).abs() + torch.eye(len(values), dtype=like.dtype)
    assert apart.min() > 1e-9  # and different steps look different


def test_a_place_is_turned_alike_in_every_grid():
    like = torch.zeros(1)
    small, large = axial_rotary((2, 3), 8, like), axial_rotary((4, 5), 8, like)
    torch.testing.assert_close(small.cos[4], large.cos[6])  # place (1, 1) in both


def test_lengths_of_queries_survive():
    rotary = axial_rotary((3, 4), 8, torch.zeros(1))
    x = torch.randn(12, 8, generator=generator())
    torch.testing.assert_close(rotary.turn(x).norm(dim=-1), x.norm(dim=-1))

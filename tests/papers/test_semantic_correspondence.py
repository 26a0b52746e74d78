"""The reproduction on digits: its key points by hand, and that it runs."""

from __future__ import annotations

import pytest
import torch

from undiffuse.metrics.key_points import pck
from undiffuse.papers.digit_points import digit_pairs, key_points, plain_features, shifted_pairs
from undiffuse.papers.semantic_correspondence import photograph_pair, reproduce


def test_key_points_of_a_corner():
    picture = torch.full((1, 1, 8, 8), -1.0)
    picture[0, 0, 1:6, 2] = 1.0  # a stroke down
    picture[0, 0, 5, 2:6] = 0.5  # and to the right: the letter L
    picture[0, 0, 7, 7] = 0.0  # not above 0: no stroke
    down, up, low_right, low_left, high_right, high_left = key_points(picture)[0].tolist()
    assert down == [3.5, 5.0]  # the centre of the lowest row
    assert up == [2.0, 1.0]
    assert low_right == [5.0, 5.0]
    assert low_left == [2.0, 5.0]
    assert high_right == [2.0, 1.0]
    assert high_left == [2.0, 1.0]


def test_pairs_are_different_digits_of_one_class_and_truth_is_the_targets_points():
    pairs = digit_pairs(3, seed=0)
    assert 20 < len(pairs) <= 30
    assert bool((pairs.src != pairs.dst).all())
    torch.testing.assert_close(pairs.truth, key_points(pairs.pictures)[pairs.dst])
    assert pck(pairs.errors(pairs.truth), 0.5) == 1.0
    assert torch.equal(digit_pairs(3, seed=0).dst, pairs.dst)


def test_raw_patches_follow_a_shift_but_for_rounding():
    pairs = shifted_pairs(2, seed=0)
    found = pairs.match([plain_features(pairs.pictures)["5 x 5 raw patch"]], [1.0])
    assert pck(found, 0.75) == 1.0  # points between pixels are rounded by at most 0.71


def test_the_turned_photograph_shows_its_points_where_the_truth_says():
    photo, target, points, truth = photograph_pair(0.0, 5)
    x, y = truth.round().long().unbind(1)
    own = photo[0, points[:, 1].long(), points[:, 0].long()]
    turned = target[0, y, x]
    assert float(torch.corrcoef(torch.stack([own, turned]))[0, 1]) > 0.9
    moved = target[0, points[:, 1].long(), points[:, 0].long()]
    assert float(torch.corrcoef(torch.stack([own, moved]))[0, 1]) < 0.8


@pytest.mark.slow
def test_it_runs():
    study = reproduce(quick=True)
    assert [part.title for part in study.parts][1] == "Fusion"
    assert all(measure.value is not None for measure in study.measures)
    labels = [row[0] for row in study.parts[1].rows]
    assert "position + patch, alpha 0.5" in labels  # the control stands beside fusion

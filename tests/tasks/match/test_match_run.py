"""`ud.match`, `ud.match_dense`, transfer, swap and the bench, end to end on small pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import undiffuse as ud
from undiffuse.data.keypoint_pairs import KeypointPair
from undiffuse.events import Advanced, Finished, Started
from undiffuse.tasks.match import Matcher, MatchOptions, draw_matches, transfer
from undiffuse.tasks.match.drawing import draw_flow


@pytest.fixture(scope="module")
def model() -> ud.Model:
    return ud.load("digits")


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [(20, 34), (34, 20), (25, 25)])
def test_points_at_centres_of_patches_match_themselves(model: ud.Model, size: tuple[int, int]):
    picture = photo(*size)
    options = {"features": ("diffusion", "patch"), "size": 24, "layers": ("up0.0",)}
    matcher = Matcher(model, MatchOptions(**options))
    cells, _ = matcher.pair(*(matcher.describe(picture) for _ in range(2)))
    points = cells.centres[cells.allowed]
    found = ud.match(model, picture, points, picture, **options)
    torch.testing.assert_close(found.positions, points, atol=1e-6, rtol=0)
    assert bool(found.mutual.all())
    assert float(found.cycle.max()) == 0


def test_a_shifted_picture_of_another_size_is_matched_in_its_own_pixels():
    big = photo(40, 60)
    cut = big[:, 6:36, 10:50]
    points = torch.tensor([[5.0, 5.0], [30.0, 20.0], [17.0, 11.0]])
    found = ud.match(None, cut, points, big, features="patch", cells=60)
    torch.testing.assert_close(found.positions, points.double() + torch.tensor([10.0, 6.0]), atol=1e-6, rtol=0)


def test_matches_pass_the_tests_that_are_asked_for(model: ud.Model):
    a, b = photo(8, 8, 1), photo(8, 8, 1, seed=1)
    points = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    plain = ud.match(model, a, points, b, features="patch")
    assert bool(plain.kept.all())
    assert 0 < int(plain.mutual.sum()) < 64
    strict = ud.match(model, a, points, b, features="patch", mutual=True, ratio=0.9)
    assert torch.equal(strict.kept, plain.mutual & (plain.ratio <= 0.9))
    assert json.loads(json.dumps(strict.to_json()))["settings"]["ratio"] == 0.9
    assert len(strict.rows()) == 64


def test_masked_targets_are_never_returned(model: ud.Model):
    a, b = photo(30, 50), photo(33, 21, seed=2)
    mask = torch.zeros(33, 21, dtype=torch.bool)
    mask[4:12, 9:16] = True
    found = ud.match_dense(model, a, b, features="patch", cells=30, dst_mask=mask)
    assert found.flow.shape == (30, 50, 2)
    one = ud.match(model, a, [[3, 4], [40, 20]], b, features="patch", cells=30, dst_mask=mask)
    x, y = one.positions.round().long().unbind(1)
    assert bool(mask[y, x].all())
    with pytest.raises(ValueError, match="centre of none"):
        ud.match(model, a, [[3, 4]], b, features="patch", cells=4, dst_mask=torch.eye(33, 21) * torch.eye(33, 21)[0])


def test_a_masked_source_is_matched_among_itself_alone():
    a, b = photo(16, 16, 1), photo(16, 16, 1, seed=2)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[5:9, 6:11] = True
    whole = ud.match_dense(None, a, b, features="patch", cells=4)
    found = ud.match_dense(None, a, b, features="patch", cells=4, src_mask=inside)
    assert bool(found.flow[inside].isfinite().all())  # every pixel of the mask has a cell
    assert bool(found.flow[0].isnan().all()) and not bool(found.mutual[~inside][:16].any())
    middle = (slice(6, 9), slice(6, 9))  # between the four cells that the mask touches
    torch.testing.assert_close(found.flow[middle], whole.flow[middle])
    changed = torch.where(inside, a, -a)
    moved = ud.match_dense(None, changed, b, features="patch", patch=1, cells=16, src_mask=inside)
    same = ud.match_dense(None, a, b, features="patch", patch=1, cells=16, src_mask=inside)
    assert torch.equal(moved.flow[inside], same.flow[inside])  # what lies outside changes nothing within


def test_the_dense_match_of_a_picture_with_itself_is_the_identity(model: ud.Model):
    picture = photo(19, 31, 1)
    for options in ({"layers": ("up0.0",), "size": 16}, {"features": "patch", "cells": 9}):
        found = ud.match_dense(model, picture, picture, **options)
        assert float(found.flow.abs().max()) < 1e-9
        assert bool(found.mutual.all())
        y, x = np.mgrid[:19, :31]
        np.testing.assert_allclose(found.positions.numpy(), np.stack([x, y], -1))
    assert draw_flow(found).shape == (19, 31, 3)


def test_dense_and_points_agree_where_every_pixel_is_a_cell():
    a, b = photo(12, 12, 1), photo(12, 12, 1, seed=3)
    events: list[object] = []
    dense = ud.match_dense(None, a, b, features="patch", listener=events.append)
    assert dense.grid == (12, 12)
    assert events == [Started("cells", 144, "cell"), Advanced("cells", 144), Finished("cells")]
    points = torch.tensor([[0.0, 0.0], [11.0, 3.0], [6.0, 7.0]])
    found = ud.match(None, a, points, b, features="patch")
    torch.testing.assert_close(dense.positions[points[:, 1].long(), points[:, 0].long()], found.positions)


def test_points_are_carried_to_several_pictures(model: ud.Model):
    source, targets = photo(8, 8, 1), [photo(8, 8, 1), photo(16, 9, 3, seed=4)]
    events: list[object] = []
    found = list(transfer(model, source, [[2, 2]], targets, features="patch", listener=events.append))
    assert found[0].positions.tolist() == [[2, 2]]
    alone = ud.match(model, source, [[2, 2]], targets[1], features="patch")
    assert torch.equal(found[1].positions, alone.positions)
    assert len(events) == 4


def test_a_swap_with_itself_is_the_picture_and_refining_stays_inside(model: ud.Model):
    picture = photo(8, 8, 1)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 3:7] = True
    everywhere = torch.ones_like(mask)
    options = {"layers": ("up0.0",)}
    same = ud.swap(model, picture, picture, everywhere, everywhere, start=0, **options)
    torch.testing.assert_close(same.picture, picture, atol=1e-6, rtol=0)
    assert same.nfe == 0
    other = photo(8, 8, 1, seed=5)
    refined = ud.swap(model, picture, other, mask, everywhere, start=0.4, steps=10, **options)
    assert refined.nfe == 4
    assert torch.equal(refined.picture[:, ~mask], picture[:, ~mask])
    assert not torch.equal(refined.picture[:, mask], refined.pasted[:, mask])
    again = ud.swap(model, picture, other, mask, everywhere, start=0.4, steps=10, **options)
    assert torch.equal(again.picture, refined.picture)
    large = ud.swap(model, photo(20, 30), photo(25, 20, seed=6), np.ones((20, 30)), np.ones((25, 20)), start=0.2)
    assert large.picture.shape == (3, 20, 30)
    with pytest.raises(ValueError, match="refines by a model"):
        ud.swap(None, picture, other, mask, mask, start=0.5, features="patch")
    with pytest.raises(ValueError, match=r"within \[0, 1\)"):
        ud.swap(model, picture, other, mask, mask, start=1.0)


def test_the_bench_measures_pairs(model: ud.Model, tmp_path: Path):
    pairs = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        points = np.array([[3.0, 4], [20, 10], [25, 18], [np.nan, 0]])
        pairs.append(
            KeypointPair(
                name=str(number),
                src=tmp_path / f"{number}.png",
                dst=tmp_path / f"{number}.png",
                category="ab"[number % 2],
                src_points=points,
                dst_points=np.nan_to_num(points),
                dst_box=(0, 0, 10, 20),
            )
        )
    choices = {"patch": {"features": "patch", "cells": 30}, "position": {"features": "position", "cells": 4}}
    found = ud.bench_match(model, pairs, choices, resamples=20)
    assert (found.pairs, found.points) == (4, 12)
    by_name = {(row.name, row.alpha): row for row in found.rows}
    assert by_name["patch", 0.1].value.value == 1.0
    gain = by_name["position", 0.01].gain
    assert gain is not None
    assert gain.value < 0
    assert json.dumps(found.to_json())
    assert found.errors["patch"][0].size == 20  # the longer side of the box
    half = ud.bench_match(
        model, pairs, choices, per_category=1, size_of="image", alphas=(0.2,), average="image", resamples=20
    )
    assert half.pairs == 2
    assert half.errors["patch"][0].size == 30
    with pytest.raises(ValueError, match="draws is read by none of the choices patch, position"):
        ud.bench_match(model, pairs, choices, draws=4)
    with pytest.raises(ValueError, match="size='box' is unknown"):
        ud.bench_match(model, pairs, choices, size_of="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mutual and ratio would drop points"):
        ud.bench_match(model, pairs, choices, mutual=True, ratio=0.9)
    assert found.settings["data"] == "pairs that were given"
    edge = replace(pairs[0], src_points=np.array([[30.0, 20]]), dst_points=np.array([[29.0, 19]]))  # counted from 1
    assert ud.bench_match(model, [edge], {"patch": choices["patch"]}, resamples=10).rows[0].value.value == 1.0
    with pytest.raises(ValueError, match="1 of 1 points lie outside"):
        ud.bench_match(model, [replace(edge, src_points=np.array([[31.0, 3]]))], choices, resamples=10)
    mixed = {"diffusion": {"features": "diffusion"}, "patch": {"features": "patch"}}
    read = ud.bench_match(model, pairs[:1], mixed, draws=2, patch=7, resamples=10).settings
    assert (read["diffusion"]["diffusion"]["draws"], read["patch"]["patch"]["side"]) == (2, 7)
    with pytest.raises(ValueError, match="none of the data's: a, b"):
        ud.bench_match(model, pairs, choices, category="c")


def test_dropped_matches_are_drawn_grey(model: ud.Model):
    a = photo(8, 8, 1)
    found = ud.match(model, a, [[1, 1], [6, 5]], a, features="patch")
    drawn = draw_matches(a, a, found, side=80)
    assert drawn.shape == (80, 184, 3)
    assert (drawn.max(axis=2) - drawn.min(axis=2)).max() > 100  # coloured lines over grey pictures
    dropped = draw_matches(a, a, replace(found, kept=torch.zeros(2, dtype=torch.bool)), side=80)
    assert (dropped.max(axis=2).astype(int) - dropped.min(axis=2)).max() == 0


def test_what_cannot_be_matched_is_refused(model: ud.Model):
    a = photo(8, 8, 1)
    with pytest.raises(ValueError, match=r"1 of 1 points lie outside the source of 8 x 8 pixels: number 1 \(8, 0\)"):
        ud.match(model, a, [[8, 0]], a)
    with pytest.raises(TypeError, match="Model or None, not str"):
        ud.match("digits", a, [[0, 0]], a)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="own options; leave alpha out"):
        ud.match(Matcher(model, MatchOptions(features="patch")), a, [[0, 0]], a, alpha=0.5)
    with pytest.raises(TypeError, match="alfa"):
        ud.match(model, a, [[0, 0]], a, alfa=0.5)


def test_what_lies_in_the_padding_is_not_interpolated():
    from undiffuse.tasks.match.frame import Frame
    from undiffuse.tasks.match.matching import Cells
    from undiffuse.tasks.match.run import _between_cells

    frame, grid = Frame.around((20, 34)), (7, 7)
    allowed = frame.inside(grid)
    assert 0 < int(allowed.sum()) < 49
    cells = Cells(torch.zeros(49, 1), frame, grid, allowed)
    values = torch.where(allowed, 3.0, 1e6).double()[:, None]
    torch.testing.assert_close(_between_cells(values, cells), torch.full((20, 34, 1), 3.0, dtype=torch.float64))

"""Matching on vectors: the identity, exact shifts, limits of soft-argmax, masks, ambiguity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, normalize, pad

from undiffuse.tasks.match.frame import Frame
from undiffuse.tasks.match.fusion import fuse
from undiffuse.tasks.match.matching import Cells, find_matches

GRID = (6, 6)
EVERY = torch.arange(36)


def cells(maps: Tensor, allowed: Tensor | None = None, size: tuple[int, int] = (60, 60)) -> Cells:
    """Features (C, 6, 6) of a picture of 60 x 60 pixels."""
    frame = Frame.around(size)
    return Cells(fuse([maps], [1.0]), frame, GRID, frame.inside(GRID) if allowed is None else allowed)


def random_maps(seed: int = 0, channels: int = 16) -> Tensor:
    return torch.randn(channels, *GRID, generator=torch.Generator().manual_seed(seed))


def test_a_picture_matches_itself():
    one = cells(random_maps())
    found = find_matches(one, one, EVERY)
    assert torch.equal(found.cells, EVERY)
    assert torch.equal(found.back, EVERY)
    torch.testing.assert_close(found.positions, one.centres)
    torch.testing.assert_close(found.similarity, torch.ones(36))
    assert float(found.ratio.max()) < 1e-2
    assert bool((found.confidence > 0.99).all())


def test_an_equivariant_extractor_follows_a_cyclic_shift_exactly():
    picture = torch.randn(1, 1, *GRID, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(24, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    maps = [conv2d(pad(p, (1, 1, 1, 1), mode="circular"), weight)[0] for p in (picture, picture.roll(1, dims=3))]
    found = find_matches(cells(maps[0]), cells(maps[1]), EVERY)
    assert torch.equal(found.cells, EVERY.reshape(GRID).roll(-1, dims=1).flatten())


@pytest.mark.parametrize("method", ["soft-argmax", "window"])
def test_soft_argmax_of_no_temperature_is_the_nearest(method: str):
    a, b = cells(random_maps(3)), cells(random_maps(4))
    nearest = find_matches(a, b, EVERY).positions
    torch.testing.assert_close(find_matches(a, b, EVERY, method=method, temperature=1e-6).positions, nearest)


def test_soft_argmax_is_the_mean_under_the_softmax_and_the_window_cuts_it():
    a, b = cells(random_maps(3)), cells(random_maps(4))
    similarity = (a.vectors @ b.vectors.T).double()
    share = torch.softmax(similarity / 0.2, dim=1)
    whole = find_matches(a, b, EVERY, method="soft-argmax", temperature=0.2)
    torch.testing.assert_close(whole.positions, share @ b.centres, atol=1e-5, rtol=0)
    wide = find_matches(a, b, EVERY, method="window", window=5, temperature=0.2)
    torch.testing.assert_close(wide.positions, whole.positions)  # the window holds the whole grid
    best = similarity.argmax(1)
    near = ((b.centres[best][:, None] - b.centres).abs() <= 10 + 1e-9).all(-1)  # one cell is 10 pixels
    cut = share * near
    expected = cut @ b.centres / cut.sum(1, keepdim=True)
    found = find_matches(a, b, EVERY, method="window", window=1, temperature=0.2)
    torch.testing.assert_close(found.positions, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.confidence.double(), share.amax(1), atol=1e-5, rtol=0)


def test_confidence_counts_the_next_cells_of_fine_grids_alone():
    """Where all cells are alike, it is the share of the grid that counts as the match: never near 1 by that alone."""
    for side, expected in ((2, 1 / 4), (3, 1 / 9), (7, 1 / 49), (8, 4 / 64)):
        frame = Frame.around((60, 60))
        alike = Cells(torch.ones(side * side, 1), frame, (side, side), frame.inside((side, side)))
        found = find_matches(alike, alike, torch.tensor([0]))
        assert float(found.confidence) == pytest.approx(expected)  # the first of equals is a corner


def test_masked_cells_are_never_matched_nor_weighed():
    allowed = torch.zeros(36, dtype=torch.bool)
    allowed[[3, 20]] = True
    a, b = cells(random_maps(5)), cells(random_maps(6), allowed)
    assert set(find_matches(a, b, EVERY).cells.tolist()) <= {3, 20}
    soft = find_matches(a, b, EVERY, method="soft-argmax", temperature=1e9).positions
    torch.testing.assert_close(soft, b.centres[[3, 20]].mean(0).expand(36, 2), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="leaves no cell"):
        find_matches(a, cells(random_maps(6), torch.zeros(36, dtype=torch.bool)), EVERY)


def test_the_ratio_tells_what_is_ambiguous_and_back_what_is_not_mutual():
    vectors = normalize(torch.randn(36, 8, generator=torch.Generator().manual_seed(7)), dim=1)
    query = normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(8)), dim=1)
    target = vectors.clone()
    target[0] = target[35] = normalize(query + 0.1 * vectors[:1], dim=1)  # twice the same, far from each other
    frame = Frame.around((60, 60))
    source = vectors.clone()
    source[4] = query
    source[9] = target[0]  # nearer to the target than the query is
    a, b = (Cells(v, frame, GRID, torch.ones(36, dtype=torch.bool)) for v in (source, target))
    found = find_matches(a, b, torch.tensor([4]))
    assert float(found.ratio) == pytest.approx(1.0, abs=1e-4)
    assert int(found.back) == 9
    target[35] = vectors[35]
    found = find_matches(a, Cells(target, frame, GRID, b.allowed), torch.tensor([4]))
    distance = torch.cdist(query, target)[0]
    far = [i for i in range(36) if i not in (0, 1, 6, 7)]
    assert float(found.ratio) == pytest.approx(float(distance[0] / distance[far].min()), abs=1e-4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    from undiffuse.tasks.match import matching

    a, b = cells(random_maps(3)), cells(random_maps(4))
    whole = find_matches(a, b, EVERY, method="window", window=2)
    monkeypatch.setattr(matching, "_CHUNK", 36 * 5)
    parts = find_matches(a, b, EVERY, method="window", window=2)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), value)


def test_a_chunk_is_done_with_before_the_next_begins(monkeypatch: pytest.MonkeyPatch):
    from undiffuse.tasks.match import matching

    heard: list[str] = []
    around = matching._around
    monkeypatch.setattr(matching, "_CHUNK", 36 * 18)
    monkeypatch.setattr(matching, "_around", lambda *given: heard.append("asked") or around(*given))
    a, b = cells(random_maps(3)), cells(random_maps(4))
    find_matches(a, b, EVERY, listener=lambda event: heard.append(type(event).__name__))
    assert heard == ["Started", "asked", "Advanced", "asked", "Advanced", "Finished"]

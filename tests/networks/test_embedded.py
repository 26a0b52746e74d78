from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map

from undiffuse.networks.embedded import Embedded


def example(batch: int) -> Embedded:
    tokens = torch.arange(batch * 6.0).view(batch, 2, 3)
    return Embedded(vector=torch.arange(batch * 4.0).view(batch, 4), tokens=tokens, mask=tokens[..., 0] > 2)


def test_is_a_pytree_of_its_tensors():
    leaves, _ = tree_flatten(example(3))
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == 3
    doubled = tree_map(lambda leaf: leaf * 2, example(3))
    assert isinstance(doubled, Embedded)
    torch.testing.assert_close(doubled.vector, example(3).vector * 2)


def test_passes_through_vmap():
    rows = torch.func.vmap(lambda e: e.vector.sum() + e.tokens.sum())(example(3))
    torch.testing.assert_close(rows, example(3).vector.sum(1) + example(3).tokens.sum((1, 2)))


@pytest.mark.parametrize("index", [torch.tensor([2, 0, 0]), torch.tensor([True, False, True]), slice(1, 3)])
def test_take_chooses_rows_of_every_part(index):
    taken = example(3).take(index)
    torch.testing.assert_close(taken.vector, example(3).vector[index])
    torch.testing.assert_close(taken.tokens, example(3).tokens[index])
    torch.testing.assert_close(taken.mask, example(3).mask[index])
    assert taken.maps is None


def test_cat_undoes_taking_apart():
    whole = example(5)
    joined = Embedded.cat([whole.take(slice(0, 2)), whole.take(slice(2, 5))])
    assert joined.batch == 5
    torch.testing.assert_close(joined.tokens, whole.tokens)


def test_cat_of_empty_conditions_is_empty():
    assert Embedded.cat([Embedded(), Embedded()]).batch is None


def test_cat_refuses_different_structures_and_nothing():
    with pytest.raises(ValueError, match="different fields"):
        Embedded.cat([example(2), Embedded(vector=torch.zeros(2, 4))])
    with pytest.raises(ValueError, match="empty list"):
        Embedded.cat([])


def test_cat_repeats_maps_of_size_one_to_that_of_the_others():
    null, image = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.arange(24.0).view(1, 2, 3, 4)
    film = torch.arange(120.0).view(1, 5, 2, 3, 4)
    maps = Embedded.cat([Embedded(maps=null), Embedded(maps=image)]).maps
    assert torch.equal(maps, torch.cat([null.expand(1, 2, 3, 4), image]))
    maps = Embedded.cat([Embedded(maps=film), Embedded(maps=image), Embedded(maps=null)]).maps
    assert maps.shape == (3, 5, 2, 3, 4)
    assert torch.equal(maps[1, 4], image[0]) and torch.equal(maps[0], film[0])


def test_texts_are_repeated_for_every_frame():
    frames = example(2).texts(3)
    assert torch.equal(frames.tokens, example(2).tokens.repeat_interleave(3, 0)) and frames.vector is None
    assert torch.equal(frames.mask[3], example(2).mask[1])
    assert Embedded().texts(3).batch is None


def test_expand_repeats_one_row_and_refuses_more():
    assert example(1).expand(4).batch == 4
    torch.testing.assert_close(example(1).expand(4).vector, example(1).vector.repeat(4, 1))
    assert example(3).expand(3).batch == 3
    assert Embedded().expand(3).batch is None
    with pytest.raises(ValueError, match="cannot expand 2 rows to 3"):
        example(2).expand(3)

from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator, randomise
from undiffuse.networks.attention import CrossAttention, Rotary, SelfAttention, attend, math_attention


def qkv(length: int = 5, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    draws = generator(1)
    return [torch.randn(2, 3, length, 4, generator=draws, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
def test_math_and_fused_attention_agree(masked):
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]).bool()[:, None, None] if masked else None
    fused = attend(*qkv(), mask)
    with math_attention():
        plain = attend(*qkv(), mask)
    torch.testing.assert_close(plain, fused, rtol=1e-12, atol=1e-12)


def test_masked_tokens_are_not_read():
    attention = randomise(SelfAttention(8, 2))
    x = torch.randn(2, 5, 8, generator=generator())
    mask = torch.tensor([1, 1, 1, 0, 0]).bool().expand(2, 5)
    torch.testing.assert_close(attention(x, mask=mask)[:, :3], attention(x[:, :3]))


def test_math_mode_ends_with_its_block_also_after_an_error():
    queries = [part.float() for part in qkv()]
    tangents = tuple(torch.ones_like(part) for part in queries)
    with pytest.raises(KeyError), math_attention():
        raise KeyError
    with pytest.raises(NotImplementedError):  # fused again: no forward-mode derivative
        torch.func.jvp(attend, tuple(queries), tangents)


def test_forward_mode_derivative_equals_finite_differences():
    attention = randomise(SelfAttention(8, 2)).double()
    draws = generator(3)
    x, tangent = (torch.randn(2, 6, 8, generator=draws, dtype=torch.float64) for _ in range(2))
    run = lambda y: attention(y, Rotary.make(6, 4, like=y))  # noqa: E731
    with math_attention():
        _, jvp = torch.func.jvp(run, (x,), (tangent,))
    step = 1e-5  # central differences: error O(step^2) + rounding 1e-16 / step
    difference = (run(x + step * tangent) - run(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp, difference, rtol=1e-7, atol=1e-8)


def test_double_backward_works_in_math_mode():
    inputs = tuple(part[:1, :1, :3].contiguous().requires_grad_() for part in qkv())
    with math_attention():
        assert torch.autograd.gradgradcheck(attend, inputs)


def test_rotary_scores_depend_on_the_distance_alone():
    rotary = Rotary.make(12, 8, like=torch.zeros((), dtype=torch.float64))
    draws = generator(4)
    query, key = (torch.randn(8, generator=draws, dtype=torch.float64).expand(12, 8) for _ in range(2))
    scores = rotary.turn(query) @ rotary.turn(key).T
    for offset in range(-6, 7):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert not torch.allclose(scores[0, 1], scores[0, 2])


def test_self_attention_with_rotary_positions_does_not_see_where_a_sequence_starts():
    attention = randomise(SelfAttention(8, 2))
    x = torch.randn(2, 5, 8, generator=generator())
    long = Rotary.make(9, 4, like=x)
    shifted = Rotary(long.cos[4:], long.sin[4:])
    torch.testing.assert_close(attention(x, shifted), attention(x, Rotary.make(5, 4, like=x)))
    assert not torch.allclose(attention(x, shifted), attention(x), atol=1e-3)


def test_rotary_keeps_lengths():
    x = torch.randn(2, 3, 7, 8, generator=generator())
    torch.testing.assert_close(Rotary.make(7, 8, like=x).turn(x).norm(dim=-1), x.norm(dim=-1))


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="10 features do not split into 4 heads"):
        SelfAttention(10, 4)


def test_attention_compiles_into_one_graph():
    attention = randomise(SelfAttention(8, 2))
    x = torch.randn(2, 5, 8, generator=generator())
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), attention(x))


def crossing(heads: int = 2, **options: bool) -> tuple[CrossAttention, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of 6 queries to 5 tokens of other width, of which the second item may read two."""
    attention = randomise(CrossAttention(8, heads, 3, **options)).double()
    draws = generator(5)
    x, tokens = (torch.randn(2, *shape, generator=draws, dtype=torch.float64) for shape in ((6, 8), (5, 3)))
    return attention, x, tokens, torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cross_attention_equals_its_formula_head_by_head(qk_norm):
    attention, x, tokens, mask = crossing(qk_norm=qk_norm)
    query = attention.query(x).unflatten(-1, (2, 4))
    key, value = attention.key_value(tokens).unflatten(-1, (2, 2, 4)).unbind(2)
    if qk_norm:
        query, key = attention.query_norm(query), attention.key_norm(key)
    read = torch.zeros(2, 6, 2, 4, dtype=torch.float64)
    for item in range(2):
        seen = mask[item]
        for head in range(2):
            scores = query[item, :, head] @ key[item, seen, head].T / 4**0.5
            read[item, :, head] = scores.softmax(-1) @ value[item, seen, head]
    torch.testing.assert_close(attention(x, tokens, mask), attention.out(read.flatten(2)), rtol=1e-12, atol=1e-12)


def test_tokens_that_are_masked_change_no_bit():
    attention, x, tokens, mask = crossing()
    changed = torch.where(mask[..., None], tokens, 1e3)
    assert torch.equal(attention(x, changed, mask), attention(x, tokens, mask))
    with math_attention():
        assert torch.equal(attention(x, changed, mask), attention(x, tokens, mask))
    assert not torch.allclose(attention(x, changed), attention(x, tokens))


def test_cross_attention_has_derivatives_in_both_inputs():
    attention, x, tokens, mask = crossing()
    draws = generator(6)
    tangents = tuple(torch.randn(part.shape, generator=draws, dtype=torch.float64) for part in (x, tokens))
    run = lambda y, z: attention(y, z, mask)  # noqa: E731
    with math_attention():
        _, jvp = torch.func.jvp(run, (x, tokens), tangents)
        leaves = [part.clone().requires_grad_() for part in (x, tokens)]
        assert torch.autograd.gradgradcheck(run, leaves)
    step = 1e-5
    ahead, behind = (
        [part + sign * step * t for part, t in zip((x, tokens), tangents, strict=True)] for sign in (1, -1)
    )
    torch.testing.assert_close(jvp, (run(*ahead) - run(*behind)) / (2 * step), rtol=1e-7, atol=1e-8)


def test_cross_attention_starts_silent_and_refuses_heads_that_do_not_divide():
    x, tokens = torch.randn(2, 6, 8, generator=generator()), torch.randn(2, 5, 8, generator=generator())
    assert (CrossAttention(8, 2)(x, tokens) == 0).all()
    assert (CrossAttention(8, 2, zero_init=False)(x, tokens) != 0).any()
    with pytest.raises(ValueError, match="10 features do not split into 4 heads"):
        CrossAttention(10, 4)


def test_cross_attention_compiles_into_one_graph():
    attention, x, tokens, mask = crossing()
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, tokens, mask), attention(x, tokens, mask))

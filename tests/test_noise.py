"""Keyed noise: the same bits whatever the batch, and numbers that pass for independent ones.

Statistical tests use fixed seeds, so they either always pass or always fail; the stated false-alarm rate is the
chance that a perfect generator would have failed on this choice of seed.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.noise import STREAMS, InjectedNoise, KeyedNoise, RecordedNoise, permutation
from undiffuse.process.grids import make_grid
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver

EVERY_SEED = (0, 1, -1, 2**40, -(2**63), 2**64 + 5)


# -- bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_eight_and_eight_batches_of_one_draw_the_same_bits(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    items = [0, 1, 5, 1000, 2**40, 7, 3, 2]
    together = KeyedNoise(seed, items)
    for stream in ("init", "step"):
        for step in (0, 3, 10**6):
            normal = together.normal(stream, step, shape, dtype)
            uniform = together.uniform(stream, step, shape)
            assert normal.shape == uniform.shape == (8, *shape)
            assert normal.dtype == dtype
            assert uniform.dtype == torch.float64
            for row, item in enumerate(items):
                alone = KeyedNoise(seed, [item])
                assert torch.equal(alone.normal(stream, step, shape, dtype)[0], normal[row])
                assert torch.equal(alone.uniform(stream, step, shape)[0], uniform[row])


def test_blocks_of_steps_hold_the_same_numbers() -> None:
    noise = KeyedNoise(3, range(4))
    steps = [5, 0, 2]
    block, uniforms = noise.normal_block("step", steps, (3, 2)), noise.uniform_block("step", steps, (3,))
    for row, step in enumerate(steps):
        assert torch.equal(block[row], noise.normal("step", step, (3, 2)))
        assert torch.equal(uniforms[row], noise.uniform("step", step, (3,)))


def test_many_numbers_and_few_are_computed_differently_and_the_same() -> None:
    many, few = KeyedNoise(3, range(300)), KeyedNoise(3, range(7))
    assert torch.equal(many.normal("init", 2, (200,))[:7], few.normal("init", 2, (200,)))
    assert torch.equal(many.uniform("init", 2, (200,))[:7], few.uniform("init", 2, (200,)))


def test_float32_noise_is_the_rounding_of_float64_noise() -> None:
    noise = KeyedNoise(3, range(100))
    assert torch.equal(noise.normal("init", 0, (50,)), noise.normal("init", 0, (50,), torch.float64).float())


def test_longer_items_begin_with_the_numbers_of_shorter_ones() -> None:
    noise = KeyedNoise(3, range(4))
    assert torch.equal(noise.normal("init", 0, (7,))[:, :4], noise.normal("init", 0, (4,)))


def test_seed_item_step_and_stream_each_change_the_numbers() -> None:
    base = KeyedNoise(1, [4]).normal("step", 2, (64,))
    others = [
        KeyedNoise(2, [4]).normal("step", 2, (64,)),
        KeyedNoise(1, [5]).normal("step", 2, (64,)),
        KeyedNoise(1, [4]).normal("step", 3, (64,)),
        KeyedNoise(1, [4]).normal("init", 2, (64,)),
    ]
    drawn = [base, *others]
    for i in range(len(drawn)):
        for j in range(i):
            assert not torch.isclose(drawn[i], drawn[j]).any()


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), KeyedNoise(0, range(3)).normal("init", 0, (4,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(KeyedNoise(0, range(3)).normal("init", 0, (4,)), first)


def test_the_numbers_of_this_version_stay() -> None:
    """Samples of a seed are a promise to users: these are SplitMix64's own words, computed in Python integers."""

    def mix(z: int) -> int:
        z &= 2**64 - 1
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return z ^ (z >> 31)

    import zlib

    golden, seed, item, step = 0x9E3779B97F4A7C15, 7, 12, 3
    base = mix(mix(seed) + zlib.crc32(b"data"))
    row = mix(mix(base + golden * step) + item * golden)
    words = [mix(row + golden * (i + 1)) for i in range(5)]
    uniform = KeyedNoise(seed, [item]).uniform("data", step, (5,))[0]
    assert uniform.tolist() == [(w >> 11) * 2.0**-53 for w in words]
    normal = KeyedNoise(seed, [item]).normal("data", step, (2,), torch.float64)[0]
    radius = math.sqrt(-2 * math.log(((words[0] & 0xFFFFFFFF) + 0.5) * 2.0**-32))
    angle = math.tau * (words[0] >> 32) * 2.0**-32
    assert normal.tolist() == pytest.approx([radius * math.cos(angle), radius * math.sin(angle)], rel=1e-13)


def test_an_unknown_stream_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'noise'.*init"):
        KeyedNoise(0, [0]).normal("noise", 0, (1,))


# -- statistics -----------------------------------------------------------------------------------------


def check_uniform(u: Tensor) -> None:
    """Moments within 4.5 standard errors (false alarm 7e-6 each) and Kolmogorov-Smirnov at 1e-4."""
    u = u.flatten()
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    n = u.numel()
    assert abs(float(u.mean()) - 0.5) < 4.5 * math.sqrt(1 / 12 / n)
    assert abs(float(u.var()) - 1 / 12) < 4.5 * math.sqrt(1 / 180 / n)
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


def check_normal(z: Tensor) -> None:
    """As `check_uniform`, with four moments."""
    z = z.double().flatten()
    n = z.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - mean) < 4.5 * math.sqrt(variance / n), power
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4


def test_numbers_have_the_right_law_across_elements_items_steps_streams_and_seeds() -> None:
    many = 20000
    for draw, check in (("uniform", check_uniform), ("normal", check_normal)):
        check(getattr(KeyedNoise(0, [0]), draw)("init", 0, (many,)))
        check(getattr(KeyedNoise(0, range(many)), draw)("init", 0, (1,)))
        one = KeyedNoise(0, [3])
        block = one.uniform_block if draw == "uniform" else one.normal_block
        check(block("step", range(many), (1,)))
        check(torch.stack([getattr(KeyedNoise(s, [0]), draw)("init", 0, (1,)) for s in range(3000)]))
        check(torch.cat([getattr(KeyedNoise(1, range(500)), draw)(stream, 0, (4,)) for stream in STREAMS]))


def test_neighbours_along_every_axis_are_uncorrelated() -> None:
    """Each correlation of n pairs stays below 4.5 / sqrt(n): false alarm 7e-6 each, 4e-4 in all."""
    bound = 4.5
    noise = KeyedNoise(5, range(300))
    z = noise.normal_block("step", range(20), (30,), torch.float64)  # (step, item, element)
    for axis in range(3):
        for lag in (1, 2, 3):
            size = z.shape[axis] - lag
            for power in (1, 2):
                a, b = z.narrow(axis, 0, size) ** power, z.narrow(axis, lag, size) ** power
                corr = float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))
                assert abs(corr) < bound / math.sqrt(a.numel()), (axis, lag, power)
    streams = torch.stack([noise.normal(s, 0, (64,), torch.float64).flatten() for s in STREAMS])
    off = torch.corrcoef(streams) - torch.eye(len(STREAMS), dtype=torch.float64)
    assert float(off.abs().max()) < bound / math.sqrt(streams.shape[1])
    seeds = torch.stack([KeyedNoise(s, range(300)).normal("init", 0, (64,), torch.float64).flatten() for s in range(9)])
    off = torch.corrcoef(seeds) - torch.eye(9, dtype=torch.float64)
    assert float(off.abs().max()) < bound / math.sqrt(seeds.shape[1])


def test_seed_and_item_do_not_trade_places() -> None:
    drawn = torch.stack([KeyedNoise(s, range(16)).uniform("data", e, (2,)) for s in range(16) for e in range(16)])
    assert len(torch.unique(drawn)) == drawn.numel()  # false alarm: 8192^2 / 2^54 = 4e-9


# -- sampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "sde-dpm++2m", "edm-heun"])
def test_samples_do_not_depend_on_the_batch(dtype: torch.dtype, bound: float, solver: str) -> None:
    process = process_of("vp")
    denoiser, rule = spec_mixture(process), make_solver(solver)
    grid = make_grid(process.schedule, 12)

    def draw(items: list[int]) -> Tensor:
        noise = KeyedNoise(3, items)
        return sample(denoiser, noise=noise, shape=(2,), solver=rule, grid=grid, dtype=dtype).x

    together = draw(list(range(8)))
    alone = torch.cat([draw([item]) for item in range(8)])
    assert together.dtype == dtype
    assert float((together - alone).abs().max()) < bound


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "sde-dpm++2m"])
def test_recorded_noise_injected_again_repeats_the_run(solver: str) -> None:
    process = process_of("vp")
    denoiser, rule, grid = spec_mixture(process), make_solver(solver), make_grid(process.schedule, 5)
    recorded = RecordedNoise(KeyedNoise(3, range(4)))
    first = sample(denoiser, noise=recorded, shape=(2,), solver=rule, grid=grid)
    assert ("init", 0) in recorded.record
    stochastic_steps = 4 if rule.stochastic else 0  # the step to t = 0 draws nothing
    assert len(recorded.record) == 1 + stochastic_steps
    again = sample(denoiser, noise=InjectedNoise(recorded.record), shape=(2,), solver=rule, grid=grid)
    assert torch.equal(again.x, first.x)
    changed = {key: -value for key, value in recorded.record.items()}
    assert not torch.equal(
        sample(denoiser, noise=InjectedNoise(changed), shape=(2,), solver=rule, grid=grid).x, first.x
    )


def test_churn_draws_are_recorded_and_repeat_the_run() -> None:
    process = process_of("vp")
    denoiser, rule, grid = spec_mixture(process), make_solver("edm-heun", churn=5.0), make_grid(process.schedule, 5)
    recorded = RecordedNoise(KeyedNoise(3, range(4)))
    first = sample(denoiser, noise=recorded, shape=(2,), solver=rule, grid=grid)
    assert len(recorded.record) > 1
    again = sample(denoiser, noise=InjectedNoise(recorded.record), shape=(2,), solver=rule, grid=grid)
    assert torch.equal(again.x, first.x)


def test_what_is_not_injected_comes_from_the_fallback_or_is_an_error() -> None:
    given, fallback = normals(2, 3), KeyedNoise(0, range(2))
    noise = InjectedNoise({("init", 0): given}, fallback)
    assert torch.equal(noise.normal("init", 0, (3,), torch.float64), given)
    assert torch.equal(noise.normal("step", 0, (3,)), fallback.normal("step", 0, (3,)))
    assert torch.equal(noise.uniform("step", 0, (3,)), fallback.uniform("step", 0, (3,)))
    with pytest.raises(ValueError, match=r"\(4,\) is needed"):
        noise.normal("init", 0, (4,))
    with pytest.raises(ValueError, match="no noise was injected for stream 'step', step 1"):
        InjectedNoise({}).uniform("step", 1, (3,))


def test_a_run_in_other_hands_uses_the_same_noise() -> None:
    """The trajectory of one item is the same inside any batch, at every grid time."""
    process = process_of("rf")
    grid, x = make_grid(process.schedule, 6), normals(5, 2, seed=1)
    denoiser = spec_mixture(process)
    full = run(denoiser, make_solver("ddpm"), grid, x, noise=KeyedNoise(1, range(5)), trajectory=True).trajectory
    part = run(denoiser, make_solver("ddpm"), grid, x[3:4], noise=KeyedNoise(1, [3]), trajectory=True).trajectory
    assert full is not None
    assert part is not None
    torch.testing.assert_close(part[:, 0], full[:, 3], rtol=1e-12, atol=1e-12)


# -- permutations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1797])
def test_a_permutation_holds_every_index_once(n: int) -> None:
    order = permutation(3, 0, n)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))


def test_permutations_are_functions_of_seed_and_epoch_and_look_random() -> None:
    assert torch.equal(permutation(3, 1, 100), permutation(3, 1, 100))
    assert not torch.equal(permutation(3, 1, 100), permutation(3, 2, 100))
    assert not torch.equal(permutation(3, 1, 100), permutation(4, 1, 100))
    # All 24 orders of 4 things over 4800 epochs: chi-square with 23 degrees of freedom at 1e-5.
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(4800):
        key = tuple(permutation(0, epoch, 4).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-5

"""Objectives against closed forms: the simple loss, per-frame weights, and the categorical bounds by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles.masked import all_states, binary_joint, joint_denoiser, triple_joint
from undiffuse.denoisers import GaussianDenoiser, NetworkDenoiser
from undiffuse.denoisers.elbo import elbo
from undiffuse.networks import MLPOptions, UNetOptions, build_network
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.process import GaussianProcess, make_schedule
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.categorical import CategoricalELBO, MaskedELBO
from undiffuse.training.denoising import DenoisingObjective, make_denoising
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.time_samplers import FrameTimes, TimeSampler, UniformTimes
from undiffuse.training.weights import LOG_WEIGHTS, LossWeight

VECTOR = DataSpec(kind="vector", shape=(3,), classes=("a", "b"))


def network_denoiser(prediction: str = "noise", schedule: str = "cosine") -> NetworkDenoiser:
    network = build_network(MLPOptions(width=16, depth=1), VECTOR)
    with torch.no_grad():
        network.leave.weight.normal_(generator=torch.Generator().manual_seed(0))
    return NetworkDenoiser(network, GaussianProcess(make_schedule(schedule)), prediction, spec=VECTOR)


def vector_batch(n: int = 8) -> dict:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    return {"x": x, "cond": {"label": torch.arange(n) % 2}}


def test_the_uniform_noise_loss_is_exactly_the_mean_squared_error_of_the_noise():
    denoiser, batch, noise = network_denoiser("noise"), vector_batch(), KeyedNoise(0, range(8))
    objective = make_denoising(DenoisingOptions(weight="noise", drop=0.0), denoiser.process.schedule)
    losses = objective.losses(denoiser, batch, noise)
    t = objective.times.draw(noise, 8).t
    eps = noise.normal("data", 0, (3,))
    output = denoiser(denoiser.process.corrupt(batch["x"], t, eps), t, denoiser.embed(batch["cond"], 8)).raw
    assert torch.equal(losses.per_sample, (output - eps).square().mean(1))
    absolute = make_denoising(DenoisingOptions(weight="noise", drop=0.0, error="absolute"), denoiser.process.schedule)
    assert torch.equal(absolute.losses(denoiser, batch, noise).per_sample, (output - eps).abs().mean(1))
    assert absolute.without_memory().absolute
    torch.testing.assert_close(losses.half_logsnr, denoiser.process.schedule.half_logsnr(t))


@pytest.mark.parametrize("prediction", ["data", "noise", "velocity", "v", "edm"])
@pytest.mark.parametrize("weight", ["data", "v", "min-snr"])
def test_the_loss_is_the_weighted_error_of_the_mean(prediction, weight):
    denoiser, batch, noise = network_denoiser(prediction, "trig").double(), vector_batch(), KeyedNoise(0, range(8))
    batch["x"] = batch["x"].double()
    objective = DenoisingObjective(LossWeight(name=weight), TimeSampler(UniformTimes(denoiser.process.schedule)))
    corrupted = objective.prepare(denoiser, batch, noise, 8)
    mean = denoiser(corrupted.x, corrupted.t, denoiser.embed(batch["cond"], 8)).mean
    snr = torch.exp(2 * corrupted.half_logsnr)
    multiplier = {"data": torch.ones_like(snr), "v": snr + 1, "min-snr": snr.clamp(max=5)}[weight]
    expected = multiplier * (mean - batch["x"]).square().mean(1)
    torch.testing.assert_close(objective.score(denoiser, corrupted).per_sample, expected, rtol=1e-6, atol=0)


def test_a_denoiser_without_a_network_is_scored_on_its_mean():
    mean, cov = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    denoiser = GaussianDenoiser(mean, cov, GaussianProcess(make_schedule("trig")))
    x = torch.randn(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = make_denoising(DenoisingOptions(weight="v", drop=0.0), denoiser.process.schedule)
    losses = objective.losses(denoiser, {"x": x}, KeyedNoise(0, range(20_000))).per_sample
    # The posterior variance is 1 / (1 + SNR), so weight SNR + 1 gives 1 at every level.
    assert abs(float(losses.mean()) - 1) < 4 * float(losses.std()) / 20_000**0.5


def test_conditions_are_dropped_at_the_stated_rate_and_by_item():
    objective = make_denoising(DenoisingOptions(drop=0.3), make_schedule("cosine"))
    batch = {"x": torch.zeros(10_000, 3), "cond": {"label": torch.zeros(10_000, dtype=torch.int64)}}
    drop = objective.conditions(batch, KeyedNoise(0, range(10_000)))["drop"]["label"]
    assert abs(float(drop.double().mean()) - 0.3) < 4 * (0.21 / 10_000) ** 0.5
    alone = objective.conditions(batch, KeyedNoise(0, [77]))["drop"]["label"]
    assert bool(alone[0]) == bool(drop[77])


def test_conditions_whose_null_is_a_value_are_never_dropped_and_leave_the_others_draws_alone():
    objective = make_denoising(DenoisingOptions(drop=0.3), make_schedule("cosine"))
    rows = torch.zeros(50, 1)
    cond = {"age": rows, "caption": rows, "zoom": rows}
    noise = KeyedNoise(0, range(50))
    every = objective.conditions({"x": rows, "cond": cond}, noise)["drop"]
    some = objective.conditions({"x": rows, "cond": cond}, noise, frozenset({"age"}))["drop"]
    assert some.keys() == {"caption", "zoom"}
    assert all(torch.equal(drop, every[name]) for name, drop in some.items())


def test_an_objective_learns_from_the_denoiser_what_is_never_dropped():
    cond = {"pose": ConditionSpec(kind="vector", width=1, null="zero"), "age": ConditionSpec(kind="vector", width=1)}
    spec = DataSpec(kind="vector", shape=(3,), cond=cond)
    network = build_network(MLPOptions(width=8, depth=1), spec)
    denoiser = NetworkDenoiser(network, GaussianProcess(make_schedule("trig")), spec=spec)
    objective = make_denoising(DenoisingOptions(drop=0.3), denoiser.process.schedule)
    batch = {"x": torch.zeros(8, 3), "cond": {name: torch.zeros(8, 1) for name in cond}}
    assert objective.prepare(denoiser, batch, KeyedNoise(0, range(8)), 8).drop.keys() == {"age"}


def test_a_block_of_batches_equals_batch_by_batch():
    denoiser = network_denoiser()
    objective = make_denoising(DenoisingOptions(drop=0.5), denoiser.process.schedule)
    batch = vector_batch(12)
    block = objective.prepare(denoiser, batch, KeyedNoise(0, range(12)), 4)
    for start in (0, 4, 8):
        part = {"x": batch["x"][start : start + 4], "cond": {"label": batch["cond"]["label"][start : start + 4]}}
        own = objective.prepare(denoiser, part, KeyedNoise(0, range(start, start + 4)), 4)
        cut = block.rows(start, start + 4)
        for name in ("x", "t", "target", "weight", "half_logsnr"):
            torch.testing.assert_close(getattr(cut, name), getattr(own, name), rtol=1e-6, atol=1e-7)
        assert torch.equal(cut.drop["label"], own.drop["label"])


def test_frames_are_weighted_by_their_own_level_before_averaging():
    spec = DataSpec(kind="video", shape=(3, 1, 4, 4))
    network = build_network(UNetOptions(channels=8, multipliers=(1,), blocks=1, attention=(), temporal=True), spec)
    denoiser = NetworkDenoiser(network, GaussianProcess(make_schedule("trig")), "v", spec=spec)
    times = FrameTimes(TimeSampler(UniformTimes(denoiser.process.schedule)), 1.0)
    objective = DenoisingObjective(LossWeight(name="noise"), times)
    x = torch.randn(4, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    corrupted = objective.prepare(denoiser, {"x": x}, KeyedNoise(0, range(4)), 4)
    assert corrupted.t.shape == corrupted.weight.shape == (4, 3)
    error = (denoiser(corrupted.x, corrupted.t).raw - corrupted.target).square().flatten(2).mean(2)
    snr = torch.exp(2 * denoiser.process.schedule.half_logsnr(corrupted.t))
    expected = (snr / (1 + snr) * error).mean(1)
    torch.testing.assert_close(objective.score(denoiser, corrupted).per_sample, expected.float(), rtol=1e-5, atol=0)


# -- categorical --------------------------------------------------------------------------------------

TRIPLES = all_states(3, 3)
LOG_P = triple_joint().flatten().log()


def injected(time: Tensor, order: Tensor) -> InjectedNoise:
    return InjectedNoise({("time", 0): time, ("data", 0): order})


def count_form(tokens: Tensor) -> Tensor:
    """The count-sampled loss of one sequence, averaged over every count and every order."""
    orders = torch.tensor(list(itertools.permutations([0.2, 0.5, 0.8])), dtype=torch.float64)
    total = torch.zeros(())
    for count in range(3):
        noise = injected(torch.full((6,), (count + 0.5) / 3, dtype=torch.float64), orders)
        objective = MaskedELBO("count")
        denoiser = joint_denoiser(triple_joint())
        corrupted = objective.prepare(denoiser, {"x": tokens.expand(6, 3)}, noise, 1)
        total = total + objective.score(denoiser, corrupted).per_sample.mean() / 3
    return total


def time_form(tokens: Tensor) -> Tensor:
    """The time-sampled loss, integrated over the time by Gauss-Legendre and over masks by their probabilities."""
    points, weights = np.polynomial.legendre.leggauss(8)
    masks = torch.tensor(list(itertools.product([False, True], repeat=3)))
    denoiser, objective = joint_denoiser(triple_joint()), MaskedELBO("time")
    total = torch.zeros(())
    for drop, weight in zip((points + 1) / 2, weights / 2, strict=True):
        order = torch.where(masks, 0.5 * drop, 0.5 * (1 + drop)).double()
        noise = injected(torch.full((8,), 1 - drop, dtype=torch.float64), order)
        losses = objective.score(denoiser, objective.prepare(denoiser, {"x": tokens.expand(8, 3)}, noise, 1)).per_sample
        chance = drop ** masks.sum(1) * (1 - drop) ** (3 - masks.sum(1))
        total = total + weight * (chance * losses).sum()
    return total


@pytest.mark.parametrize("row", [0, 5, 13, 26])
def test_count_and_time_forms_of_the_exact_joint_equal_minus_log_p_per_token(row):
    expected = -float(LOG_P[row]) / 3
    # weights are float32: three additions of relative rounding 6e-8
    assert float(count_form(TRIPLES[row])) == pytest.approx(expected, rel=1e-6)
    assert float(time_form(TRIPLES[row])) == pytest.approx(expected, rel=1e-6)


def test_count_sampling_is_stratified_and_masks_exactly_n_tokens():
    objective, denoiser = MaskedELBO("count"), joint_denoiser(binary_joint())
    tokens = torch.zeros(12, 6, dtype=torch.int64)
    corrupted = objective.prepare(denoiser, {"x": tokens}, KeyedNoise(0, range(12)), 12)
    counts = (corrupted.x == 2).sum(1)
    assert torch.equal(counts.bincount(minlength=7), torch.tensor([0, 2, 2, 2, 2, 2, 2]))
    torch.testing.assert_close(corrupted.weight, (corrupted.x == 2) / counts[:, None].float())


def test_the_time_of_a_count_has_its_beta_law():
    objective, denoiser = MaskedELBO("count"), joint_denoiser(binary_joint())
    n = 20_000
    u = torch.full((n,), 1.5 / 6, dtype=torch.float64)  # two masks of six
    noise = InjectedNoise({("time", 0): u}, KeyedNoise(0, range(n)))
    t = objective.prepare(denoiser, {"x": torch.zeros(n, 6, dtype=torch.int64)}, noise, 1).t
    assert abs(float(t.mean()) - 2 / 7) < 4 * float(t.std()) / n**0.5  # Beta(2, 5)


def test_open_tokens_give_no_loss_and_no_gradient():
    denoiser = joint_denoiser(binary_joint())
    objective = MaskedELBO("count")
    tokens = torch.zeros(6, 6, dtype=torch.int64)
    corrupted = objective.prepare(denoiser, {"x": tokens}, KeyedNoise(0, range(6)), 6)
    assert torch.equal(corrupted.weight == 0, corrupted.x != 2)
    assert objective.score(denoiser, corrupted).per_sample.isfinite().all()


def test_the_time_form_stays_finite_at_the_clean_end():
    """The largest uniform masks with probability 2^-53: weight 2^53 / L where a mask is drawn, 0 where none is."""
    objective, denoiser = MaskedELBO("time"), joint_denoiser(binary_joint())
    order = torch.tensor([[0.0, 0.3, 0.4, 0.5, 0.6, 0.7], [0.1, 0.3, 0.4, 0.5, 0.6, 0.7]], dtype=torch.float64)
    noise = injected(torch.full((2,), 1 - 2.0**-53, dtype=torch.float64), order)
    corrupted = objective.prepare(denoiser, {"x": torch.zeros(2, 6, dtype=torch.int64)}, noise, 1)
    assert (corrupted.x == 2).sum(1).tolist() == [1, 0]
    assert corrupted.t.tolist() == [2.0**-53] * 2
    losses = objective.score(denoiser, corrupted).per_sample
    assert float(losses[1]) == 0.0 < float(losses[0]) < torch.inf


@pytest.mark.parametrize("kind", ["uniform", "mask-replace", "absorbing"])
def test_the_discrete_time_bound_of_the_exact_denoiser_is_the_entropy(kind):
    table = binary_joint().sum((2, 3, 4, 5))  # two tokens
    p = table.flatten()
    draws, levels = 8000, 200
    denoiser, objective = joint_denoiser(table, kind), CategoricalELBO(levels)
    tokens = all_states(2, 2).repeat(draws, 1)  # levels are stratified along the batch, so states must alternate
    losses = objective.losses(denoiser, {"x": tokens}, KeyedNoise(0, range(len(tokens)))).per_sample.view(draws, 4)
    mean = float((losses.mean(0) * p).sum())
    error = float((losses.var(0) * p**2 / draws).sum() ** 0.5)
    entropy = -float((p * p.log()).sum())
    # Above the entropy by what a product of token laws loses in one step, of order 1 / levels for two tokens.
    assert -4 * error < mean - entropy / 2 < 4 * error + 2 / levels


def test_elbo_of_the_exact_denoiser_is_the_entropy_within_its_error():
    denoiser = joint_denoiser(triple_joint())
    p = triple_joint().flatten()
    rows = torch.multinomial(p, 2000, replacement=True, generator=torch.Generator().manual_seed(0))
    bound = elbo(denoiser, TRIPLES[rows], KeyedNoise(0, range(2000)), draws=6)
    assert abs(bound.mean - 2.7514 / 3) < 4 * bound.standard_error
    assert bound.standard_error < 0.02


def test_elbo_refuses_what_has_no_tokens():
    with pytest.raises(ValueError, match="Gaussian"):
        elbo(network_denoiser(), torch.zeros(1, 3, dtype=torch.int64), KeyedNoise(0, [0]))


@pytest.mark.parametrize("prediction", ["data", "velocity", "v", "edm"])
@pytest.mark.parametrize("weight", ["own", *LOG_WEIGHTS])
def test_tables_that_end_in_noise_are_trained_to_their_end(prediction, weight):
    """At t = 1 the network sees noise alone and learns the mean of the data; every weight has its limit there."""
    table = make_schedule("ddpm", steps=20, zero_terminal_snr=True)
    denoiser = network_denoiser(prediction)
    denoiser.process = GaussianProcess(table)
    objective = make_denoising(DenoisingOptions(weight=weight, drop=0.0), table, 1.0, prediction)
    batch, noise = vector_batch(40), KeyedNoise(0, range(40))
    corrupted = objective.prepare(denoiser, batch, noise, 40)
    last = corrupted.t == 1
    assert int(last.sum()) == 2  # one in 20
    assert torch.equal(corrupted.x[last], noise.normal("data", 0, (3,))[last])
    losses = objective.score(denoiser, corrupted)
    assert bool(losses.per_sample.isfinite().all()) and bool(losses.half_logsnr.isfinite().all())
    if prediction in ("data", "v"):
        sign = -1 if prediction == "v" else 1
        torch.testing.assert_close(corrupted.target[last], sign * batch["x"][last])
    if weight == "own":
        assert bool((corrupted.weight == 1).all())
    elif weight in ("noise", "min-snr", "elbo", "sigmoid"):
        assert float(corrupted.weight[last].max()) < 1e-4  # they say that noise alone is worth nothing


def test_what_learns_nothing_from_noise_alone_is_not_shown_it():
    ended, usual = (make_schedule("ddpm", steps=20, zero_terminal_snr=zero) for zero in (True, False))
    noise = KeyedNoise(0, range(400))
    for table, prediction, options, most in (
        (ended, "v", DenoisingOptions(), 1.0),
        (ended, "v", DenoisingOptions(times="importance"), 1.0),
        (ended, "noise", DenoisingOptions(), ended.t_max),
        (ended, "v", DenoisingOptions(learn_variance=True), ended.t_max),
    ):
        objective = make_denoising(options, table, 1.0, prediction)
        times = objective.times.draw(noise, 400).t
        assert most - 0.01 < float(times.max()) <= most
        assert objective.without_memory().times.draw(noise, 400).t.max() > most - 0.01
    assert type(make_denoising(DenoisingOptions(), usual, 1.0, "v").times.law).__name__ == "UniformTimes"
    adaptive = make_denoising(DenoisingOptions(times="importance"), ended, 1.0, "v")
    assert adaptive.adaptive is not None
    adaptive.observe(torch.tensor([1.0, 0.5], dtype=torch.float64), torch.ones(2))
    assert int(adaptive.adaptive.seen.sum()) == 1  # the last step is in no bin


def test_the_bound_of_a_variance_has_the_levels_of_its_table():
    for schedule, given, wanted in (
        (make_schedule("ddpm", steps=40), None, 40),
        (make_schedule("ddpm", steps=40), 25, 25),
        (make_schedule("cosine"), None, 1000),
    ):
        bound = make_denoising(DenoisingOptions(learn_variance=True, levels=given), schedule).bound
        assert bound is not None and bound.levels == wanted

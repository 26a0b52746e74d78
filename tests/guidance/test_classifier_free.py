"""Classifier-free guidance against the class-conditional mixture, where all three posteriors are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.guidance.helpers import COND, LABELS, Counting
from tests.networks.helpers import randomise
from tests.oracles.continuous import ExactNetwork, normals, process_of, run, spec_mixture
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import make_grid, sync
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import ConditionSpec, DataSpec


def parts(name: str = "vp") -> tuple[Counting, Tensor, Tensor, Tensor]:
    """Denoiser, state, conditional and null mean at t = 0.5."""
    denoiser, x = spec_mixture(process_of(name), LABELS), normals(5, 2, seed=1)
    conditional = denoiser(x, 0.5, denoiser.embed(COND, 5)).mean
    return Counting(denoiser), x, conditional, denoiser(x, 0.5).mean


def test_the_conditional_mixture_is_the_mixture_of_its_components() -> None:
    denoiser, x, conditional, _ = parts()
    means = torch.tensor([[1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
    stds, shares = torch.tensor([0.5, 0.4], dtype=torch.float64), torch.tensor([0.4, 0.3], dtype=torch.float64)
    alone = MixtureDenoiser(shares, means, stds, denoiser.process)  # type: ignore[arg-type]
    rows = COND["label"] == 1
    torch.testing.assert_close(alone(x[rows], 0.5).mean, conditional[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_interpolates_between_null_and_condition(scale: float, batched: bool) -> None:
    denoiser, x, conditional, null = parts()
    guided = ClassifierFreeGuidance(denoiser, scale, batched=batched)
    for t in (0.5, torch.tensor(0.5).double(), torch.full((5,), 0.5).double(), torch.full((1, 2), 0.5).double()):
        denoiser.count = denoiser.rows = 0
        found = guided(x, t, guided.embed(COND, 5)).mean
        torch.testing.assert_close(found, null + scale * (conditional - null), rtol=1e-10, atol=1e-10)
        assert denoiser.rows == 5 * guided.calls(t)
        assert guided.calls(t) == (1 if scale == 1 else 2)
        assert denoiser.count == (1 if batched or scale == 1 else 2)


def test_one_batched_call_equals_two_calls() -> None:
    denoiser, x, _, _ = parts()
    grid = make_grid(denoiser.process.schedule, 10)  # type: ignore[union-attr]
    ends = [
        run(ClassifierFreeGuidance(denoiser, 2.0, batched=b, rescale=0.5), make_solver("dpm++2m"), grid, x, cond=COND).x
        for b in (True, False)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


def test_guidance_commutes_with_the_prediction_kind() -> None:
    process, t = process_of("rf"), 0.6
    exact = spec_mixture(process, LABELS)
    x = normals(5, 2, seed=1)
    wanted = ClassifierFreeGuidance(exact, 2.5)
    expected = wanted(x, t, wanted.embed(COND, 5)).mean

    for kind in ("data", "noise", "velocity", "v", "edm"):
        network = ExactNetwork(exact, kind)  # type: ignore[arg-type]
        guided = ClassifierFreeGuidance(network, 2.5)
        torch.testing.assert_close(guided(x, t, guided.embed(COND, 5)).mean, expected, rtol=1e-10, atol=1e-10)
        # the same on the raw outputs: a conversion is affine, so combining them is combining means
        raws = [network(x, t, exact.embed(c, 5)).raw for c in (COND, None)]
        combined = process.mean_from(kind, raws[1] + 2.5 * (raws[0] - raws[1]), x, t)  # type: ignore[arg-type]
        torch.testing.assert_close(combined, expected, rtol=1e-10, atol=1e-10)


def test_the_interval_is_half_open_in_sigma_over_alpha() -> None:
    denoiser, x, _, _ = parts("rf")  # sigma / alpha = t / (1 - t)
    guided = ClassifierFreeGuidance(denoiser, 3.0, interval=(0.25, 1.5))
    plain = ClassifierFreeGuidance(denoiser, 3.0)
    embedded = guided.embed(COND, 5)
    exact = denoiser.denoiser
    for t, active in (
        (0.1, False),
        (0.19, False),
        (0.21, True),
        (0.5, True),
        (0.59, True),
        (0.61, False),
        (0.9, False),
    ):
        assert guided.calls(t) == (2 if active else 1)
        expected = plain(x, t, embedded).mean if active else exact(x, t, exact.embed(COND, 5)).mean
        torch.testing.assert_close(guided(x, t, embedded).mean, expected, rtol=1e-12, atol=1e-12)
        column = torch.full((5,), t, dtype=torch.float64)
        torch.testing.assert_close(guided(x, column, embedded).mean, expected, rtol=1e-12, atol=1e-12)
    # times per item, some inside
    mixed = torch.tensor([0.1, 0.5, 0.9, 0.4, 0.55], dtype=torch.float64)
    found = guided(x, mixed, embedded).mean
    inside = torch.tensor([False, True, False, True, True])
    torch.testing.assert_close(found[inside], plain(x, mixed, embedded).mean[inside], rtol=1e-12, atol=1e-12)
    alone = exact(x, mixed, exact.embed(COND, 5)).mean
    torch.testing.assert_close(found[~inside], alone[~inside], rtol=1e-12, atol=1e-12)


def test_a_scale_per_sample_guides_each_by_its_own() -> None:
    denoiser, x, conditional, null = parts()
    scale = torch.tensor([0.0, 1.0, 2.0, 3.5, 1.0])
    guided = ClassifierFreeGuidance(denoiser, scale)
    expected = null + scale.double()[:, None] * (conditional - null)
    torch.testing.assert_close(guided(x, 0.5, guided.embed(COND, 5)).mean, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescale_gives_back_a_share_of_the_conditional_spread(rescale: float) -> None:
    denoiser, x, conditional, null = parts()
    guided = ClassifierFreeGuidance(denoiser, 4.0, rescale=rescale)
    found = guided(x, 0.5, guided.embed(COND, 5)).mean
    plain = null + 4.0 * (conditional - null)
    ratio = conditional.std(1, keepdim=True) / plain.std(1, keepdim=True)
    torch.testing.assert_close(found, plain * (rescale * ratio + 1 - rescale), rtol=1e-12, atol=1e-12)


def test_rescale_leaves_a_mean_without_spread_alone() -> None:
    """One feature has no spread to give back."""
    process, ends = process_of("rf"), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    denoiser = MixtureDenoiser(torch.ones(2), ends, torch.ones(2), process, labels=torch.tensor([0, 1]))
    cond, x = {"label": torch.tensor([0, 1])}, normals(2, 1)
    plain, rescaled = (ClassifierFreeGuidance(denoiser, 2.0, rescale=r) for r in (0.0, 0.7))
    embedded = plain.embed(cond, 2)
    assert torch.equal(rescaled(x, 0.5, embedded).mean, plain(x, 0.5, embedded).mean)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("scale", "interval", "factor"), [(1.0, None, 1), (2.0, None, 2), (2.0, (0.1, 2.0), None)])
def test_evaluations_counted_equal_evaluations_promised(
    scale: float, interval: tuple[float, float] | None, factor: int | None, batched: bool
) -> None:
    denoiser, x, _, _ = parts("rf")
    grid = make_grid(denoiser.process.schedule, 9)  # type: ignore[union-attr]
    guided = ClassifierFreeGuidance(denoiser, scale, interval=interval, batched=batched)
    for solver in ("ddim", "heun", "edm-heun", "dpm++2m"):
        denoiser.rows = 0
        rule = make_solver(solver)
        result = run(guided, rule, grid, x, cond=COND)
        asked = rule.plan(denoiser.process, grid)  # type: ignore[arg-type]
        assert result.nfe == denoiser.rows / 5
        if factor is not None:
            assert result.nfe == factor * asked.evaluations
        else:
            rho = grid[:-1] / (1 - grid[:-1])
            if solver in ("ddim", "dpm++2m"):
                assert result.nfe == 9 + int(((rho > 0.1) & (rho <= 2.0)).sum())


def test_guidance_of_frames_doubles_the_times_along_the_batch() -> None:
    denoiser, x, _, _ = parts("trig")
    grid = make_grid(denoiser.process.schedule, 6)  # type: ignore[union-attr]
    guided = ClassifierFreeGuidance(denoiser, 2.0)
    shared = run(guided, make_solver("ddim"), grid, x, cond=COND).x
    framed = run(guided, make_solver("ddim"), sync(grid, 2).expand(-1, 5, -1).contiguous(), x, cond=COND).x
    torch.testing.assert_close(framed, shared, rtol=1e-8, atol=1e-8)


def test_more_guidance_moves_samples_towards_the_class() -> None:
    denoiser = spec_mixture(process_of("vp"), LABELS)
    grid = make_grid(denoiser.process.schedule, 20)  # type: ignore[union-attr]
    cond = {"label": torch.zeros(200, dtype=torch.int64)}
    spreads = []
    for scale in (1.0, 3.0):
        guided = ClassifierFreeGuidance(denoiser, scale)
        noise = KeyedNoise(0, range(200))
        x = sample(guided, noise=noise, shape=(2,), solver=make_solver("dpm++2m"), grid=grid, cond=cond).x
        assert float(x[:, 0].mean()) < -0.8
        spreads.append(float(x[:, 0].mean()))
    assert spreads[1] < spreads[0] - 0.1


def test_wrong_guidance_is_refused() -> None:
    denoiser = spec_mixture(process_of("vp"), LABELS)
    for arguments, message in (
        ({"scale": -1.0}, "scale=-1"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": 2.0, "interval": (2.0, 1.0)}, "interval"),
        ({"scale": 2.0, "rescale": 1.5}, "rescale"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassifierFreeGuidance(denoiser, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guidance needs a condition"):
        ClassifierFreeGuidance(denoiser, 2.0).embed(None, 3)
    with pytest.raises(ValueError, match="guidance needs a condition"):
        ClassifierFreeGuidance(spec_mixture(process_of("vp")), 2.0).embed(None, 3)
    with pytest.raises(ValueError, match="takes no conditions"):
        ClassifierFreeGuidance(spec_mixture(process_of("vp")), 2.0).embed(COND, 5)
    with pytest.raises(ValueError, match="guidance around guidance asks the inner one about no condition"):
        ClassifierFreeGuidance(ClassifierFreeGuidance(denoiser, 2.0), 2.0).embed(COND, 5)
    guided = ClassifierFreeGuidance(denoiser, 2.0)
    with pytest.raises(ValueError, match="embed"):
        guided(normals(5, 2), 0.5, denoiser.embed(COND, 5))


def network_with_kept_condition() -> NetworkDenoiser:
    """A network with a caption, a pose that is never dropped, and a map."""
    cond = {
        "caption": ConditionSpec(kind="text", length=4),
        "pose": ConditionSpec(kind="vector", width=2, null="zero"),
        "depth": ConditionSpec(kind="map", width=1),
    }
    spec = DataSpec(kind="image", shape=(1, 4, 4), cond=cond)
    network = randomise(build_network(UNetOptions(channels=8, multipliers=(1,), blocks=1, heads=2), spec)).double()
    return NetworkDenoiser(network, process_of("rf"), "velocity", spec=spec)


def test_a_condition_that_is_never_dropped_stays_in_the_null() -> None:
    denoiser, x = network_with_kept_condition(), normals(3, 1, 4, 4, seed=1)
    pose, depth = normals(3, 2, seed=2), normals(3, 1, 4, 4, seed=3)
    cond = {"caption": torch.tensor([[97, 98, -1, -1]] * 3), "pose": pose, "depth": depth}
    guided = ClassifierFreeGuidance(denoiser, 2.5)
    conditional = denoiser(x, 0.5, denoiser.embed(cond, 3)).mean
    null = denoiser(x, 0.5, denoiser.embed({"pose": pose}, 3)).mean
    found = guided(x, 0.5, guided.embed(cond, 3)).mean
    torch.testing.assert_close(found, null + 2.5 * (conditional - null), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(null, denoiser(x, 0.5, denoiser.embed(None, 3)).mean)
    with pytest.raises(ValueError, match="guidance needs a condition"):
        guided.embed({"pose": pose}, 3)


def test_dropped_rows_are_not_guided() -> None:
    denoiser, x = network_with_kept_condition(), normals(3, 1, 4, 4, seed=1)
    cond = {"caption": torch.tensor([[97, 98, -1, -1]] * 3), "depth": normals(3, 1, 4, 4, seed=3)}
    drop = {name: torch.tensor([True, False, False]) for name in cond}
    guided = ClassifierFreeGuidance(denoiser, 2.5)
    found = guided(x, 0.5, guided.embed(cond, 3, drop)).mean
    null = denoiser(x, 0.5, denoiser.embed(None, 3)).mean
    torch.testing.assert_close(found[0], null[0], rtol=1e-10, atol=1e-10)
    whole = guided(x, 0.5, guided.embed(cond, 3)).mean
    torch.testing.assert_close(found[1:], whole[1:], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(whole[0], null[0])

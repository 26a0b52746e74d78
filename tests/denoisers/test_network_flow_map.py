"""A network as a flow map: the published forms are special cases, and it starts as the denoiser's DDIM steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import SCHEDULE_NAMES, normals, process_of
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.networks.build import build_network
from undiffuse.networks.options import DiTOptions, MLPOptions, NetworkOptions, UNetOptions
from undiffuse.spec import ConditionSpec, DataSpec

VECTOR = DataSpec(kind="vector", shape=(3,))
IMAGE = DataSpec(kind="image", shape=(1, 8, 8), classes=("a", "b"))
MAPPED = DataSpec(kind="image", shape=(1, 8, 8), cond={"edges": ConditionSpec(kind="map", width=1)})
NETWORKS: dict[str, tuple[NetworkOptions, DataSpec]] = {
    "mlp": (MLPOptions(width=16, depth=1), VECTOR),
    "unet": (UNetOptions(channels=8, multipliers=(1, 2), blocks=1), IMAGE),
    "unet, map": (UNetOptions(channels=8, multipliers=(1,), blocks=1, attention=()), MAPPED),
    "dit": (DiTOptions(width=16, depth=1, heads=2, patch=2), IMAGE),
}


def flow_map(schedule: str = "rf", prediction: str = "v", network: str = "mlp", stir: bool = True) -> NetworkFlowMap:
    options, spec = NETWORKS[network]
    denoiser = NetworkDenoiser(build_network(options, spec), process_of(schedule), prediction, spec=spec)  # type: ignore[arg-type]
    made = NetworkFlowMap(denoiser).double()
    if stir:
        generator = torch.Generator().manual_seed(1)
        for name, p in made.named_parameters():
            if stir or not name.startswith("jump"):
                p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
    return made.requires_grad_(False)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def state(made: NetworkFlowMap, n: int = 4) -> Tensor:
    assert made.spec is not None
    return normals(n, *made.spec.shape, seed=1)


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("prediction", ["data", "v", "velocity", "edm"])
def test_it_starts_as_the_ddim_steps_of_its_denoiser(schedule: str, prediction: str) -> None:
    made = flow_map(schedule, prediction)
    made.jump.second.weight.zero_()
    made.jump.second.bias.zero_()
    x, process = state(made), made.process
    for t, s in ((0.9, 0.3), (0.5, 0.01), (0.7, 0.0), (0.4, 0.4)):
        wanted = process.transition(x, made.denoiser(x, t), t, s)
        torch.testing.assert_close(made(x, t, s), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_any_network_reads_the_second_time(network: str) -> None:
    made = flow_map(network=network)
    x = state(made)
    same = made.mean(x, 0.8, 0.2)
    assert (made.mean(x, 0.8, 0.3) - same).abs().max() > 1e-4
    torch.testing.assert_close(made.mean(x, 0.8, times(0.2, 0.5, 0.2, 0.1))[[0, 2]], same[[0, 2]])
    fresh = flow_map(network=network, stir=False)
    assert not fresh.jump(times(0.1), times(0.5)).any()


def test_on_rf_with_velocity_the_output_is_the_average_velocity() -> None:
    made = flow_map("rf", "velocity")
    x, t, s = state(made), times(0.9, 0.5, 0.3, 0.7), times(0.1, 0.0, 0.3, 0.69999999)
    torch.testing.assert_close(made.average_velocity(x, t, s), made.output(x, t, s), rtol=1e-7, atol=1e-7)


def test_in_sigma_over_alpha_it_is_ctms_form() -> None:
    made = flow_map("ve", "edm")
    x, t, s = state(made), times(0.9, 0.5, 0.3, 0.7), times(0.1, 0.2, 0.05, 0.6)
    ratio = (made.process.schedule.sigma(s) / made.process.schedule.sigma(t))[:, None]
    torch.testing.assert_close(made(x, t, s), ratio * x + (1 - ratio) * made.mean(x, t, s), rtol=1e-12, atol=1e-12)


def test_on_trig_a_jump_to_0_is_trigflow() -> None:
    made = flow_map("trig", "v")
    x, t = state(made), times(0.9, 0.5, 0.3, 0.7)
    angle, zero = (t * math.pi / 2)[:, None], torch.zeros(4, dtype=torch.float64)
    wanted = angle.cos() * x - angle.sin() * made.output(x, t, zero)
    torch.testing.assert_close(made(x, t, 0.0), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_velocity_and_jump_agree_and_are_smooth_across_the_diagonal(schedule: str) -> None:
    made = flow_map(schedule, "v")
    x = state(made)
    t = times(0.95, 0.6, 0.4, 0.2)
    for span in (0.15, 1e-2, 1e-3):
        s = t - span
        torch.testing.assert_close(x - span * made.average_velocity(x, t, s), made(x, t, s), rtol=1e-9, atol=1e-9)
    # The rule from slopes and that from differences, just inside and outside of where they meet; they differ by span^2.
    inside, outside = (made._velocity_rule(t, t * (1 - 1e-4 * by)) for by in (0.999, 1.001))
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=1e-9)
    torch.testing.assert_close(
        made.average_velocity(x, t, t),
        made.process.velocity(x, made.denoiser(x, t, made._told(x, t, t, None)), t),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("network", ["mlp", "unet", "dit"])
def test_its_derivative_is_that_of_differences(network: str) -> None:
    made = flow_map("cosine", "v", network)
    x, t, s = state(made), times(0.9, 0.5, 0.3, 0.7), times(0.1, 0.0, 0.3, 0.5)
    along = normals(*x.shape, seed=5)
    u, slope = made.jvp(x, t, s, (along, torch.ones_like(t), torch.zeros_like(t)))
    h = 1e-5  # errors h^2 and 1e-16 / h
    ends = [made.average_velocity(x + sign * h * along, t + sign * h, s) for sign in (1, -1)]
    torch.testing.assert_close(u, made.average_velocity(x, t, s))
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-5)


def test_its_diagonal_is_a_denoiser_where_it_was_trained() -> None:
    made = flow_map("vp", "v")
    x = state(made)
    torch.testing.assert_close(made.diagonal()(x, 0.3).mean, made.mean(x, 0.3, 0.3))
    made.spans = "clean"
    with pytest.raises(ValueError, match=r"trained for jumps to clean data only.*solver=consistency"):
        made.diagonal()


def test_times_per_element_are_refused() -> None:
    made = flow_map()
    with pytest.raises(ValueError, match="one time per item"):
        made(state(made), torch.full((1, 3), 0.5), 0.1)


def test_an_unknown_span_and_a_foreign_network_are_refused() -> None:
    made = flow_map()
    with pytest.raises(ValueError, match="spans='all' is unknown"):
        NetworkFlowMap(made.denoiser, spans="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no Backbone"):
        NetworkFlowMap(NetworkDenoiser(torch.nn.Identity(), process_of("rf")))

"""`NetworkDenoiser`: what the backbone is shown, and how its output is read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.continuous import SCHEDULE_NAMES, normals, process_of
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions, UNetOptions
from undiffuse.spec import DataSpec


class Spy(nn.Module):
    """Keeps its inputs and answers with tanh."""

    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Any]] = []
        self.heads = heads

    def forward(self, x: Tensor, level: Tensor, cond: Any) -> Any:
        self.seen.append((x, level, cond))
        out = torch.tanh(x)
        return {"out": out, "side": out[:, 0]} if self.heads else out


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("data_std", [1.0, 0.5])
def test_the_backbone_sees_unit_variance_and_the_noise_level_alone(name: str, data_std: float) -> None:
    process = process_of(name)
    data, noise = data_std * normals(20000, 1, seed=1), normals(20000, 1, seed=2)
    for t in (0.02, 0.5, 0.97):
        spy = Spy()
        NetworkDenoiser(spy, process, data_std=data_std)(process.corrupt(data, t, noise), t)
        x, level, _ = spy.seen[0]
        assert float(x.var()) == pytest.approx(1.0, abs=0.05)  # 5 standard errors
        time = torch.tensor(t, dtype=torch.float64)
        rho = process.schedule.sigma(time) / process.schedule.alpha(time)
        assert level.shape == (20000,)
        assert float(level[0]) == pytest.approx(0.25 * math.log(float(rho)), rel=1e-10)


def test_noise_levels_are_finite_at_both_ends_and_per_element() -> None:
    spy = Spy()
    denoiser, x = NetworkDenoiser(spy, process_of("rf")), normals(3, 4)
    for t in (0.0, 1.0, torch.tensor([[0.0, 1.0, 0.5, 0.2]]).double()):
        post = denoiser(x, t)
        assert spy.seen[-1][1].isfinite().all()
        assert post.mean.isfinite().all()
    assert spy.seen[-1][1].shape == (3, 4)
    assert float(spy.seen[-1][1][0, 2]) == pytest.approx(0.0, abs=1e-12)


def test_further_heads_become_extras() -> None:
    post = NetworkDenoiser(Spy(heads=True), process_of("rf"), "data")(normals(3, 4), 0.5)
    assert set(post.extras) == {"side"}
    assert torch.equal(post.extras["side"], post.mean[:, 0])
    assert torch.equal(post.raw, post.mean)


def test_a_network_in_lower_precision_keeps_a_float32_state() -> None:
    linear = nn.Linear(4, 4).to(torch.bfloat16)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear
            self.dtypes: list[torch.dtype] = []

        def forward(self, x: Tensor, level: Tensor, cond: Any) -> Tensor:
            self.dtypes += [x.dtype, level.dtype]
            return self.linear(x)

    network = Half()
    post = NetworkDenoiser(network, process_of("vp"))(normals(3, 4).float(), 0.5)
    assert network.dtypes == [torch.bfloat16] * 2
    assert post.mean.dtype == torch.float32


@pytest.mark.parametrize("prediction", ["data", "v", "edm"])
def test_a_rescheduled_network_is_asked_the_same_question(prediction: str) -> None:
    """The backbone never sees the schedule, so it gets the same input at the same noise level."""
    spy = Spy()
    vp, rf = process_of("vp"), process_of("rf")
    denoiser = NetworkDenoiser(spy, vp, prediction)  # type: ignore[arg-type]
    half = torch.tensor(0.3, dtype=torch.float64)
    t, u = float(vp.schedule.time(half)), float(rf.schedule.time(half))
    z = normals(3, 4)
    a, b = (p.schedule.alpha(torch.tensor(v, dtype=torch.float64)) for p, v in ((vp, t), (rf, u)))
    one, two = denoiser(a * z, t), Reschedule(denoiser, rf)(b * z, u)
    torch.testing.assert_close(spy.seen[0][0], spy.seen[1][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(spy.seen[0][1], spy.seen[1][1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_equal_times_per_element_are_a_time_per_item(kind: str) -> None:
    """FVDM, check 2: also bit for bit on the networks' own embedding."""
    if kind == "mlp":
        spec = DataSpec(kind="vector", shape=(5,))
        network = build_network(MLPOptions(width=16, depth=2), spec)
    else:
        spec = DataSpec(kind="video", shape=(5, 1, 4, 4))
        network = build_network(UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2), spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    denoiser = NetworkDenoiser(network, process_of("trig"), spec=spec).eval()
    x = normals(2, *spec.shape).float()
    for t in (0.1, 0.8):
        shared = denoiser(x, t).mean
        for shape in ((), (2,), (1, 5), (2, 5)):
            torch.testing.assert_close(
                denoiser(x, torch.full(shape, t, dtype=torch.float64)).mean, shared, rtol=0, atol=1e-6
            )
        uneven = torch.full((2, 5), t, dtype=torch.float64)
        uneven[:, 2] = 0.4
        assert not torch.allclose(denoiser(x, uneven).mean, shared, atol=1e-4)


def test_conditions_of_a_network_without_conditioners_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no conditions"):
        NetworkDenoiser(Spy(), process_of("rf")).embed({"label": torch.zeros(2)}, 2)
    with pytest.raises(ValueError, match="prediction='x0'"):
        NetworkDenoiser(Spy(), process_of("rf"), "x0")  # type: ignore[arg-type]

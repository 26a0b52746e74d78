"""Five clients that strain the interfaces, each against a version written by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from tests.networks.helpers import described
from tests.oracles.continuous import ar1_video, normals, process_of, run, spec_mixture
from tests.oracles.masked import joint_denoiser, triple_joint
from undiffuse.denoisers.flow_map import FlowMap, GaussianFlowMap
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.networks.mlp import MLP
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid, pyramid
from undiffuse.process.times import Time, align, expand_time
from undiffuse.sampling.constraints import Constraint, Known
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver

# -- 1. 2M on a pyramid with frozen frames ------------------------------------------------------------


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_2m_on_a_pyramid_keeps_memory_per_frame(variant: str) -> None:
    process, frames = process_of("vp"), 4
    video = ar1_video(process, frames)
    x = normals(3, frames, seed=1)
    known = torch.tensor([[0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    grid = pyramid(6, frames, 2)
    grid[:, :, 0] = 0.0  # frame 0 is given; the rows before frame 1 starts drop out
    grid = grid[2:]
    mask = torch.tensor([[True, False, False, False]])
    solver = make_solver("dpm++2m", variant=variant, lower_final=False)
    out = run(video, solver, grid, x, constraints=[Known(known, mask)]).x

    state = x.clone()
    state[:, 0] = 0.5
    history: list[tuple[float, Tensor] | None] = [None] * frames
    schedule = process.schedule
    for t, s in itertools.pairwise(grid[:, 0]):
        mean = video(state, t[None]).mean
        before = state.clone()
        for f in range(frames):
            if s[f] == t[f]:
                continue
            if s[f] == 0:
                state[:, f] = mean[:, f]
                continue
            l_t, l_s = float(schedule.half_logsnr(t[f])), float(schedule.half_logsnr(s[f]))
            h = l_s - l_t
            decay = math.expm1(-h)
            alpha, sigma, sigma_t = (
                float(schedule.alpha(s[f])),
                float(schedule.sigma(s[f])),
                float(schedule.sigma(t[f])),
            )
            state[:, f] = sigma / sigma_t * before[:, f] - alpha * decay * mean[:, f]
            past = history[f]
            if past is not None:
                r = (l_t - past[0]) / h
                weight = -decay / 2 if variant == "midpoint" else decay / h + 1
                state[:, f] += alpha * weight * (mean[:, f] - past[1]) / r
            history[f] = (l_t, mean[:, f])
    torch.testing.assert_close(out, state, rtol=1e-11, atol=1e-11)
    assert torch.equal(out[:, 0], torch.full((3,), 0.5, dtype=torch.float64))


# -- 2. first-hitting with prefixes of different length -------------------------------------------------


def test_first_hitting_serves_prefixes_of_different_length_in_one_batch() -> None:
    table = triple_joint()
    denoiser = joint_denoiser(table)
    mask = denoiser.process.mask_id  # type: ignore[union-attr]
    prefixes = [[], [2], [1, 0], [0, 2, 1]]
    rows = 3000
    start = torch.tensor([p + [mask] * (3 - len(p)) for p in prefixes for _ in range(rows)])
    items = range(len(start))
    result = sample(denoiser, noise=KeyedNoise(1, items), shape=(3,), solver=make_solver("first-hitting"), start=start)
    assert result.nfe == 3  # the longest row decides
    assert bool((result.x[start != mask] == start[start != mask]).all())
    for p, prefix in enumerate(prefixes):
        drawn = result.x[p * rows : (p + 1) * rows]
        law = table[tuple(prefix)] if prefix else table
        law = (law / law.sum()).flatten()
        index = torch.zeros(rows, dtype=torch.int64)
        for token in drawn[:, len(prefix) :].T:
            index = 3 * index + token
        found = torch.bincount(index, minlength=law.numel()) / rows
        # Total variation of 3000 draws from at most 27 classes: mean below 0.04; 0.08 is 6 deviations above.
        assert 0.5 * float((found - law).abs().sum()) < 0.08
    # a row draws the same whatever stands beside it
    for row in (0, rows + 5, 2 * rows + 7):
        alone = sample(
            denoiser,
            noise=KeyedNoise(1, [row]),
            shape=(3,),
            solver=make_solver("first-hitting"),
            start=start[row : row + 1],
        )
        assert torch.equal(alone.x[0], result.x[row])


# -- 3. DDNM: a correction that keeps the network's own noise ---------------------------------------------


class Inpaint(Constraint):
    """DDNM's range-null correction for a mask: the mean becomes A^+ y + (I - A^+ A) mean, the noise stays."""

    def __init__(self, process: GaussianProcess, values: Tensor, mask: Tensor, eps: str) -> None:
        self.process, self.values, self.mask, self.eps = process, values, mask, eps

    def correct(self, post: object, x: Tensor, t: Time, s: Time) -> object:
        mean = torch.where(self.mask, self.values, post.mean)  # type: ignore[attr-defined]
        return self.process.with_mean(post, x, t, mean, eps=self.eps)  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", ["own", "new"])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("name", ["vp", "rf", "ve"])
def test_a_ddnm_correction_equals_the_hand_written_loop(name: str, eta: float, eps: str) -> None:
    process = process_of(name)
    denoiser, steps = spec_mixture(process), 8
    values, mask = torch.tensor([[0.4, 0.0]], dtype=torch.float64), torch.tensor([[True, False]])
    grid = make_grid(process.schedule, steps, start=process.schedule.t_max)
    x = normals(5, 2, seed=1) * float(process.schedule.sigma(grid[0]))
    z = {("step", k): normals(5, 2, seed=20 + k) for k in range(steps)}
    rule = make_solver("ddim", eta=eta)
    constraint = Inpaint(process, values, mask, eps)
    out = run(denoiser, rule, grid, x, noise=InjectedNoise(z), constraints=[constraint]).x  # type: ignore[arg-type]

    state = x
    for k, (t, s) in enumerate(itertools.pairwise(grid.tolist())):
        a, sg = (
            float(f(torch.tensor(t, dtype=torch.float64))) for f in (process.schedule.alpha, process.schedule.sigma)
        )
        a_s, sg_s = (
            float(f(torch.tensor(s, dtype=torch.float64))) for f in (process.schedule.alpha, process.schedule.sigma)
        )
        mean = denoiser(state, t).mean
        corrected = torch.where(mask, values, mean)
        noise = (state - a * (mean if eps == "own" else corrected)) / sg
        std = 0.0 if s == 0 else eta * sg_s * math.sqrt(1 - (sg_s / a_s * a / sg) ** 2)
        state = a_s * corrected + math.sqrt(max(sg_s**2 - std**2, 0.0)) * noise + std * z["step", k]
    torch.testing.assert_close(out, state, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(out[:, 0], torch.full((5,), 0.4, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", ["euler", "heun", "edm-heun", "dpm++2m", "sde-dpm++2m", "ddpm"])
def test_every_solver_serves_a_correction_that_keeps_the_noise(solver: str) -> None:
    process = process_of("vp")
    values, mask = torch.tensor([[0.4, 0.0]], dtype=torch.float64), torch.tensor([[True, False]])
    constraint = Inpaint(process, values, mask, "own")
    x = normals(5, 2, seed=1)
    out = run(
        spec_mixture(process), make_solver(solver), make_grid(process.schedule, 12), x, constraints=[constraint]
    ).x
    torch.testing.assert_close(out[:, 0], torch.full((5,), 0.4, dtype=torch.float64), rtol=0, atol=1e-12)
    # a "correction" to the same mean with the network's own noise changes nothing
    nothing = Inpaint(process, values, torch.zeros(1, 2, dtype=torch.bool), "own")
    grid = make_grid(process.schedule, 12)
    plain = run(spec_mixture(process), make_solver(solver), grid, x).x
    same = run(spec_mixture(process), make_solver(solver), grid, x, constraints=[nothing]).x
    torch.testing.assert_close(same, plain, rtol=1e-9, atol=1e-9)


# -- 4. guidance on embeddings with per-row drops -----------------------------------------------------------


def labelled_network() -> NetworkDenoiser:
    network = MLP(2, width=16, depth=2, conditions=described(3)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return NetworkDenoiser(network, process_of("trig"), "v").eval()


def test_dropped_rows_are_the_null_and_the_others_stay() -> None:
    denoiser, x = labelled_network(), normals(4, 2, seed=1)
    labels = {"label": torch.tensor([0, 1, 2, 1])}
    drop = {"label": torch.tensor([True, False, True, False])}
    full, null = denoiser.embed(labels, 4), denoiser.embed(None, 4)
    mixed = denoiser.embed(labels, 4, drop)
    conditional, unconditional, found = (denoiser(x, 0.4, e).mean for e in (full, null, mixed))
    assert float((conditional - unconditional).detach().abs().amax(dim=1).min()) > 1e-3
    rows = drop["label"]
    torch.testing.assert_close(found[rows], unconditional[rows], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found[~rows], conditional[~rows], rtol=1e-13, atol=1e-13)
    assert torch.equal(denoiser(x, 0.4).mean, unconditional)  # no embedding at all is the null too


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_that_drops_rows_of_its_embedding_leaves_them_unguided(batched: bool) -> None:
    denoiser, x = labelled_network(), normals(4, 2, seed=1)
    labels = {"label": torch.tensor([0, 1, 2, 1])}
    drop = {"label": torch.tensor([True, False, True, False])}
    guided = ClassifierFreeGuidance(denoiser, 2.5, batched=batched)
    found = guided(x, 0.4, guided.embed(labels, 4, drop)).mean
    conditional = denoiser(x, 0.4, denoiser.embed(labels, 4)).mean
    null = denoiser(x, 0.4).mean
    rows = drop["label"]
    torch.testing.assert_close(found[rows], null[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[~rows], (null + 2.5 * (conditional - null))[~rows], rtol=1e-12, atol=1e-12)


def test_a_client_can_mix_embeddings_itself() -> None:
    """Composing conditions acts on embeddings: take, cat and arithmetic on the vector, one call."""
    denoiser, x = labelled_network(), normals(2, 2, seed=1)
    one, two = (denoiser.embed({"label": torch.full((2,), k)}, 2) for k in (0, 1))
    assert one is not None
    assert two is not None
    both = type(one).cat([one.take(slice(0, 1)), two.take(torch.tensor([1]))])
    found = denoiser(x, 0.3, both).mean
    torch.testing.assert_close(found[0], denoiser(x, 0.3, one).mean[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found[1], denoiser(x, 0.3, two).mean[1], rtol=1e-13, atol=1e-13)
    assert one.vector is not None
    assert two.vector is not None
    middle = denoiser(x, 0.3, type(one)(vector=0.5 * (one.vector + two.vector))).mean
    assert middle.isfinite().all()


# -- 5. MeanFlow: jvp through a flow map --------------------------------------------------------------------


class TinyFlowMap(FlowMap):
    """A small network of (x, t, s)."""

    def __init__(self, process: GaussianProcess) -> None:
        super().__init__()
        self.process = process
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2)).double()

    def average_velocity(self, x: Tensor, t: Time, s: Time, cond: object = None) -> Tensor:
        times = [align(expand_time(u, x).to(x.dtype), x) for u in (t, s)]
        return self.net(torch.cat([x, *times], dim=1))


def meanflow_loss(flow_map: FlowMap, x0: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """|u - sg(v - (t - s) du/dt)|^2 with v the velocity of this sample (Geng et al. 2025)."""
    process = flow_map.process
    x, v = process.corrupt(x0, t, noise), process.target("velocity", x0, noise, t)
    u, rate = flow_map.jvp(x, t, s, (v, torch.ones_like(t), torch.zeros_like(s)))
    target = v - align(t - s, x) * rate
    return (u - target.detach()).square().flatten(1).sum(1)


@pytest.mark.parametrize("name", ["rf", "trig", "vp"])
def test_the_exact_flow_map_satisfies_the_meanflow_identity(name: str) -> None:
    process = process_of(name)
    root = normals(3, 3, seed=2)
    mean, cov = normals(3, seed=3), root @ root.T / 3 + 0.1 * torch.eye(3, dtype=torch.float64)
    flow_map = GaussianFlowMap(mean, cov, process)
    x = normals(6, 3, seed=1)
    t = torch.tensor([0.9, 0.8, 0.5, 0.3, 0.95, 0.2], dtype=torch.float64)
    s = torch.tensor([0.1, 0.7, 0.45, 0.05, 0.01, 0.1], dtype=torch.float64)
    velocity = flow_map.average_velocity(x, t, t)
    u, rate = flow_map.jvp(x, t, s, (velocity, torch.ones_like(t), torch.zeros_like(s)))
    torch.testing.assert_close(u, velocity - (t - s)[:, None] * rate, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x - (t - s)[:, None] * u, flow_map(x, t, s), rtol=1e-10, atol=1e-10)


def test_the_meanflow_loss_of_a_network_has_a_finite_gradient() -> None:
    flow_map = TinyFlowMap(process_of("rf"))
    x0, noise = normals(16, 2, seed=1), normals(16, 2, seed=2)
    t = torch.linspace(0.2, 1.0, 16, dtype=torch.float64)
    s = t * torch.linspace(0.0, 1.0, 16, dtype=torch.float64)  # the last pair lies on the diagonal
    loss = meanflow_loss(flow_map, x0, noise, t, s).mean()
    loss.backward()
    gradients = [p.grad for p in flow_map.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(float(g.abs().max()) > 1e-3 for g in gradients if g is not None)
    # the jvp agrees with central differences along (v, 1, 0)
    process = flow_map.process
    x, v = process.corrupt(x0, t, noise), process.target("velocity", x0, noise, t)
    _, rate = flow_map.jvp(x, t, s, (v, torch.ones_like(t), torch.zeros_like(s)))
    d = 1e-5
    up, down = (flow_map.average_velocity(x + k * v, t + k, s) for k in (d, -d))
    torch.testing.assert_close(rate, (up - down) / (2 * d), rtol=1e-6, atol=1e-8)


def test_gradient_steps_on_the_meanflow_loss_lower_it() -> None:
    flow_map = TinyFlowMap(process_of("rf"))
    optimizer = torch.optim.Adam(flow_map.parameters(), 1e-2)
    noise = KeyedNoise(0, range(64))
    losses = []
    for step in range(60):
        x0 = 0.3 * noise.normal("data", step, (2,), torch.float64) + 1.0
        times = noise.uniform("time", step, (2,)).sort(dim=1, descending=True).values
        loss = meanflow_loss(
            flow_map, x0, noise.normal("step", step, (2,), torch.float64), times[:, 0], times[:, 1]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])

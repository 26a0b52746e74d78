"""The sampling loop never waits for the device: nothing in it reads a number back, or copies one there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.waiting import META, NoWaiting, WaitingError
from undiffuse.denoisers import NetworkDenoiser
from undiffuse.models import Model
from undiffuse.networks import MLPOptions, TransformerOptions, build_network
from undiffuse.noise import KeyedNoise
from undiffuse.process import CategoricalProcess, GaussianProcess, make_schedule
from undiffuse.process.options import CategoricalOptions
from undiffuse.sampling import loop
from undiffuse.sampling.registry import SOLVERS
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser
from undiffuse.training.options import MaskedELBOOptions
from undiffuse.training.recipe import Recipe

OF_TOKENS = ("ancestral", "first-hitting", "token-budget", "left-to-right")
OF_FLOW_MAPS = ("flow-map", "consistency")
ADAPTIVE = ("dpm-adaptive-12", "dpm-adaptive-23", "rk45")  # they read their errors, once per attempt
SPEC = DataSpec(kind="vector", shape=(3,), classes=("a", "b"))


@pytest.fixture(scope="module")
def vectors() -> Model:
    network = build_network(MLPOptions(width=8, depth=1, self_condition=True), SPEC, variance=True)
    return Model(NetworkDenoiser(network, GaussianProcess(make_schedule("cosine")), "v", spec=SPEC), SPEC)


@pytest.fixture(scope="module")
def tokens() -> Model:
    spec = DataSpec(kind="tokens", shape=(6,), vocabulary=tuple("abcd"))
    network = TransformerOptions(width=8, depth=1, heads=2)
    recipe = Recipe(model=network, process=CategoricalOptions(), objective=MaskedELBOOptions())
    return Model(build_denoiser(recipe, spec), spec)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run the loop inside `NoWaiting`; the check of the result, after it, has nothing to look at."""
    walked: list[int] = []
    walk = loop._walk

    def watch(*arguments: Any) -> Any:
        with NoWaiting(arguments[3].device.type):
            states = walk(*arguments)
        walked.append(len(states))
        return states

    monkeypatch.setattr(loop, "_walk", watch)
    monkeypatch.setattr(loop, "check_result", lambda *_: None)
    return walked


@pytest.mark.parametrize(
    ("solver", "guidance"),
    [(name, 2.0) for name in SOLVERS if name not in OF_TOKENS + OF_FLOW_MAPS + ADAPTIVE]
    + [(name, 1.0) for name in ("dpm++2m", "heun", "ddpm", "unipc-3", "pc-langevin")],
)
def test_solvers_of_continuous_data_do_not_wait(vectors: Model, watched: list[int], solver: str, guidance: float):
    interval = (0.1, 10.0) if guidance != 1 else None
    options = {"updates": 2} if solver == "annealed-langevin" else {}
    vectors.to(META).sample_result(
        4,
        solver=solver,
        steps=5,
        cond={"label": [0, 1, 0, 1]},
        guidance=guidance,
        guidance_interval=interval,
        solver_options=options,
    )
    assert watched


def test_ancestral_sampling_does_not_wait(tokens: Model, watched: list[int]):
    copy.deepcopy(tokens).to(META).sample_result(4, solver="ancestral", steps=5)
    assert watched


def test_first_hitting_sampling_does_not_wait(tokens: Model, watched: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CategoricalProcess, "check_tokens", lambda *_: None)  # it looks at tokens on the CPU alone
    tokens.sample_result(4, solver="first-hitting", steps=5)  # the plan looks at the tokens, before the loop
    assert watched


def test_waiting_would_be_noticed():
    x, y = torch.zeros(3, device=META), torch.zeros(3)
    for wait in (
        lambda: x.sum().item(),
        lambda: x.cpu(),
        lambda: bool(x[0] > 0),
        lambda: x[x > 0],
        lambda: torch.equal(x, x),
        lambda: torch.tensor([1, 2], device=META),
        lambda: y.to(META),
        lambda: x[torch.tensor([0, 1])],
    ):
        with NoWaiting(), pytest.raises(WaitingError):
            wait()
    with NoWaiting():
        y.to(META, non_blocking=True)
        torch.where(x > 0, x, 1.0) + torch.full((3,), 2.0, device=META)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "heun", "ancestral"])
def test_no_synchronisation_on_a_gpu(vectors: Model, tokens: Model, monkeypatch: pytest.MonkeyPatch, solver: str):
    walk = loop._walk

    def watch(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return walk(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_walk", watch)
    model = tokens if solver in OF_TOKENS else vectors
    model.to("cuda").sample_result(4, solver=solver, steps=5)
    assert KeyedNoise(0, range(2), "cuda").items.device.type == "cuda"

"""The loss of a batch is the same in parts and on several processes, for every objective over a flow map."""

from __future__ import annotations

import pytest
import torch

from tests.distillation.tiny import mlp_denoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.consistency import Consistency
from undiffuse.distillation.ctm import CTM
from undiffuse.distillation.dmd import DMD
from undiffuse.distillation.meanflow import MeanFlow
from undiffuse.distillation.objective import FlowMapObjective
from undiffuse.distillation.options import (
    ConsistencyOptions,
    CTMOptions,
    DMDOptions,
    FlowMapOptions,
    MeanFlowOptions,
    ReflowOptions,
    SCMOptions,
    ShortcutOptions,
)
from undiffuse.distillation.progressive import Progressive
from undiffuse.distillation.reflow import Reflow
from undiffuse.distillation.scm import SCM
from undiffuse.distillation.shares import choose_rows
from undiffuse.distillation.shortcut import Shortcut
from undiffuse.noise import KeyedNoise
from undiffuse.training.objectives import Corrupted
from undiffuse.training.share import Share, ShareNoise

B = 16


def student() -> NetworkFlowMap:
    held = NetworkFlowMap(mlp_denoiser("v", labels=True))
    torch.nn.init.normal_(held.jump.second.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return held


def make(name: str) -> FlowMapObjective:
    held, teacher = student(), mlp_denoiser("v", labels=True, seed=2)
    made: dict[str, FlowMapObjective] = {
        "progressive": Progressive(held, first_steps=8, rounds=3, steps=9, teacher=teacher, drop=0.2),
        "consistency": Consistency(held, ConsistencyOptions(), steps=9, teacher=teacher),
        "consistency-training": Consistency(held, ConsistencyOptions(plan="original"), steps=9),
        "scm": SCM(SCMOptions(), steps=9, teacher=teacher),
        "meanflow": MeanFlow(MeanFlowOptions(), teacher=teacher),
        "meanflow-training": MeanFlow(MeanFlowOptions(guidance=2.0, kappa=0.5, power=0.5)),
        "shortcut": Shortcut(held, ShortcutOptions(finest=8), teacher=teacher),
        "ctm": CTM(held, CTMOptions(), teacher=teacher),
        "dmd": DMD(DMDOptions(jumps=2, updates=2), teacher=teacher, fake=mlp_denoiser("v", labels=True, seed=3)),
        "reflow": Reflow(ReflowOptions(teacher_steps=3, reuse=4), teacher=teacher),
    }
    return made[name]


NAMES = (
    *("progressive", "consistency", "consistency-training", "scm", "meanflow"),
    *("meanflow-training", "shortcut", "ctm", "dmd", "reflow"),
)


def test_every_objective_is_here() -> None:
    kinds = {option.kind for option in FlowMapOptions.__subclasses__()}  # type: ignore[attr-defined]
    assert kinds == {name.removesuffix("-training") for name in NAMES}


def batch(rows: range | list[int]) -> dict:
    x = torch.randn(2 * B, 2, generator=torch.Generator().manual_seed(0))
    label = torch.arange(2 * B) % 3
    return {"x": x[list(rows)], "cond": {"label": label[list(rows)]}}


def found(objective: FlowMapObjective, held: NetworkFlowMap, parts: list[Corrupted]) -> tuple[torch.Tensor, ...]:
    """Return the loss of each row, and the gradient of their mean."""
    held.zero_grad()
    losses = []
    for part in parts:
        losses.append(objective.score(held, part).per_sample)
        (losses[-1].mean() / len(parts)).backward()
    gradient = torch.cat([p.grad.flatten() for p in held.parameters() if p.grad is not None])
    return torch.cat(losses).detach(), gradient


@pytest.mark.parametrize("name", NAMES)
def test_parts_and_processes_change_nothing(name: str) -> None:
    """Whole, in 4 parts, and as two processes have it, which prepare two batches at once; to rounding of float32."""
    objective, held = make(name), student()
    whole = objective.prepare(held, batch(range(2 * B)), KeyedNoise(0, range(2 * B)), B)
    second = whole.rows(B, 2 * B)
    wanted = found(objective, held, [second])
    in_parts = found(objective, held, [second.rows(4 * k, 4 * k + 4) for k in range(4)])
    ours = []
    for rank in range(2):
        rows = [k for k in range(2 * B) if k % B // (B // 2) == rank]
        noise = ShareNoise(0, torch.tensor(rows), batch_size=B, share=Share(rank, 2))
        ours.append(objective.prepare(held, batch(rows), noise, B // 2).rows(B // 2, B))
    shared = found(objective, held, ours)
    assert float(wanted[1].norm()) > 1e-4
    for other in (in_parts, shared):
        for a, b in zip(wanted, other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * float(a.abs().max()))


@pytest.mark.parametrize(
    ("share", "rows", "count"), [(0.25, 16, 4), (0.25, 3, 1), (0.0, 8, 0), (1.0, 8, 8), (0.3, 10, 3)]
)
def test_so_many_rows_are_chosen_in_every_batch(share: float, rows: int, count: int) -> None:
    chosen = choose_rows(share, KeyedNoise(0, range(3 * rows)), 3 * rows, rows).view(3, rows)
    assert chosen.sum(1).tolist() == [count] * 3 and torch.equal(chosen[0], chosen[2])


def test_batches_of_one_row_have_their_share_together() -> None:
    """A validation measures rows one by one, and must see both losses."""
    chosen = choose_rows(0.25, KeyedNoise(0, range(128)), 128, 1)
    assert int(chosen.sum()) == 32 and int(chosen[:64].sum()) == 16

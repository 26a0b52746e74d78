"""The objective of VQ-Diffusion: bound and auxiliary loss against closed forms, levels by importance, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.masked import all_states, joint_denoiser, sequence_law, total_variation, triple_joint
from undiffuse.config import resolve
from undiffuse.data import TensorDataset
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.elbo import token_bounds
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.models import Model, load
from undiffuse.models.conditions import fit_conditions
from undiffuse.networks import TransformerOptions, build_network
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import uniform_grid
from undiffuse.process.keep import LinearKeep, VQDiffusionKeep
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.build import make_objective
from undiffuse.training.categorical import CategoricalELBO, MaskedELBO
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.objectives import Corrupted
from undiffuse.training.options import CategoricalELBOOptions, TrainOptions
from undiffuse.training.recipe import Recipe
from undiffuse.training.run import train
from undiffuse.training.trainer import Trainer
from undiffuse.training.validation import Validation

KINDS = ("absorbing", "uniform", "mask-replace")


class Answering(Denoiser):
    """Answers with a parameter, whatever it is asked."""

    def __init__(self, logits: Tensor, process: CategoricalProcess) -> None:
        super().__init__()
        self.process, self.logits = process, torch.nn.Parameter(logits)

    def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
        return CategoricalPosterior(self.logits.expand(*x.shape, -1))


def rows(x: Tensor, t: Tensor, x0: Tensor) -> Corrupted:
    return Corrupted(x, t, x0, torch.empty(len(x), 0))


def exact_bound(denoiser: JointDenoiser, levels: int) -> Tensor:
    """The bound of every sequence in nats, with all noisy states weighed by their probabilities: (K^L,)."""
    process, length = denoiser.process, denoiser.length
    clean, noisy = all_states(process.classes, length), all_states(process.states, length)
    one_hot = torch.nn.functional.one_hot(clean, process.classes).double()
    objective = CategoricalELBO(levels)
    total = torch.zeros(len(clean), dtype=torch.float64)
    for i in range(1, levels + 1):
        law = sequence_law(process.marginal(one_hot, i / levels))
        here = (law > 0).nonzero()  # rows of (clean, noisy)
        t = torch.full((len(here),), i / levels, dtype=torch.float64)
        loss = objective.score(denoiser, rows(noisy[here[:, 1]], t, clean[here[:, 0]])).per_sample
        total.index_add_(0, here[:, 0], law[here[:, 0], here[:, 1]] * loss / levels * length)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [1, 3, 16])
def test_the_bound_of_one_token_is_its_log_probability_at_any_number_of_levels(kind: Any, levels: int) -> None:
    table = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    found = exact_bound(joint_denoiser(table, kind), levels)
    torch.testing.assert_close(found, -table.log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "gaps"),
    [
        ("absorbing", (0.1042, 0.0266, 0.0067)),
        ("mask-replace", (0.1103, 0.0285, 0.0072)),
        ("uniform", (0.1538, 0.0424, 0.0108)),
    ],
)
def test_the_mean_bound_of_the_joint_exceeds_its_entropy_by_the_published_gaps(
    kind: Any, gaps: tuple[float, ...]
) -> None:
    denoiser = joint_denoiser(triple_joint(), kind)
    for levels, gap in zip((4, 16, 64), gaps, strict=True):
        mean = float((denoiser.table.flatten() * exact_bound(denoiser, levels)).sum())
        assert mean - denoiser.entropy() == pytest.approx(gap, abs=5e-5)


def test_the_auxiliary_loss_is_the_cross_entropy_of_every_token() -> None:
    process = CategoricalProcess("mask-replace", 4)
    denoiser = Answering(torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), process)
    x0, x_t = torch.tensor([[0, 1, 2, 3]] * 2), torch.tensor([[0, 4, 1, 4], [4, 4, 4, 3]])
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    plain = CategoricalELBO(8).score(denoiser, rows(x_t, t, x0)).per_sample
    nll = -denoiser.logits.log_softmax(-1).mean().expand(2)  # every class occurs once in each row
    for adaptive, factor in ((False, torch.ones(2)), (True, 2 - t)):
        found = CategoricalELBO(8, aux=0.5, adaptive_aux=adaptive).score(denoiser, rows(x_t, t, x0)).per_sample
        torch.testing.assert_close(found - plain, 8 * 0.5 * factor * nll, rtol=1e-12, atol=0)


def test_masked_tokens_and_others_have_their_weights_but_at_the_last_level() -> None:
    process = CategoricalProcess("mask-replace", 4)
    denoiser = Answering(torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), process)
    x0, x_t = torch.tensor([[0, 1, 2, 3]] * 2), torch.tensor([[0, 4, 1, 4], [4, 4, 4, 3]])
    t = torch.tensor([1 / 8, 1.0], dtype=torch.float64)

    def loss(**weights: float) -> Tensor:
        return CategoricalELBO(8, aux=0.5, **weights).score(denoiser, rows(x_t, t, x0)).per_sample

    masked, others = loss(open_weight=0.0), loss(masked_weight=0.0)
    torch.testing.assert_close(masked[0], loss()[0], rtol=0, atol=0)
    torch.testing.assert_close(masked[1] + others[1], loss()[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        loss(masked_weight=3.0, open_weight=0.5)[1], 3 * masked[1] + others[1] / 2, rtol=1e-12, atol=0
    )
    assert bool((masked[1] > 0) & (others[1] > 0))


@pytest.mark.parametrize("keep", [LinearKeep(), VQDiffusionKeep()])
def test_the_gradient_is_that_of_finite_differences_and_zeros_are_no_trouble(keep: Any) -> None:
    process = CategoricalProcess("mask-replace", 4, keep)
    x0, x_t = torch.tensor([[0, 1, 2, 3]] * 3), torch.tensor([[0, 4, 1, 4], [4, 4, 4, 3], [0, 1, 2, 2]])
    t = torch.tensor([0.25, 1.0, 0.125], dtype=torch.float64)
    objective = CategoricalELBO(8, aux=0.1, adaptive_aux=True)

    def loss(logits: Tensor) -> Tensor:
        denoiser = Answering(torch.zeros(4), process)
        del denoiser.logits
        denoiser.logits = logits  # type: ignore[assignment]
        return objective.score(denoiser, rows(x_t, t, x0)).per_sample

    logits = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits,), eps=1e-6, atol=1e-6, rtol=1e-5)
    bound = CategoricalELBO(8)  # without the cross-entropy, which is infinite for what is ruled out
    denoiser = Answering(torch.tensor([0.3, 0.1, 0.2, -torch.inf]), process)
    value = bound.score(denoiser, rows(x_t, t, x0)).per_sample
    value.sum().backward()
    assert denoiser.logits.grad is not None
    assert bool(value.isfinite().all()) and bool(denoiser.logits.grad.isfinite().all())


@pytest.mark.parametrize("times", ["importance", "running"])
def test_levels_by_importance_leave_the_expected_loss_as_it_is(times: Any) -> None:
    """Midpoints of a grid of uniforms give the mean without noise, but for a cell per edge of the quantile function."""
    levels, draws = 50, 100_000
    losses = torch.linspace(0.1, 3, levels, dtype=torch.float64) ** 2
    objective = CategoricalELBO(levels, times=times)
    t = torch.arange(1, levels + 1, dtype=torch.float64) / levels
    assert objective.adaptive is not None
    for _ in range(20):
        objective.observe(t, losses * objective.adaptive.importance_at(t - 0.5 / levels))
    u = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    drawn, importance = objective.adaptive(u)
    index = (drawn * levels).long().clamp(max=levels - 1)
    found = losses[index] * importance
    assert float(found.mean()) == pytest.approx(float(losses.mean()), rel=2 * levels * float(found.max()) / draws)
    # drawn in proportion to the loss, so that the product hardly varies: that is the point
    assert float(found.std() / found.mean()) < 0.05 < float(losses.std() / losses.mean())
    counts = index.bincount(minlength=levels).double() / draws
    sizes = losses if times == "importance" else torch.cat((losses[1:2], losses[1:])) + 1e-4
    torch.testing.assert_close(counts, 0.999 * sizes / sizes.sum() + 0.001 / levels, rtol=0, atol=2 / draws)


@pytest.mark.parametrize("bad", [-1, 4, 5])
def test_masks_and_unknown_ids_are_no_data(bad: int) -> None:
    denoiser = Answering(torch.zeros(4), CategoricalProcess("mask-replace", 4))
    tokens = torch.tensor([[0, bad, 1]])
    for objective in (CategoricalELBO(8), MaskedELBO()):
        if isinstance(objective, MaskedELBO):
            denoiser.process = CategoricalProcess("absorbing", 4)
        with pytest.raises(ValueError, match=r"mask|states 0 to"):
            objective.prepare(denoiser, {"x": tokens}, KeyedNoise(0, [0]), 1)
    with pytest.raises(ValueError, match=r"mask|states 0 to"):
        token_bounds(denoiser, tokens, KeyedNoise(0, [0]))


CONDITIONS = {
    "caption": ConditionSpec(kind="text", length=8),
    "pose": ConditionSpec(kind="vector", width=2),
}


def test_labels_texts_and_vectors_condition_the_tokens_of_a_grid(tmp_path: Path) -> None:
    """Training moves every conditioner, guidance mixes two answers, and other conditions give other answers."""
    spec = DataSpec(
        kind="tokens", shape=(6,), grid=(2, 3), vocabulary=tuple("abcd"), classes=("x", "y"), cond=CONDITIONS
    )
    process = CategoricalProcess("mask-replace", 4)
    options = TransformerOptions(width=16, depth=1, heads=2, time_dependent=True)
    network = build_network(options, spec, states=process.states)
    denoiser = CategoricalDenoiser(network, process, spec=spec, time_dependent=True)
    before = {name: part.clone() for name, part in network.conditioners.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    cond = {
        "caption": torch.randint(97, 123, (40, 8), generator=generator),
        "pose": torch.randn(40, 2, generator=generator),
    }
    data = TensorDataset(
        data=torch.randint(0, 4, (40, 6), generator=generator),
        spec=spec,
        labels=torch.randint(0, 2, (40,), generator=generator),
        cond=cond,
    )
    objective = make_objective(CategoricalELBOOptions(levels=10, aux=5e-4, drop=0.2), denoiser)
    chosen = TrainOptions(steps=6, batch_size=16, warmup=1, lr=1e-2, checkpoint_every=100, log_every=10)
    Trainer(denoiser, objective, data, chosen, tmp_path).run()
    after = network.conditioners.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still, still
    model = Model(denoiser, spec)
    words: dict[str, Any] = {"label": "y", "caption": "a cat", "pose": (0.5, -1.0)}
    result = model.sample_result(3, cond=words, guidance=3.0, steps=4)
    assert result.nfe == 8 and bool((result.x < 4).all())
    x = torch.full((1, 6), 4)
    answers = [
        denoiser(x, 1.0, denoiser.embed(dict(fit_conditions(changed, 1, spec, model.device)), 1)).logits
        for changed in (
            words,
            *({**words, name: other} for name, other in (("label", "x"), ("caption", "dog"), ("pose", (2, 2)))),
        )
    ]
    assert all(not torch.equal(answers[0], answer) for answer in answers[1:])


def test_a_start_at_a_time_is_denoised_from_there() -> None:
    """Noising data to t and sampling down keeps their law, and at small t most tokens: TV of 5000 rows, .029 for an
    exact sampler; a chain of 16 steps from t = 1 has an error of its own of .023."""
    denoiser = joint_denoiser(triple_joint(), "mask-replace")
    model = Model(denoiser, DataSpec(kind="tokens", shape=(3,), vocabulary=tuple("abc")))
    n, noise = 5000, KeyedNoise(5, range(5000))
    data = all_states(3, 3)[
        torch.multinomial(denoiser.table.flatten(), n, True, generator=torch.Generator().manual_seed(0))
    ]
    same = []
    for t in (0.1, 0.7):
        start = denoiser.process.corrupt(data, t, noise.uniform("step", 0, (3,)))
        x = model.sample(n, start=start, grid=uniform_grid(16, start=t), batch_size=n, seed=1)
        law = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / n
        assert total_variation(law, denoiser.table.flatten()) < 0.06
        same.append(float((x == data).double().mean()))
    assert same[0] > 0.9 > same[1] > 0.3


def test_pictures_are_trained_as_tokens_and_sampled_through_the_codec(tmp_path: Path) -> None:
    overrides = ["codec.halvings=1", "codec.codes=16", "codec.width=8", "codec.steps=2", "codec.channels=4"]
    overrides += ["model.width=16", "model.depth=1", "model.heads=2", "data.limit=40", "objective.times=importance"]
    options: dict[str, Any] = {"steps": 2, "batch_size": 8, "preview_every": 0, "validate_every": 0}
    run = train("digits", "vq-diffusion", out=tmp_path, overrides=overrides, **options)
    words: dict[str, Any] = {"cond": {"label": 3}, "guidance": 2.0, "truncation": 0.9, "steps": 2}
    x = run.model.sample(2, **words)
    assert x.shape == (2, 1, 8, 8) and run.model.state_spec.grid == (4, 4)
    assert torch.equal(load(tmp_path).sample(2, **words), x)
    assert run.model.sample(2, purity=1.0, tokens_per_call=3, cond={"label": 3}).shape == (2, 1, 8, 8)


def token_trainer(folder: Path, times: Any, **options: Any) -> Trainer:
    x = torch.randint(0, 4, (40, 6), generator=torch.Generator().manual_seed(0))
    spec = DataSpec(kind="tokens", shape=(6,), vocabulary=tuple("abcd"))
    process = CategoricalProcess("mask-replace", 4)
    network = build_network(
        TransformerOptions(width=16, depth=1, heads=2, time_dependent=True), spec, states=process.states
    )
    denoiser = CategoricalDenoiser(network, process, spec=spec, time_dependent=True)
    objective = make_objective(CategoricalELBOOptions(levels=3, aux=5e-4, adaptive_aux=True, times=times), denoiser)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = TrainOptions(
        **{"steps": 30, "batch_size": 16, "log_every": 10, "checkpoint_every": 10, "warmup": 5} | options
    )
    return Trainer(denoiser, objective, TensorDataset(data=x, spec=spec), chosen, folder)


@pytest.mark.parametrize("times", ["importance", "running"])
def test_a_run_with_levels_by_importance_resumes_bit_for_bit(times: str, tmp_path: Path) -> None:
    token_trainer(tmp_path / "whole", times).run()
    first = token_trainer(tmp_path / "parts", times)
    first.resume()
    while first.state.step < 17:
        first.step()
        first._after_step(first.clock())
    first.save()
    token_trainer(tmp_path / "parts", times).run()
    whole, parts = (
        read_checkpoint(checkpoints_in(tmp_path / name / "checkpoints")[-1]).tensors for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    seen = next(whole[name] for name in whole if name.endswith("adaptive.seen"))
    assert int(seen.sum()) == 30 * 16


def test_held_out_losses_do_not_depend_on_what_was_seen() -> None:
    adaptive = CategoricalELBO(10, aux=0.1, times="running", masked_weight=2.0)
    fresh = Validation(adaptive, TensorDataset(data=torch.zeros(4, 3), spec=DataSpec(kind="vector", shape=(3,))))
    assert isinstance(fresh.objective, CategoricalELBO) and not fresh.objective.adapts
    assert (fresh.objective.levels, fresh.objective.aux, fresh.objective.masked_weight) == (10, 0.1, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aux": -1.0}, "must not be negative"),
        ({"adaptive_aux": True}, "leaves out"),
        ({"levels": 0}, "at least 1"),
        ({"masked_weight": 0.0, "open_weight": 0.0}, "both 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoricalELBOOptions(**options)


def test_a_recipe_says_all_of_it() -> None:
    layer = [
        "model=transformer",
        "model.time_dependent=true",
        "process=categorical",
        "process.corruption=mask-replace",
        "process.keep=vq-diffusion",
        "objective=categorical-elbo",
        "objective.levels=100",
        "objective.aux=5e-4",
        "objective.times=importance",
    ]
    recipe = resolve(Recipe, layer)
    assert recipe.objective == CategoricalELBOOptions(levels=100, aux=5e-4, times="importance")

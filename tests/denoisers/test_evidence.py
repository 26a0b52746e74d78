"""The two meanings of a categorical answer: the conversion between them, and what happens without it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.oracles.masked import ancestral_law, data_law, total_variation, triple_joint
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.evidence import EvidenceFree, add_evidence, remove_evidence
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.keep import LinearKeep, RootCosineKeep
from undiffuse.process.registry import make_schedule

KINDS: tuple[CategoricalKind, ...] = ("absorbing", "uniform", "mask-replace")
UNIFORM_CHAIN = {8: 0.0747, 16: 0.0369, 32: 0.0181, 64: 0.0089, 128: 0.0044}  # total variation, vq-ddm spec


def plug_in_step(process: CategoricalProcess, x_t: Tensor, r: Tensor, t: float, s: float) -> Tensor:
    """q(x_t | x_s) sum_j q(x_s | j) r(j), normalised, by the forward matrices alone."""
    reached = process.transition_matrix(t, s)[:, x_t].movedim(0, -1)  # (B, L, states)
    joint = (r @ process.transition_matrix(s, 0.0)[: process.classes]) * reached
    return joint / joint.sum(-1, keepdim=True)


class WithoutEvidence(Denoiser):
    """The optimum of the plug-in bound: the exact posterior without each token's own evidence."""

    def __init__(self, exact: JointDenoiser) -> None:
        super().__init__()
        self.exact, self.process, self.length = exact, exact.process, exact.length

    def posterior(self, x, t, cond) -> CategoricalPosterior:
        return CategoricalPosterior(remove_evidence(self.process, self.exact(x, t).logits, x, t))


def answers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [LinearKeep(), RootCosineKeep()])
def test_the_marginal_step_of_the_converted_answer_is_the_plug_in_step(kind, keep):
    """For any answer, whatever the two times: to 1e-10 (the spec's bound; rounding is at 1e-15)."""
    process = CategoricalProcess(kind, 4, keep, mask_share=0.7)
    x_t = torch.arange(process.states)[None]
    r = answers(1, process.states, 4)
    for t, s in itertools.combinations([1.0, 0.999, 0.7, 0.31, 0.02, 0.001, 0.0], 2):
        possible = x_t if t < 1 or process.mask_id is None else x_t[:, -1:]  # at t = 1 masks are all that is sure to be
        logits = r[:, -possible.shape[1] :]
        probs = CategoricalPosterior(add_evidence(process, logits, possible, t)).probs
        expected = plug_in_step(process, possible, logits.softmax(-1), t, s)
        assert (process.reverse(possible, probs, t, s) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["uniform", "mask-replace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back_again_also_with_times_per_token(kind, dtype):
    process = CategoricalProcess(kind, 3)
    x_t = torch.tensor([[0, 1, 2], [2, 2, 0]])
    logits = answers(2, 3, 3).to(dtype).log_softmax(-1)
    for t in (0.4, torch.tensor([0.1, 0.9]), torch.tensor([[0.1, 0.5, 0.9]])):
        back = remove_evidence(process, add_evidence(process, logits, x_t, t), x_t, t)
        assert back.dtype == dtype
        torch.testing.assert_close(back, logits, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_a_token_that_is_certain_stays_so_whatever_the_answer():
    masked = CategoricalProcess("absorbing", 3)
    impossible = torch.tensor([[[-torch.inf, 0.0, 0.0], [0.0, 1.0, 2.0]]], dtype=torch.float64)
    found = add_evidence(masked, impossible, torch.tensor([[0, 3]]), 0.5)
    assert torch.equal(found[0, 0].exp(), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found[0, 1], impossible[0, 1].log_softmax(-1))
    clean = add_evidence(CategoricalProcess("uniform", 3), impossible, torch.tensor([[0, 2]]), 0.0)
    assert torch.equal(clean.exp(), torch.eye(3, dtype=torch.float64)[[0, 2]][None])


def test_the_exact_answer_without_evidence_is_where_the_plug_in_bound_is_least():
    """The gradient of E KL(q(x_s | x_t, x_0) || plug-in(r)) by log r vanishes there, for all states and both kinds."""
    table = triple_joint()
    for kind in ("uniform", "mask-replace"):
        exact = JointDenoiser(table, CategoricalProcess(kind, 3))
        process, t, s = exact.process, 0.6, 0.45
        x_t = torch.tensor(list(itertools.product(range(process.states), repeat=3)))
        post = exact(x_t, t)
        r = remove_evidence(process, post.logits, x_t, t).requires_grad_()
        true = process.reverse(
            x_t, post.probs, t, s
        )  # the average of q(x_s | x_t, x_0) is what the bound compares with
        answer = plug_in_step(process, x_t, r.softmax(-1), t, s)
        loss = -(true * answer.clamp(min=1e-300).log()).sum()  # states that cannot be reached have no logarithm
        (slope,) = torch.autograd.grad(loss, r)
        assert slope.abs().max() < 1e-13


@pytest.mark.parametrize(("steps", "expected"), UNIFORM_CHAIN.items())
def test_the_uniform_chain_converges_at_the_rate_of_the_table(steps, expected):
    exact = JointDenoiser(triple_joint(), CategoricalProcess("uniform", 3))
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    law = data_law(ancestral_law(exact, grid), exact)
    assert total_variation(law, exact.table) == pytest.approx(expected, abs=5e-5)
    converted = EvidenceFree(WithoutEvidence(exact))
    converted.length = 3
    assert total_variation(data_law(ancestral_law(converted, grid), exact), law) < 1e-12


@pytest.mark.parametrize(
    ("kind", "marginal", "plug_in"), [("uniform", 0.0044, 0.262), ("mask-replace", 0.0029, 0.0777), ("absorbing", 0, 0)]
)
def test_the_posterior_in_the_wrong_step_does_not_converge(kind, marginal, plug_in):
    """Counting the evidence twice is what the plug-in step does with p(x_0 | x_t): total variations of 128 steps."""
    exact = JointDenoiser(triple_joint(), CategoricalProcess(kind, 3))
    grid = torch.linspace(1, 0, 129, dtype=torch.float64)
    wrong = EvidenceFree(exact)
    wrong.length = 3
    right, off = (data_law(ancestral_law(denoiser, grid), exact) for denoiser in (exact, wrong))
    if kind == "absorbing":
        assert total_variation(right, off) < 1e-12
        return
    assert total_variation(right, exact.table) == pytest.approx(marginal, abs=5e-5)
    assert total_variation(off, exact.table) == pytest.approx(plug_in, abs=5e-4)


class Table(torch.nn.Module):
    """A network that answers one thing."""

    time_dependent = True

    def forward(self, x, level, cond):
        return answers(1, 1, 3).expand(*x.shape, 3)


def test_a_network_marked_evidence_free_answers_the_posterior():
    process = CategoricalProcess("uniform", 3)
    plain = CategoricalDenoiser(Table(), process, time_dependent=True)
    marked = CategoricalDenoiser(Table(), process, time_dependent=True, evidence_free=True)
    x, t = torch.tensor([[0, 1, 2]]), torch.tensor([0.3])
    torch.testing.assert_close(marked(x, t).logits, EvidenceFree(plain)(x, t).logits)
    assert not torch.allclose(marked(x, t).probs, plain(x, t).probs)
    with pytest.raises(ValueError, match="twice"):
        EvidenceFree(marked)
    gaussian = GaussianDenoiser(torch.zeros(1), torch.eye(1), GaussianProcess(make_schedule("vp")))
    with pytest.raises(ValueError, match="Gaussian"):
        EvidenceFree(gaussian)

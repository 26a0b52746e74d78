"""The network denoiser of tokens and guidance on logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.networks.helpers import described
from undiffuse.denoisers.categorical import CategoricalDenoiser, guide_logits
from undiffuse.networks.transformer import Transformer
from undiffuse.process.categorical import CategoricalProcess


class Recorder(nn.Module):
    """A backbone that keeps what it was called with and answers with fixed numbers."""

    def __init__(self, out: Tensor, **heads: Tensor) -> None:
        super().__init__()
        self.out = out
        self.heads = heads
        self.calls: list[Tensor | None] = []

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: object) -> Tensor | dict[str, Tensor]:
        self.calls.append(noise_level)
        return {"out": self.out, **self.heads} if self.heads else self.out


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_absorbing_posterior_never_masks_and_carries_open_tokens_over():
    denoiser = CategoricalDenoiser(Recorder(logits(1, 3, 5)), CategoricalProcess("absorbing", 4))
    probs = denoiser(torch.tensor([[4, 2, 4]]), 0.5).probs
    assert probs.shape == (1, 3, 4)
    assert probs[0, 1].tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(probs[0, 0], logits(1, 3, 5)[0, 0, :4].softmax(-1))


def test_other_kinds_keep_the_network_s_opinion_of_every_token():
    denoiser = CategoricalDenoiser(Recorder(logits(1, 3, 4)), CategoricalProcess("uniform", 4), time_dependent=True)
    assert torch.equal(denoiser(torch.tensor([[0, 2, 1]]), 0.5).logits, logits(1, 3, 4))
    wrong = CategoricalDenoiser(Recorder(logits(1, 3, 5)), CategoricalProcess("mask-replace", 4), time_dependent=True)
    with pytest.raises(ValueError, match="expected 4"):
        wrong(torch.tensor([[0, 2, 1]]), 0.5)


def test_the_network_is_told_the_time_only_where_it_depends_on_it():
    x = torch.tensor([[0, 4, 1], [4, 4, 4]])
    free = Recorder(logits(2, 3, 4))
    CategoricalDenoiser(free, CategoricalProcess("absorbing", 4))(x, 0.5)
    assert free.calls == [None]
    timed = Recorder(logits(2, 3, 4))
    denoiser = CategoricalDenoiser(timed, CategoricalProcess("absorbing", 4), time_dependent=True)
    denoiser(x, 0.5)
    denoiser(x, torch.tensor([[0.1, 0.2, 0.3]]))
    assert [level.tolist() for level in timed.calls if level is not None] == [
        [0.5, 0.5],
        [pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.1, 0.2, 0.3])],
    ]


def test_half_precision_logits_become_float32_and_further_heads_pass():
    backbone = Recorder(logits(1, 2, 4).bfloat16(), value=torch.ones(1))
    post = CategoricalDenoiser(backbone, CategoricalProcess("absorbing", 4))(torch.tensor([[4, 1]]), 0.5)
    assert post.logits.dtype == torch.float32
    assert torch.equal(post.extras["value"], torch.ones(1))


def test_a_transformer_fits_and_its_conditions_are_embedded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(4, 5, width=16, depth=1, heads=2, conditions=described(3))
    denoiser = CategoricalDenoiser(network, CategoricalProcess("absorbing", 4))
    cond = denoiser.embed({"label": torch.tensor([0, 2])}, 2)
    assert denoiser(torch.full((2, 6), 4), 1.0, cond).probs.shape == (2, 6, 4)
    with pytest.raises(ValueError, match="time_dependent=False"):
        CategoricalDenoiser(network, CategoricalProcess("absorbing", 4), time_dependent=True)


def test_ids_outside_of_the_states_are_refused():
    denoiser = CategoricalDenoiser(Recorder(logits(1, 1, 4)), CategoricalProcess("absorbing", 4))
    with pytest.raises(ValueError, match="states 0 to 4"):
        denoiser(torch.tensor([[5]]), 0.5)


# -- guidance -------------------------------------------------------------------------------------


def test_guidance_at_scale_one_is_the_condition_and_at_zero_none():
    c, u = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    torch.testing.assert_close(guide_logits(c, u, 1.0), c.log_softmax(-1), rtol=0, atol=1e-14)
    torch.testing.assert_close(guide_logits(c, u, 0.0), u.log_softmax(-1), rtol=0, atol=1e-14)


def test_guidance_tilts_by_the_power_of_the_ratio():
    c, u = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    tilted = u.softmax(-1) * (c.softmax(-1) / u.softmax(-1)) ** 2.5
    expected = tilted / tilted.sum(-1, keepdim=True)
    torch.testing.assert_close(guide_logits(c, u, 2.5).exp(), expected, rtol=1e-12, atol=0)
    rows = guide_logits(c, u, torch.tensor([2.5, 1.0])[:, None, None]).exp()
    torch.testing.assert_close(rows[0], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(rows[1], c.softmax(-1)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_carried_over_tokens_stay_carried_over(scale):
    process = CategoricalProcess("absorbing", 4)
    x = torch.tensor([[4, 2, 4]])
    guided = guide_logits(process.subs(logits(1, 3, 4), x), process.subs(logits(1, 3, 4, seed=1), x), scale)
    assert guided[0, 1].tolist() == [-math.inf, -math.inf, 0, -math.inf]
    assert bool(guided[0, [0, 2]].isfinite().all())


def test_classes_that_one_answer_rules_out_leave_no_nan():
    c = torch.tensor([[0.0, -math.inf, 0.0]])
    u = torch.tensor([[0.0, 0.0, -math.inf]])
    probs = guide_logits(c, u, 3.0).exp()
    assert bool(probs.isfinite().all()) and probs[0, 1] == 0 and probs[0, 2] > 0
    assert float(probs.sum()) == pytest.approx(1.0)

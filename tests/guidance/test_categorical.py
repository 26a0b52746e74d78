"""Truncation, sharpening and guidance of token laws, against closed forms and the rule written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.masked import joint_denoiser, seeded_normal, triple_joint
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import PURITY, CategoricalPosterior
from undiffuse.guidance.categorical import Sharpen, Truncate
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.networks.embedded import Embedded
from undiffuse.papers.token_groups import grouped_law
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule

MASK = 3


class Fixed(Denoiser):
    """Answers the same at every token."""

    def __init__(self, probs: list[float], kind: str = "absorbing") -> None:
        super().__init__()
        self.process = CategoricalProcess(kind, len(probs))  # type: ignore[arg-type]
        self.logits = torch.tensor(probs, dtype=torch.float64).log()

    def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
        return CategoricalPosterior(self.logits.expand(*x.shape, -1))


class Classes(Denoiser):
    """Two equally likely joints with a label; without one, their mixture. Exact, by Bayes' rule over the joints."""

    def __init__(self) -> None:
        super().__init__()
        other = (1.5 * seeded_normal(3, 3, 3).flip(0)).flatten().softmax(0).view(3, 3, 3)
        self.parts = torch.nn.ModuleList(joint_denoiser(table) for table in (triple_joint(), other))
        self.process = self.parts[0].process
        self.mixture = joint_denoiser((triple_joint() + other) / 2)

    def embed(self, cond: dict[str, Tensor] | None, batch: int, drop: object = None) -> Embedded:
        label = torch.full((batch,), -1) if not cond else cond["label"]
        return Embedded(vector=label[:, None])

    def posterior(self, x: Tensor, t: object, cond: Embedded | None) -> CategoricalPosterior:
        assert cond is not None and cond.vector is not None
        logits = torch.stack([part(x, 1.0).logits for part in (*self.parts, self.mixture)])
        return CategoricalPosterior(logits[cond.vector[:, 0], torch.arange(len(x))])


@pytest.mark.parametrize(
    ("rate", "kept"), [(0.01, [0]), (0.39, [0]), (0.41, [0, 2]), (0.7, [0, 2]), (0.71, [0, 2, 3]), (0.99, [0, 1, 2, 3])]
)
def test_truncation_keeps_classes_while_those_before_add_up_to_less(rate: float, kept: list[int]) -> None:
    """Exclusive sums are 0, .4, .7, .9; classes 0, 2, 3, 1 in falling order."""
    probs = [0.4, 0.1, 0.3, 0.2]
    law = Truncate(Fixed(probs), rate)(torch.full((2, 5), 4), 0.5).probs
    expected = torch.zeros(4, dtype=torch.float64)
    expected[kept] = torch.tensor(probs, dtype=torch.float64)[kept]
    torch.testing.assert_close(law, (expected / expected.sum()).expand(2, 5, 4), rtol=0, atol=1e-15)


def test_truncation_to_one_is_the_same_answer_bit_for_bit_and_ties_keep_the_first() -> None:
    x = torch.full((1, 2), 4)
    logits = torch.randn(1, 2, 4000, generator=torch.Generator().manual_seed(0)) * 5
    assert Truncate(Fixed([0.25] * 4), 1.0).reshape(logits) is logits
    assert Truncate(Fixed([0.25] * 4), 0.2)(x, 0.5).probs[0, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert Truncate(Fixed([0.25] * 4), 0.3)(x, 0.5).probs[0, 0].tolist() == [0.5, 0.5, 0.0, 0.0]


def test_kept_mass_reaches_the_rate_and_constants_do_not_matter() -> None:
    wrapper = Truncate(Fixed([0.25] * 4), 0.86)
    logits = torch.randn(3, 50, 200, generator=torch.Generator().manual_seed(0)) * 2
    kept = wrapper.reshape(logits).isfinite()
    mass = torch.where(kept, logits.double().softmax(-1), 0.0).sum(-1)
    smallest = torch.where(kept, logits.double().softmax(-1), 1.0).amin(-1)
    assert bool((mass >= 0.86).all()) and bool((mass - smallest < 0.86).all())
    assert torch.equal(wrapper.reshape(logits + 0.25).isfinite(), kept)  # of a power of 2, so exact in float32


def test_sharpening_is_a_power_by_purity_of_masks_alone() -> None:
    denoiser, x = joint_denoiser(triple_joint()), torch.tensor([[3, 3, 3], [1, 3, 3]])
    plain = denoiser(x, 1.0).probs
    for strength in (0.0, 0.5, 2.0):
        post = Sharpen(denoiser, strength)(x, 1.0)
        masks = x == MASK
        purest = torch.where(masks, plain.amax(-1), 0.0)
        purity = purest / purest.amax(1, keepdim=True)
        power = plain ** (1 + strength * purity)[..., None]
        expected = torch.where(masks[..., None], power / power.sum(-1, keepdim=True), plain)
        torch.testing.assert_close(post.probs, expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(post.extras[PURITY][masks], purity[masks], rtol=0, atol=1e-15)
    assert torch.equal(Sharpen(denoiser, 0.0)(x, 1.0).logits, denoiser(x, 1.0).logits)


def test_purity_is_that_of_the_truncated_answer() -> None:
    """.5 .3 .2 truncated to .6 is .625 .375: the order of wrappers is part of the method."""
    post = Sharpen(Truncate(Fixed([0.5, 0.3, 0.2]), 0.6), 1.0)(torch.full((1, 1), 3), 0.5)
    power = torch.tensor([0.625, 0.375, 0.0], dtype=torch.float64) ** 2
    torch.testing.assert_close(post.probs[0, 0], power / power.sum(), rtol=0, atol=1e-15)


def test_replaced_tokens_are_not_sharpened() -> None:
    x = torch.tensor([[0, 3, 2]])
    fixed = Fixed([0.5, 0.3, 0.2], "mask-replace")
    sharp, plain = Sharpen(fixed, 1.0)(x, 0.5).probs, fixed(x, 0.5).probs
    assert torch.equal(sharp[:, [0, 2]], plain[:, [0, 2]]) and not torch.allclose(sharp[:, 1], plain[:, 1])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_bayes_rule_on_probabilities(scale: float) -> None:
    """p0 (p_y / p0)^scale, normalised: the null at 0, the class alone at 1. A constant in the logits does nothing."""
    denoiser, label = Classes(), torch.tensor([0, 1, 1])
    x = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 3, 3]])
    guided = ClassifierFreeGuidance(denoiser, scale)
    found = guided(x, 1.0, guided.embed({"label": label}, 3)).probs
    null = denoiser.mixture(x, 1.0).probs
    asked = torch.stack([denoiser.parts[int(c)](x[i : i + 1], 1.0).probs[0] for i, c in enumerate(label)])
    law = torch.where(asked > 0, null * (asked / null.clamp(min=1e-300)) ** scale, 0.0)
    expected = law / law.sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_the_tables_of_sharpening_are_reproduced_exactly() -> None:
    """One token per call at places in proportion to purity: TV, entropy and mean log-likelihood of the spec's joint."""
    table = triple_joint()
    published = (
        (0.0, 0, 2.751, -2.751),
        (0.5, 0.139, 2.386, -2.443),
        (1.0, 0.244, 2.068, -2.236),
        (2.0, 0.386, 1.585, -1.985),
    )
    for strength, distance, entropy, likelihood in published:
        law = grouped_law(Sharpen(joint_denoiser(table), strength), (1, 1, 1), "purity")
        assert 0.5 * float((law - table).abs().sum()) == pytest.approx(distance, abs=6e-4)
        assert float(-torch.xlogy(law, law).sum()) == pytest.approx(entropy, abs=6e-4)
        assert float((law * table.log()).sum()) == pytest.approx(likelihood, abs=6e-4)


def test_what_means_nothing_is_refused() -> None:
    gaussian = GaussianDenoiser(torch.zeros(2), torch.eye(2), GaussianProcess(make_schedule("rf")))
    with pytest.raises(ValueError, match="continuous"):
        Truncate(gaussian, 0.5)
    for rate in (0.0, 1.5, -0.2, float("nan")):
        with pytest.raises(ValueError, match=r"outside of \(0, 1\]"):
            Truncate(Fixed([0.5, 0.5]), rate)
    with pytest.raises(ValueError, match="must not be negative"):
        Sharpen(Fixed([0.5, 0.5]), -1.0)
    with pytest.raises(ValueError, match="uniform noise"):
        Sharpen(Fixed([0.5, 0.5], "uniform"), 1.0)

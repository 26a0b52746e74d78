"""Networks that read from left to right: causality, memory, exact likelihood, samples, and the way through a run."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from tests.networks.helpers import described
from undiffuse.denoisers.base import Wrapper
from undiffuse.denoisers.causal import CausalDenoiser
from undiffuse.denoisers.elbo import elbo
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.errors import PlanError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.temperature import Temperature
from undiffuse.networks.transformer import Transformer
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.sampling.constraints import Known
from undiffuse.sampling.first_hitting import FirstHitting
from undiffuse.sampling.left_to_right import LeftToRight
from undiffuse.sampling.loop import SampleResult, sample

CLASSES, LENGTH = 3, 6


def network(grid: tuple[int, ...] = (), classes: int = CLASSES, **options: object) -> CausalDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Transformer(
            classes,
            classes + 1,
            width=16,
            depth=2,
            heads=2,
            neighbours=1,
            causal=True,
            grid=grid,
            conditions=described(2),
            **options,  # type: ignore[arg-type]
        )
        for parameter in backbone.parameters():  # the last layer starts at 0
            parameter.data = torch.randn_like(parameter) * 0.3
    return CausalDenoiser(backbone.double().eval().requires_grad_(False), CategoricalProcess("absorbing", classes))


def write(denoiser: object, items: range = range(8), start: Tensor | None = None, **options: object) -> SampleResult:
    noise, shape = KeyedNoise(0, items), (LENGTH,)
    return sample(denoiser, noise=noise, shape=shape, solver=LeftToRight(), start=start, **options)  # type: ignore[arg-type]


class Counting(Wrapper):
    """Counts the tokens that are read, and asks a second time where told to, as an interval of guidance would."""

    def __init__(self, denoiser: CausalDenoiser, twice_below: float = 0.0) -> None:
        super().__init__(denoiser)
        self.tokens, self.twice_below = 0, twice_below

    def posterior(self, x: Tensor, t: object, cond: object) -> AnyPosterior:
        self.tokens += x.shape[1]
        if t < self.twice_below:  # type: ignore[operator]
            self.denoiser(x, t, cond)  # type: ignore[arg-type]
        return self.denoiser(x, t, cond)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(), (2, 3)])
def test_an_answer_depends_on_what_is_before_it_only(grid):
    denoiser, x = network(grid), torch.tensor([[0, 1, 2, 2, 1, 0]])
    plain = denoiser(x, 0.0).logits
    for place in range(LENGTH):
        other = x.clone()
        other[0, place] = (x[0, place] + 1) % CLASSES
        changed = (denoiser(other, 0.0).logits != plain).any(-1)[0]
        assert not changed[: place + 1].any() and changed[place + 1 :].all()


def test_the_likelihood_sums_to_one_and_is_the_bound_of_the_model():
    denoiser = network()
    every = torch.tensor(list(itertools.product(range(CLASSES), repeat=LENGTH)))
    nats = torch.nn.functional.cross_entropy(denoiser(every, 0.0).logits.mT, every, reduction="none")
    assert float((-nats.sum(1)).exp().sum()) == pytest.approx(1, abs=1e-10)
    found = elbo(denoiser, every[:5], KeyedNoise(0, range(5)))
    assert found.mean == pytest.approx(float(nats[:5].mean()))
    with pytest.raises(ValueError, match="ids 0 to 2"):
        elbo(denoiser, torch.full((1, LENGTH), CLASSES), KeyedNoise(0, range(1)))


def test_samples_follow_the_likelihood():
    """20,000 samples of two tokens; chi-square at false-alarm rate 1e-4."""
    denoiser, count = network(), 20_000
    noise = KeyedNoise(0, range(count))
    x = sample(denoiser, noise=noise, shape=(2,), solver=LeftToRight()).x
    every = torch.tensor(list(itertools.product(range(CLASSES), repeat=2)))
    law = denoiser(every, 0.0).logits.log_softmax(-1).gather(-1, every[..., None]).sum((1, 2)).exp()
    found = torch.bincount(x @ torch.tensor([3, 1]), minlength=9)
    assert chisquare(found.numpy(), (law / law.sum() * count).detach().numpy()).pvalue > 1e-4


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("grid", [(), (2, 3)])
def test_memory_changes_nothing_and_each_token_is_read_once(grid, wrapped):
    """The same uniforms through answers without memory give the same tokens, also guided and sharpened."""
    plain = network(grid)
    cond = {"label": torch.tensor([0, 1] * 4)}
    counted = Counting(plain)
    denoiser = Temperature(ClassifierFreeGuidance(counted, 3.0, batched=False), 0.7) if wrapped else counted
    result = write(denoiser, cond=cond)
    assert result.nfe == LENGTH * (2 if wrapped else 1)
    assert counted.tokens == LENGTH * (2 if wrapped else 1)  # the mask before the text, and all tokens but the last
    uniform = KeyedNoise(0, range(8)).uniform("class", 0, (LENGTH,))
    expected = torch.full((8, LENGTH), CLASSES)
    embedded = denoiser.embed(cond, 8)
    for place in range(LENGTH):
        cumulative = denoiser(expected, 0.5, embedded).logits[:, place].softmax(-1).cumsum(-1)
        expected[:, place] = torch.searchsorted(cumulative, uniform[:, place, None].contiguous(), right=True)[:, 0]
    assert torch.equal(result.x, expected)
    if wrapped:
        together = Temperature(ClassifierFreeGuidance(plain, 3.0), 0.7)
        assert torch.equal(write(together, cond=cond).x, expected)


def test_columns_of_a_table_keep_their_own_values():
    """Two columns with 3 and 2 values, whose ids follow each other; also where each token is read once."""
    plain = network(classes=5)
    denoiser = CausalDenoiser(plain.backbone, CategoricalProcess("absorbing", 5, blocks=(3, 2)))
    x = sample(denoiser, noise=KeyedNoise(0, range(200)), shape=(2,), solver=LeftToRight()).x
    assert set(x[:, 0].tolist()) == {0, 1, 2} and set(x[:, 1].tolist()) == {3, 4}
    probs = denoiser(x, 0.0).probs
    torch.testing.assert_close(probs[:, 0, :3].sum(-1), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(probs[:, 1, 3:].sum(-1), torch.ones(200, dtype=torch.float64))


def test_given_tokens_are_read_at_once_and_kept():
    start = torch.tensor([[0, 1, 3, 3, 3, 3], [2, 1, 0, 0, 3, 3], [0, 1, 2, 0, 1, 2]])
    counted = Counting(network())
    result = write(counted, range(3), start)
    assert torch.equal(result.x[start != CLASSES], start[start != CLASSES]) and bool((result.x < CLASSES).all())
    assert result.nfe == 4 and counted.tokens == 6  # mask and two tokens that all rows have, then one at a time
    assert torch.equal(write(network(), range(3), constraints=[Known(start, start != CLASSES)]).x, result.x)
    for row in range(3):
        assert torch.equal(write(network(), range(row, row + 1), start[row : row + 1]).x[0], result.x[row])
    assert write(network(), range(1), start[2:]).nfe == 0


def test_what_does_not_fit_is_refused():
    denoiser = network()
    with pytest.raises(PlanError, match="does not fill gaps"):
        write(denoiser, range(1), torch.tensor([[0, 3, 1, 3, 3, 3]]))
    with pytest.raises(PlanError, match="left-to-right"):
        sample(denoiser, noise=KeyedNoise(0, range(1)), shape=(LENGTH,), solver=FirstHitting())
    with pytest.raises(PlanError, match="guidance_interval"):
        write(Counting(denoiser, twice_below=0.5))
    with pytest.raises(ValueError, match="absorbing"):
        CausalDenoiser(torch.nn.Identity(), CategoricalProcess("uniform", 3))

"""Negative conditions and autoguidance, alone and around each other, against exact posteriors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.guidance.helpers import COND, LABELS, Counting, times_of_every_shape, weak_mixture
from tests.oracles.continuous import normals, process_of, run, spec_mixture
from tests.sampling.test_self_conditioning import Recording, draw
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import guide_logits
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.guidance.autoguidance import Autoguidance
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.thresholding import Thresholding
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.keep import make_keep
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import DataSpec

NEGATIVE = {"label": torch.tensor([1, 0, 0, 0, 1])}


def means(denoiser: Denoiser, x: torch.Tensor, t: Any, cond: Any = None) -> torch.Tensor:
    return denoiser(x, t, denoiser.embed(cond, len(x))).mean


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("negative", [NEGATIVE, {"label": torch.tensor([1])}])
def test_a_negative_condition_takes_the_place_of_the_null(negative: dict[str, torch.Tensor], batched: bool) -> None:
    exact, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    guided = ClassifierFreeGuidance(exact, 2.5, negative=negative, batched=batched)
    rows = {"label": negative["label"].expand(5)}
    for t in times_of_every_shape(0.5, 5):
        asked, away = means(exact, x, 0.5, COND), means(exact, x, 0.5, rows)
        torch.testing.assert_close(means(guided, x, t, COND), away + 2.5 * (asked - away), rtol=1e-10, atol=1e-10)


def test_a_negative_condition_works_on_unconditional_samples() -> None:
    exact, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    asked, away = means(exact, x, 0.5), means(exact, x, 0.5, NEGATIVE)
    guided = ClassifierFreeGuidance(exact, 1.7, negative=NEGATIVE)
    torch.testing.assert_close(means(guided, x, 0.5), away + 1.7 * (asked - away), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_autoguidance_moves_away_from_the_weaker_model(scale: float) -> None:
    process = process_of("vp")
    strong, weak = Counting(spec_mixture(process, LABELS)), Counting(weak_mixture(process))
    guided, x = Autoguidance(strong, weak, scale), normals(5, 2, seed=1)
    for cond in (COND, None):
        good, bad = means(strong, x, 0.5, cond), means(weak, x, 0.5, cond)
        for t in times_of_every_shape(0.5, 5):
            strong.count = weak.count = 0
            torch.testing.assert_close(means(guided, x, t, cond), bad + scale * (good - bad), rtol=1e-9, atol=1e-10)
            assert (strong.count, weak.count) == (1, 0 if scale == 1 else 1)
            assert guided.calls(t) == strong.count + weak.count


def test_a_model_of_itself_as_the_reference_changes_nothing() -> None:
    exact, x = spec_mixture(process_of("rf"), LABELS), normals(5, 2, seed=1)
    torch.testing.assert_close(
        means(Autoguidance(exact, exact, 4.0), x, 0.4, COND), means(exact, x, 0.4, COND), rtol=1e-12, atol=1e-12
    )


def test_a_weaker_model_on_another_schedule_is_translated() -> None:
    """Its answer at equal noise over signal, which the exact posterior of its data on our schedule is."""
    x = normals(5, 2, seed=1)
    strong = spec_mixture(process_of("vp"), LABELS)
    ours, theirs = (Autoguidance(strong, weak_mixture(process_of(name)), 2.0) for name in ("vp", "rf"))
    torch.testing.assert_close(means(theirs, x, 0.5, COND), means(ours, x, 0.5, COND), rtol=1e-8, atol=1e-8)


def test_an_unconditional_weaker_model_is_told_no_condition() -> None:
    """Then autoguidance is classifier-free guidance by two networks."""
    process, x = process_of("vp"), normals(5, 2, seed=1)
    strong, weak = spec_mixture(process, LABELS), spec_mixture(process)
    weak.spec = DataSpec(kind="vector", shape=(2,))
    free = ClassifierFreeGuidance(strong, 2.0)
    torch.testing.assert_close(
        means(Autoguidance(strong, weak, 2.0), x, 0.5, COND), means(free, x, 0.5, COND), rtol=1e-10, atol=1e-10
    )


def test_autoguidance_with_a_negative_condition_tells_it_to_the_weaker_model() -> None:
    process, x = process_of("vp"), normals(5, 2, seed=1)
    strong, weak = spec_mixture(process, LABELS), weak_mixture(process)
    good, bad = means(strong, x, 0.5, COND), means(weak, x, 0.5, NEGATIVE)
    guided = Autoguidance(strong, weak, 2.0, negative=NEGATIVE)
    torch.testing.assert_close(means(guided, x, 0.5, COND), bad + 2.0 * (good - bad), rtol=1e-10, atol=1e-10)


def test_guidance_around_guidance_in_either_order() -> None:
    process, x = process_of("vp"), normals(5, 2, seed=1)
    strong, weak = spec_mixture(process, LABELS), weak_mixture(process)
    null, weak_null = means(strong, x, 0.5), means(weak, x, 0.5)
    good, bad = means(strong, x, 0.5, COND), means(weak, x, 0.5, COND)
    # autoguidance inside: both the conditional and the null answer are autoguided
    inside = ClassifierFreeGuidance(Autoguidance(strong, weak, 1.5), 2.0)
    first, second = bad + 1.5 * (good - bad), weak_null + 1.5 * (null - weak_null)
    torch.testing.assert_close(means(inside, x, 0.5, COND), second + 2 * (first - second), rtol=1e-9, atol=1e-10)
    assert inside.calls(0.5) == 4
    # autoguidance outside: the guided model against the weaker one, both guided or only the first
    outside = Autoguidance(ClassifierFreeGuidance(strong, 2.0), weak, 1.5)
    free = null + 2 * (good - null)
    torch.testing.assert_close(means(outside, x, 0.5, COND), bad + 1.5 * (free - bad), rtol=1e-9, atol=1e-10)
    assert outside.calls(0.5) == 3


def test_three_deep_with_a_negative_condition_batches_and_times_per_item() -> None:
    exact, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    t = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.5], dtype=torch.float64)
    away = {"label": torch.tensor([1, 1, 0, 0, 0])}
    scales = torch.tensor([0.5, 1.5, 2.0, 0.0, 3.0])

    def inner(cond: Any) -> torch.Tensor:
        null, asked = means(exact, x, t), means(exact, x, t, cond)
        return null + scales.double()[:, None] * (asked - null)

    guided = ClassifierFreeGuidance(ClassifierFreeGuidance(exact, scales), 1.5, negative=away)
    expected = inner(away) + 1.5 * (inner(COND) - inner(away))
    torch.testing.assert_close(means(guided, x, t, COND), expected, rtol=1e-9, atol=1e-10)
    assert guided.calls(0.5) == 4


@pytest.mark.parametrize("noise", ["own", "new"])
def test_guidance_of_answers_with_a_noise_of_their_own_guides_it_too(noise: str) -> None:
    """Both are linear, so x = alpha mean + sigma eps guided is the guided pair of the answers."""
    process, x = process_of("vp"), normals(5, 2, seed=1)
    exact = spec_mixture(process, LABELS)
    inner = Thresholding(exact, "static", bound=0.3, noise=noise)  # type: ignore[arg-type]
    guided = ClassifierFreeGuidance(inner, 2.0)
    post = guided(x, 0.5, guided.embed(COND, 5))
    asked, null = (inner(x, 0.5, exact.embed(cond, 5)) for cond in (COND, None))
    e_asked, e_null = (process.eps(x, answer, 0.5) for answer in (asked, null))
    torch.testing.assert_close(process.eps(x, post, 0.5), e_null + 2 * (e_asked - e_null), rtol=1e-9, atol=1e-10)


def test_evaluations_of_autoguidance_in_an_interval() -> None:
    process = process_of("rf")
    strong, weak = Counting(spec_mixture(process, LABELS)), Counting(weak_mixture(process))
    guided = Autoguidance(strong, weak, 2.0, interval=(0.1, 2.0))
    grid = make_grid(process.schedule, 9)
    result = run(guided, make_solver("dpm++2m"), grid, normals(5, 2), cond=COND)
    rho = grid[:-1] / (1 - grid[:-1])
    inside = int(((rho > 0.1) & (rho <= 2.0)).sum())
    assert 0 < inside < 9
    assert (strong.count, weak.count, result.nfe) == (9, inside, 9 + inside)


def test_rescale_leaves_elements_outside_of_the_interval_alone() -> None:
    exact, x = spec_mixture(process_of("rf"), LABELS), normals(5, 2, seed=1)
    t = torch.tensor([[0.5, 0.9]], dtype=torch.float64).expand(5, 2)
    for guided in (
        ClassifierFreeGuidance(exact, 3.0, interval=(0.1, 2.0), rescale=0.7),
        Autoguidance(exact, weak_mixture(process_of("rf")), 3.0, interval=(0.1, 2.0), rescale=0.7),
    ):
        found, plain = means(guided, x, t, COND), means(exact, x, t, COND)
        torch.testing.assert_close(found[:, 1], plain[:, 1], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(found[:, 0], plain[:, 0])


def tokens(seed: int) -> JointDenoiser:
    probabilities = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    process = CategoricalProcess("absorbing", 3, make_keep("linear"))
    return JointDenoiser(probabilities / probabilities.sum(), process)


def test_autoguidance_of_tokens_works_on_log_probabilities() -> None:
    strong, weak = tokens(0), tokens(1)
    x = torch.tensor([[3, 3], [0, 3], [3, 2], [1, 2]])
    guided = Autoguidance(strong, weak, 1.8)
    found = guided(x, 0.5, guided.embed(None, 4)).logits
    expected = guide_logits(strong(x, 0.5).logits, weak(x, 0.5).logits, 1.8)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    exact = spec_mixture(process_of("vp"), LABELS)
    with pytest.raises(ValueError, match="two models of one process"):
        Autoguidance(exact, tokens(0), 2.0)
    with pytest.raises(ValueError, match="2 values for a batch of 5"):
        ClassifierFreeGuidance(exact, 2.0, negative={"label": torch.tensor([1, 0])}).embed(COND, 5)
    other = weak_mixture(process_of("vp"))
    exact.spec, other.spec = DataSpec(kind="vector", shape=(2,)), DataSpec(kind="vector", shape=(3,))
    with pytest.raises(ValueError, match="another shape"):
        Autoguidance(exact, other, 2.0)
    strong, weak = tokens(0), tokens(1)
    strong.spec, weak.spec = (DataSpec(kind="tokens", shape=(2,), vocabulary=tuple(names)) for names in ("abc", "acb"))
    with pytest.raises(ValueError, match="another vocabulary"):
        Autoguidance(strong, weak, 2.0)
    exact.spec = DataSpec(kind="vector", shape=(2,), classes=("a", "b"))
    other.spec = DataSpec(kind="vector", shape=(2,), classes=("a", "c"))
    with pytest.raises(ValueError, match="condition 'label' differs"):
        Autoguidance(exact, other, 2.0)


@pytest.mark.parametrize("which", ["both", "strong", "weak", "none"])
def test_the_guided_answer_is_told_to_those_that_read_it(which: str) -> None:
    strong, weak = Recording(), Recording()
    strong.self_conditioned = which in ("both", "strong")  # type: ignore[assignment]
    weak.self_conditioned = which in ("both", "weak")  # type: ignore[assignment]
    guided, seen = Autoguidance(strong, weak, 2.0), []
    draw(
        guided, make_solver("ddim"), cond={"label": torch.arange(4)}, callback=lambda shot: seen.append(shot.post.mean)
    )
    assert guided.self_conditioned == (which != "none")
    for denoiser in (strong, weak):
        assert len(denoiser.told) == len(seen) and denoiser.told[0] is None
        for told, answer in zip(denoiser.told[1:], seen[:-1], strict=True):
            assert torch.equal(told, answer) if denoiser.self_conditioned else told is None  # type: ignore[arg-type]


def test_further_heads_are_those_of_the_model_that_is_guided() -> None:
    """A learned variance is read from them."""
    process, x = process_of("vp"), normals(5, 2, seed=1)

    class Headed(Counting):
        def posterior(self, x: torch.Tensor, t: Any, cond: Any) -> Any:
            return self.denoiser(x, t, cond).replace(extras={"variance": 0.0 * x + self.value})

    strong, weak = Headed(spec_mixture(process, LABELS)), Headed(weak_mixture(process))
    strong.value, weak.value = 0.25, 0.75
    for guided in (Autoguidance(strong, weak, 2.0), ClassifierFreeGuidance(strong, 2.0), Thresholding(strong)):
        assert bool((guided(x, 0.5, guided.embed(COND, 5)).extras["variance"] == 0.25).all())


def test_a_negative_condition_replaces_all_others_of_the_reference() -> None:
    """Also those that it does not name, as when one caption stands for another."""

    class Noting(Recording):
        def embed(self, cond: Any, batch: int, drop: Any = None) -> Any:
            self.asked = dict(cond or {})
            return super().embed(None, batch, drop)

    strong, weak = Noting(), Noting()
    cond = {"label": torch.arange(4), "colour": torch.arange(4)}
    for guided, reference in (
        (Autoguidance(strong, weak, 2.0, negative={"label": torch.tensor([3])}), weak),
        (ClassifierFreeGuidance(strong, 2.0, negative={"label": torch.tensor([3])}), strong),
    ):
        guided.embed(cond, 4)
        assert {name: rows.tolist() for name, rows in reference.asked.items()} == {"label": [3, 3, 3, 3]}

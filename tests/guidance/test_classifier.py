"""Classifier guidance against the class-conditional mixture, whose classifier p(y | x_t) is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.guidance.helpers import COND, LABELS, Counting, times_of_every_shape
from tests.oracles.continuous import ExactNetwork, normals, process_of, run, spec_mixture
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.guidance.classifier import ClassifierGuidance
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.process.grids import make_grid
from undiffuse.process.times import Time
from undiffuse.sampling.registry import make_solver

Y = COND["label"]


def exact_classifier(mixture: MixtureDenoiser):
    """log p(x_t, y), which is log p(y | x_t) up to a constant, per class."""

    def logits(x: Tensor, t: Time) -> Tensor:
        joint, _ = mixture._joint(x, t, None)
        return torch.stack([torch.logsumexp(joint[:, mixture.labels == y], 1) for y in (0, 1)], 1)

    return logits


@pytest.mark.parametrize("name", ["vp", "ve", "rf", "trig", "edm", "ddpm"])
@pytest.mark.parametrize("t", [0.01, 0.5, 0.9])
def test_the_exact_classifier_at_scale_one_gives_the_conditional_posterior(name: str, t: float) -> None:
    mixture, x = spec_mixture(process_of(name), LABELS), normals(5, 2, seed=1)
    x = x * max(1.0, float(mixture.process.schedule.sigma(torch.tensor(t, dtype=torch.float64))))
    guided = ClassifierGuidance(mixture, exact_classifier(mixture), Y)
    expected = mixture(x, t, mixture.embed(COND, 5)).mean
    for time in times_of_every_shape(t, 5)[:3]:
        torch.testing.assert_close(guided(x, time, guided.embed(None, 5)).mean, expected, rtol=1e-9, atol=1e-10)


def test_times_per_element_give_the_conditional_posterior_too() -> None:
    """D_j + sigma_j^2 / alpha_j d/dx_j log p(y | x_t): Tweedie's formula holds per element."""
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    t = torch.tensor([[0.2, 0.7]], dtype=torch.float64).expand(5, 2)
    guided = ClassifierGuidance(mixture, exact_classifier(mixture), Y)
    expected = mixture(x, t, mixture.embed(COND, 5)).mean
    torch.testing.assert_close(guided(x, t, None).mean, expected, rtol=1e-9, atol=1e-10)


def test_the_end_of_a_schedule_without_signal_is_finite() -> None:
    mixture, x = spec_mixture(process_of("rf"), LABELS), normals(5, 2, seed=1)
    guided = ClassifierGuidance(mixture, exact_classifier(mixture), Y)
    found = guided(x, 1.0, None).mean
    expected = mixture(x, 1.0, mixture.embed(COND, 5)).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # that of t_max = 0.999


def test_scales_extrapolate_and_the_interval_limits() -> None:
    mixture, x = spec_mixture(process_of("rf"), LABELS), normals(5, 2, seed=1)
    plain, conditional = mixture(x, 0.5).mean, mixture(x, 0.5, mixture.embed(COND, 5)).mean
    classifier = exact_classifier(mixture)
    per_sample = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
    for scale in (0.0, 2.5, per_sample):
        guided = ClassifierGuidance(mixture, classifier, Y, scale)
        factor = scale.double()[:, None] if isinstance(scale, Tensor) else scale
        expected = plain + factor * (conditional - plain)
        torch.testing.assert_close(guided(x, 0.5, None).mean, expected, rtol=1e-9, atol=1e-10)
    limited = ClassifierGuidance(mixture, classifier, Y, 2.0, interval=(1.5, 9.0))
    assert torch.equal(limited(x, 0.5, None).mean, plain)
    mixed = torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5], dtype=torch.float64)  # sigma / alpha = 1 and 7 / 3
    found, whole = limited(x, mixed, None).mean, ClassifierGuidance(mixture, classifier, Y, 2.0)(x, mixed, None).mean
    assert torch.equal(found[::2], mixture(x, mixed).mean[::2])
    assert torch.equal(found[1::2], whole[1::2])


def test_at_the_mean_it_is_the_gradient_through_the_denoiser() -> None:
    """By finite differences of log p(y | D(x)); and at the end of sampling it agrees with the other kind."""
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    classifier = exact_classifier(mixture)
    clean = lambda mean: classifier(mean, 0.0)  # noqa: E731
    guided = ClassifierGuidance(mixture, clean, Y, 1.5, at="clean")
    t, step = 0.4, 1e-5
    alpha, sigma = mixture.process.coefficients(t, x)

    def log_p(point: Tensor) -> Tensor:
        return clean(mixture(point, t).mean).log_softmax(1).gather(1, Y[:, None])[:, 0]

    slopes = torch.stack(
        [(log_p(x + step * e) - log_p(x - step * e)) / (2 * step) for e in torch.eye(2, dtype=torch.float64)], 1
    )
    expected = mixture(x, t).mean + 1.5 * sigma**2 / alpha * slopes
    torch.testing.assert_close(guided(x, t, None).mean, expected, rtol=1e-6, atol=1e-8)
    noisy = ClassifierGuidance(mixture, classifier, Y, 1.5)
    with torch.no_grad():
        apart = [float((guided(x, s, None).mean - noisy(x, s, None).mean).abs().max()) for s in (0.4, 0.05, 0.01)]
    assert apart[0] > 0.05 and apart[2] < 0.01 * apart[0]


@pytest.mark.parametrize("at", ["noisy", "clean"])
def test_gradients_flow_through_a_guided_run(at: str) -> None:
    mixture = spec_mixture(process_of("vp"), LABELS)
    classifier = exact_classifier(mixture)
    network = classifier if at == "noisy" else (lambda mean: classifier(mean, 0.0))
    guided = ClassifierGuidance(mixture, network, Y, 0.5, at=at)  # type: ignore[arg-type]
    grid, solver = make_grid(mixture.process.schedule, 3), make_solver("ddim")
    start, way = normals(5, 2, seed=2), normals(5, 2, seed=3)

    def end(x: Tensor) -> Tensor:
        return run(guided, solver, grid, x, grad=True).x

    start.requires_grad_()
    (slope,) = torch.autograd.grad(end(start).sum(), start)
    with torch.no_grad():
        step = 1e-5
        expected = (end(start + step * way).sum() - end(start - step * way).sum()) / (2 * step)
    torch.testing.assert_close((slope * way).sum(), expected, rtol=1e-5, atol=1e-7)


def test_nothing_is_left_of_the_graph_where_no_gradient_is_asked_for() -> None:
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    classifier = exact_classifier(mixture)
    with torch.no_grad():
        for at, network in (("noisy", classifier), ("clean", lambda mean: classifier(mean, 0.0))):
            guided = ClassifierGuidance(mixture, network, Y, at=at)  # type: ignore[arg-type]
            assert not guided(x, 0.5, None).mean.requires_grad


def test_a_network_denoiser_is_guided_alike() -> None:
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    network = ExactNetwork(mixture, "v")
    for at in ("noisy", "clean"):
        classifier = exact_classifier(mixture)
        seen = classifier if at == "noisy" else (lambda mean: exact_classifier(mixture)(mean, 0.0))
        exact, ours = (ClassifierGuidance(d, seen, Y, 2.0, at=at) for d in (mixture, network))  # type: ignore[arg-type]
        torch.testing.assert_close(ours(x, 0.5, None).mean, exact(x, 0.5, None).mean, rtol=1e-8, atol=1e-8)


def test_energies_of_their_own_shape_guide_without_a_label() -> None:
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    guided = ClassifierGuidance(mixture, lambda x, t: 3.0 * x[:, 0], None, 2.0)
    alpha, sigma = mixture.process.coefficients(0.5, x)
    expected = mixture(x, 0.5).mean + torch.tensor([6.0, 0.0]).double() * sigma**2 / alpha
    torch.testing.assert_close(guided(x, 0.5, None).mean, expected, rtol=1e-10, atol=1e-10)


def test_inside_and_outside_of_classifier_free_guidance() -> None:
    """Both are shifts of the mean, so with a classifier that knows nothing of the condition the order is no matter."""
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2, seed=1)
    energy = lambda x, t: -(x**2).sum(1)  # noqa: E731
    scale = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5])
    inside = ClassifierFreeGuidance(ClassifierGuidance(mixture, energy, None, scale), 2.0)
    outside = ClassifierGuidance(ClassifierFreeGuidance(mixture, 2.0), energy, None, scale)
    found = [d(x, 0.5, d.embed(COND, 5)).mean for d in (inside, outside)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_evaluations_are_those_of_the_denoiser() -> None:
    counting = Counting(spec_mixture(process_of("vp"), LABELS))
    grid = make_grid(counting.process.schedule, 6)  # type: ignore[union-attr]
    guided = ClassifierGuidance(counting, exact_classifier(counting.denoiser), Y)  # type: ignore[arg-type]
    result = run(guided, make_solver("ddim"), grid, normals(5, 2))
    assert result.nfe == 6 == counting.count


def test_samples_go_to_the_class() -> None:
    mixture = spec_mixture(process_of("vp"), LABELS)
    grid = make_grid(mixture.process.schedule, 20)
    guided = ClassifierGuidance(mixture, exact_classifier(mixture), 0)
    found = run(guided, make_solver("dpm++2m"), grid, normals(200, 2))
    expected = run(mixture, make_solver("dpm++2m"), grid, normals(200, 2), cond={"label": torch.zeros(200).long()})
    torch.testing.assert_close(found.x, expected.x, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    mixture, x = spec_mixture(process_of("vp"), LABELS), normals(5, 2)
    classifier = exact_classifier(mixture)
    with pytest.raises(ValueError, match="at='x0' is unknown"):
        ClassifierGuidance(mixture, classifier, 0, at="x0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label 2 does not exist; the classifier knows 0 to 1"):
        ClassifierGuidance(mixture, classifier, 2)(x, 0.5, None)
    with pytest.raises(ValueError, match=r"expected logits \(5, classes\)"):
        ClassifierGuidance(mixture, lambda x, t: x.sum(1), 0)(x, 0.5, None)
    with pytest.raises(ValueError, match="without a label"):
        ClassifierGuidance(mixture, classifier, None)(x, 0.5, None)
    with pytest.raises(ValueError, match="3 values for a batch of 5"):
        ClassifierGuidance(mixture, classifier, torch.zeros(3).long())(x, 0.5, None)
    with pytest.raises(ValueError, match="scale=-1"):
        ClassifierGuidance(mixture, classifier, 0, -1.0)

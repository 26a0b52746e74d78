"""Heads: closed forms against brute force and scikit-learn, invariants of attention, and what is saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.networks.helpers import count, generator, randomise
from tests.tasks.features.test_encoder import PROCESS, X, small_unet
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import CheckpointError
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.head import Standard
from undiffuse.tasks.features.head_networks import AttentionBlock, AttentionHead, ConvolutionHead
from undiffuse.tasks.features.options import HEAD_NAMES, HeadOptions
from undiffuse.tasks.features.probing import fit_head, load_probe, number_labels, probe
from undiffuse.tasks.features.ridge import RidgeHead, Spectrum, signed


def blobs(n: int, features: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around one centre for each class, and their classes."""
    draws = generator(seed)
    centres = 2 * torch.randn(classes, features, generator=generator(9))
    labels = torch.arange(n) % classes
    return centres[labels] + torch.randn(n, features, generator=draws), labels


@pytest.mark.parametrize(("n", "features"), [(30, 4), (12, 40)])
def test_ridge_solves_the_normal_equations(n: int, features: int):
    x, y = blobs(n, features)
    head = RidgeHead.fit(x, y, 3, HeadOptions(alpha=0.7))
    z, targets = Standard.of(x)(x), signed(y, 3)
    beta = torch.linalg.solve(z.T @ z + 0.7 * torch.eye(features, dtype=torch.float64), z.T @ targets)
    torch.testing.assert_close(head.weights, beta, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(head.intercept, targets.mean(0))


@pytest.mark.parametrize(("n", "features"), [(20, 4), (10, 30)])
def test_leaving_one_out_in_closed_form_is_leaving_one_out(n: int, features: int):
    x, y = blobs(n, features)
    z, targets, alpha = Standard.of(x)(x), signed(y, 3), 0.3
    found = Spectrum.of(z).leave_one_out(targets, alpha)
    for i in range(n):
        rest = torch.arange(n) != i
        mean, centre = targets[rest].mean(0), z[rest].mean(0)
        part = z[rest] - centre
        gram = part.T @ part + alpha * torch.eye(features, dtype=torch.float64)
        beta = torch.linalg.solve(gram, part.T @ (targets[rest] - mean))
        torch.testing.assert_close(found[i], mean + (z[i] - centre) @ beta, rtol=1e-8, atol=1e-8)


def test_the_penalty_is_that_of_the_least_error_of_leaving_one_out():
    x, y = blobs(24, 30)
    x = x + 4 * torch.randn(x.shape, generator=generator(5))
    chosen = RidgeHead.fit(x, y, 3, HeadOptions()).alpha
    z, targets = Standard.of(x)(x), signed(y, 3)
    spectrum = Spectrum.of(z)
    losses = {a: float((spectrum.leave_one_out(targets, a) - targets).square().mean()) for a in (0.01, chosen, 1e6)}
    assert min(losses, key=losses.get) == chosen and 0.01 < chosen < 1e6


def test_logistic_regression_and_neighbours_are_those_of_scikit_learn():
    linear_model, neighbors = (pytest.importorskip(f"sklearn.{name}") for name in ("linear_model", "neighbors"))
    x, y = blobs(90, 5)
    z = Standard.of(x)(x).numpy()
    head = fit_head(x, y, 3, HeadOptions(head="logistic", alpha=0.5))
    theirs = linear_model.LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(z, y.numpy())
    np.testing.assert_allclose(head.logits(x).softmax(1).numpy(), theirs.predict_proba(z), atol=1e-5)
    far, _ = blobs(40, 5, seed=1)
    vote = fit_head(x, y, 3, HeadOptions(head="knn", neighbours=5)).logits(far).argmax(1).numpy()
    model = neighbors.KNeighborsClassifier(5).fit(z, y.numpy())
    scaled = Standard.of(x)(far).numpy()
    shares = model.predict_proba(scaled)
    clear = (shares == shares.max(1, keepdims=True)).sum(1) == 1  # ties are ours to break
    np.testing.assert_array_equal(vote[clear], model.predict(scaled)[clear])
    assert clear.mean() > 0.9


def test_attention_reads_tokens_as_a_set_and_has_the_stated_size():
    head = AttentionHead({"a": (6, 4, 4)}, [["a"]], 3, width=16)
    head.norms[0] = nn.Identity()  # the norm over [C, h, w] knows places; what follows does not
    value = torch.randn(2, 6, 4, 4, generator=generator())
    shuffled = value.flatten(2)[:, :, torch.randperm(16, generator=generator(1))].view_as(value)
    torch.testing.assert_close(head({"a": shuffled}), head({"a": value}), rtol=1e-4, atol=1e-5)
    head({"a": value}).square().sum().backward()
    assert float(head.trunks[0].token.grad.abs().max()) > 0
    assert count(AttentionBlock(24)) == 12 * 24**2 + 10 * 24
    shapes = {"a@0.1": (6, 4, 4), "b@0.1": (12, 2, 2), "a@0.3": (6, 4, 4), "b@0.3": (12, 2, 2)}
    fused = AttentionHead(shapes, [["a@0.1", "b@0.1"], ["a@0.3", "b@0.3"]], 3)
    assert fused.leave.in_features == 2 * 12 and len(fused.trunks) == 2  # a trunk for each time


def test_convolutions_keep_small_maps_whole():
    head = ConvolutionHead((6, 3, 3), 4).eval()
    assert head({"a": torch.randn(2, 6, 3, 3, generator=generator())}).shape == (2, 4)
    assert [layer.stride for layer in head.body if isinstance(layer, nn.Conv2d)] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_a_probe_learns_leaves_the_model_alone_and_comes_back_from_disk(head: str, tmp_path):
    network = small_unet()
    denoiser = NetworkDenoiser(network, PROCESS, "v").eval()
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    y = np.array(["left", "right"] * 20)
    x = X[:1].repeat(40, 1, 1, 1) * 0.1
    x[1::2, :, :, 4:] += 1.5  # the right halves of "right" are bright
    encoder = FeatureEncoder(denoiser, "down0.0", 0.1, pool=None if head in ("cnn", "attention") else 2)
    classifier = probe(encoder, x, y, head=head, epochs=8, batch=10, width=8, rate=0.02)
    assert classifier.score(x, y) > 0.9 and classifier.classes == ("left", "right")
    assert set(classifier.predict(x[:4])) == {"left", "right"}
    np.testing.assert_allclose(classifier.predict_proba(x).sum(1), 1.0)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    classifier.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe.json", "probe.safetensors"]
    again = load_probe(tmp_path, denoiser)
    torch.testing.assert_close(again.logits(x), classifier.logits(x), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="another model"):
        load_probe(tmp_path, NetworkDenoiser(randomise(small_unet(), seed=1), PROCESS, "v").eval())


def test_a_probe_on_exact_responsibilities_is_as_good_as_bayes():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
    oracle = MixtureDenoiser(torch.ones(3), means, torch.full((3,), 0.8), PROCESS)
    y = torch.arange(3000) % 3
    x = means[y] + 0.8 * torch.randn(3000, 2, generator=generator(4))
    bayes = (torch.cdist(x[1500:].double(), means.double()).argmin(1) == y[1500:]).double().mean()
    encoder = FeatureEncoder(oracle, "responsibilities", 0.0)
    right = probe(encoder, x[:1500], y[:1500], head="logistic").score(x[1500:], y[1500:])
    assert abs(right - float(bayes)) < 2 * (0.25 / 1500) ** 0.5


def test_items_that_judge_do_not_meet_the_noise_of_those_learned_from():
    x, y = torch.linspace(0, 1e-3, 60)[:, None, None, None].expand(-1, 1, 8, 8), torch.arange(60) // 30
    encoder = FeatureEncoder(NetworkDenoiser(small_unet(), PROCESS, "v").eval(), "in", 1.0)  # noise alone
    classifier = probe(encoder, x, y, head="knn", neighbours=1)
    assert classifier.score(x, y) == 1.0  # the same items have the same noise
    assert classifier.score(x + 2e-3, y) < 0.5 + 4 * (0.25 / 60) ** 0.5


def test_labels_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="all 3 items have the label 7"):
        number_labels([7, 7, 7])
    with pytest.raises(ValueError, match="one number or name for each item"):
        number_labels(torch.zeros(2, 2))
    encoder = FeatureEncoder(NetworkDenoiser(small_unet(), PROCESS, "v").eval(), "mid", pool=1)
    with pytest.raises(ValueError, match="5 items and 2 labels"):
        probe(encoder, X, [0, 1])
    with pytest.raises(ValueError, match="Did you mean 'ridge'"):
        probe(encoder, X, [0, 1, 0, 1, 0], head="rigde")
    with pytest.raises(ValueError, match="features of item 1 are not finite"):
        fit_head(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1]), 2, HeadOptions())
    with pytest.raises(ValueError, match="one map, and here are"):
        two = FeatureEncoder(encoder.denoiser, ["mid", "up1.0"])
        probe(two, X, [0, 1, 0, 1, 0], head="cnn")
    for wrong in ({"epochs": 0}, {"rate": 0.0}, {"alpha": -1.0}, {"width": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(HeadOptions(), **wrong)

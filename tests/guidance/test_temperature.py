"""Temperature and top-k: closed forms, known tokens, and the way through `Model.sample`."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from tests.oracles.masked import binary_joint, joint_denoiser, triple_joint
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.guidance.temperature import Temperature, TopK
from undiffuse.models.model import Model
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec


def test_a_temperature_is_a_power_of_the_law_and_one_is_the_law():
    denoiser, x = joint_denoiser(triple_joint()), torch.tensor([[3, 3, 3], [1, 3, 3]])
    plain, cool = denoiser(x, 1.0).probs, Temperature(denoiser, 0.5)(x, 1.0).probs
    torch.testing.assert_close(cool, plain**2 / (plain**2).sum(-1, keepdim=True), rtol=0, atol=1e-14)
    torch.testing.assert_close(Temperature(denoiser, 1.0)(x, 1.0).probs, plain, rtol=0, atol=1e-14)
    assert cool[1, 0].tolist() == [0.0, 1.0, 0.0]  # a known token stays known


def test_top_k_keeps_k_classes_in_proportion_and_all_change_nothing():
    denoiser, x = joint_denoiser(triple_joint()), torch.tensor([[3, 3, 3], [1, 3, 3]])
    plain, two = denoiser(x, 1.0).probs, TopK(denoiser, 2)(x, 1.0).probs
    kept = torch.where(plain > plain.amin(-1, keepdim=True), plain, 0.0)
    torch.testing.assert_close(two, kept / kept.sum(-1, keepdim=True), rtol=0, atol=1e-14)
    assert torch.equal(TopK(denoiser, 3)(x, 1.0).logits, denoiser(x, 1.0).logits)


def test_samples_follow_the_sharpened_law_one_token_at_a_time():
    """A model of one token, 20,000 samples; chi-square at false-alarm rate 1e-4."""
    denoiser = joint_denoiser(binary_joint().sum((1, 2, 3, 4, 5)))
    model = Model(denoiser, DataSpec(kind="tokens", shape=(1,), vocabulary=("a", "b")))
    x = model.sample(20_000, temperature=0.7, batch_size=20_000)
    law = denoiser.table ** (1 / 0.7)
    expected = law / law.sum() * len(x)
    assert chisquare(torch.bincount(x[:, 0], minlength=2).numpy(), expected.numpy()).pvalue > 1e-4
    assert bool((model.sample(50, top_k=1) == denoiser.table.argmax()).all())


def test_what_means_nothing_is_refused():
    gaussian = GaussianDenoiser(torch.zeros(2), torch.eye(2), GaussianProcess(make_schedule("rf")))
    with pytest.raises(ValueError, match="continuous"):
        Temperature(gaussian, 0.5)
    with pytest.raises(ValueError, match="above 0"):
        Temperature(joint_denoiser(triple_joint()), 0.0)
    with pytest.raises(ValueError, match="at least 1"):
        TopK(joint_denoiser(triple_joint()), 0)

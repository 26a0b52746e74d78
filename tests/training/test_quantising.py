"""The loss of vector-quantised codecs: its gradients, the moving averages, restarts, the adversary, resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.codecs.test_codecs import items, spec_of
from tests.codecs.test_quantised import SMALL, vq_of
from undiffuse.codecs import VQCodec, build_codec
from undiffuse.codecs.options import VQOptions
from undiffuse.codecs.quantised import nearest
from undiffuse.data import TensorDataset
from undiffuse.errors import ConfigError
from undiffuse.metrics.perceptual import make_distance
from undiffuse.noise import KeyedNoise
from undiffuse.training.adversary import Adversary
from undiffuse.training.codec_training import codec_objective, train_codec_network
from undiffuse.training.devices import Devices
from undiffuse.training.objectives import Corrupted
from undiffuse.training.options import TrainOptions
from undiffuse.training.quantising import QuantisingObjective
from undiffuse.training.reconstruction import Reconstructor


def begun(options: VQOptions, seeded: bool = True) -> tuple[VQCodec, QuantisingObjective, Corrupted]:
    codec = vq_of("image", options).requires_grad_(True)
    objective = codec_objective(codec, options, seeded)
    assert isinstance(objective, QuantisingObjective)
    x, noise = items(spec_of("image"), 6), KeyedNoise(0, range(6))
    return codec, objective, objective.prepare(Reconstructor(codec), {"x": x}, noise, 6)


def gap_to(z: Tensor, codes: Tensor) -> float:
    """The largest distance of a code to the nearest of the encodings (n, d)."""
    return float((codes[:, None] - z).abs().amax(2).amin(1).max())


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
def test_the_commitment_gradient_is_two_beta_times_the_gap(beta: float) -> None:
    """d loss / dz is what the decoder sends back, straight through, and 2 beta (z - e) / n for n numbers of an item."""
    options = replace(SMALL, commitment=beta, codebook="gradient", restart=0)
    codec, objective, corrupted = begun(options)
    z = codec.encodings(corrupted.x).detach().requires_grad_(True)
    codec.encodings = lambda x: z  # type: ignore[method-assign]
    (found,) = torch.autograd.grad(objective.score(Reconstructor(codec), corrupted).per_sample.sum(), z)
    copy = codec.quantise(z).passed.detach().requires_grad_(True)
    lost = (codec.compose(copy) - corrupted.x).square().flatten(1).mean(1).sum()
    (sent_back,) = torch.autograd.grad(lost, copy)
    gap = z.detach() - codec.quantise(z).chosen.detach()
    torch.testing.assert_close(found, sent_back + 2 * beta * gap / z[0].numel(), atol=1e-8, rtol=1e-5)


def test_the_codebook_gradient_pulls_each_code_to_its_encodings() -> None:
    """Beta is not at this term: the gradient of e_k is 2 sum over its encodings of (e_k - z) / n, whatever beta is."""
    codec, objective, corrupted = begun(replace(SMALL, commitment=9.0, codebook="gradient", restart=0))
    loss = objective.score(Reconstructor(codec), corrupted).per_sample.sum()
    (found,) = torch.autograd.grad(loss, codec.codebook)
    told = codec.quantise(codec.encodings(corrupted.x).detach())
    gap = 2 * (told.chosen - told.encodings).detach() / told.encodings[0].numel()
    expected = torch.zeros_like(found).index_add_(0, told.numbers.flatten(), gap.flatten(0, 1))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)


def test_moving_averages_follow_the_encodings() -> None:
    options = replace(SMALL, decay=0.9, restart=0)
    codec, objective, corrupted = begun(options)
    before, denoiser = codec.codebook.clone(), Reconstructor(codec)
    objective.score(denoiser, corrupted.rows(0, 3))  # a batch in two parts
    objective.score(denoiser, corrupted.rows(3, 6))
    with torch.no_grad():
        z = codec.encodings(corrupted.x).flatten(0, 1)
        objective.score(denoiser, corrupted)  # validation: notes nothing
    objective.after_step(denoiser, 1)
    numbers = nearest(z, before)
    count = torch.bincount(numbers, minlength=11).float()
    sums = torch.zeros(11, 3).index_add_(0, numbers, z)
    expected = (0.9 * before + 0.1 * sums) / (0.9 + 0.1 * count)[:, None]
    torch.testing.assert_close(codec.codebook, expected)
    assert not torch.equal(codec.codebook, before)


def test_codes_without_use_become_encodings() -> None:
    options = replace(SMALL, codes=40, decay=0.5, restart=3)
    codec, objective, corrupted = begun(options)
    with torch.no_grad():
        codec.vectors[5:] += 1000.0  # nothing is near these
        objective.sums[5:] += 1000.0
    denoiser = Reconstructor(codec)
    for step in (1, 2):
        objective.score(denoiser, corrupted)
        objective.after_step(denoiser, step)
        assert float(codec.codebook[5:].min()) > 500
    objective.score(denoiser, corrupted)
    objective.after_step(denoiser, 3)
    z = codec.encodings(corrupted.x).detach().flatten(0, 1)
    assert gap_to(z, codec.codebook[5:]) == 0.0
    assert float(objective.count[5:].min()) == float(objective.count[5:].max()) == 1.0


def test_a_codebook_starts_as_a_sample_of_encodings_that_is_not_finite_where_they_are_not() -> None:
    codec, objective, corrupted = begun(SMALL, seeded=False)
    denoiser = Reconstructor(codec)
    objective.score(denoiser, corrupted)
    objective.after_step(denoiser, 1)
    z = codec.encodings(corrupted.x).detach().flatten(0, 1)
    assert gap_to(z, codec.codebook) == 0.0
    kept = codec.codebook.clone()
    broken = replace(corrupted, x=corrupted.x * float("nan"))
    objective.score(denoiser, broken)
    objective.after_step(denoiser, 2)
    assert torch.equal(codec.codebook, kept)  # a bad step changes nothing


def test_the_adversary_learns_to_tell_and_its_loss_reaches_the_codec_after_its_start() -> None:
    adversary = Adversary(2, 3, width=4, lr=1e-2)
    x = items(spec_of("image"), 16)
    made = torch.zeros_like(x)
    for _ in range(60):
        adversary.learn(x, made)
    assert float(adversary(x).mean()) < float(adversary(made).mean()) - 1.0  # -D: low for data; hinges want a gap of 2
    codec, objective, corrupted = begun(replace(SMALL, adversarial=0.7, adversarial_start=1))
    assert objective.adversary is not None
    denoiser = Reconstructor(codec)
    plain = objective.score(denoiser, corrupted).per_sample
    objective.before_step(denoiser, corrupted)
    assert int(objective.adversary.adam.count) == 0
    objective.after_step(denoiser, 1)
    codec.vectors.copy_(codec.vectors)
    heard = objective.score(denoiser, corrupted).per_sample
    with torch.no_grad():
        extra = objective.adversary(codec.decode(codec.encode(corrupted.x)))
        plain = (codec.decode(codec.encode(corrupted.x)) - corrupted.x).square().flatten(1).mean(1)
        told = codec.quantise(codec.encodings(corrupted.x))
        plain += 0.25 * (told.encodings - told.chosen).square().flatten(1).mean(1)
    torch.testing.assert_close(heard.detach(), plain + 0.7 * extra, atol=1e-5, rtol=1e-4)
    objective.before_step(denoiser, corrupted)
    assert int(objective.adversary.adam.count) == 1


def test_perceptual_distances_are_zero_for_equal_pictures_and_need_their_library(tmp_path: Path) -> None:
    from undiffuse.metrics.classifier import ClassifierConfig, build_classifier, save_classifier

    spec = spec_of("image")
    config = ClassifierConfig(shape=(3, 8, 12), classes=("a", "b"), widths=(4, 8), blocks=(1, 1))
    folder = save_classifier(build_classifier(config), tmp_path / "classifier")
    distance = make_distance(str(folder), spec)
    x = items(spec, 3).requires_grad_(True)
    assert float(distance(x, x).detach().abs().max()) == 0.0
    far = distance(x, torch.zeros_like(x))
    assert far.shape == (3,) and float(far.detach().min()) > 0
    assert float(torch.autograd.grad(far.sum(), x)[0].abs().max()) > 0
    with pytest.raises(ConfigError, match="shape"):
        make_distance(str(folder), replace(spec, shape=(3, 16, 16)))
    with pytest.raises(ConfigError, match="pictures"):
        make_distance("lpips", spec_of("signal"))
    with pytest.raises(ConfigError, match="pip install lpips"):
        make_distance("lpips", spec)


@pytest.mark.parametrize("change", [{}, {"codebook": "gradient", "adversarial": 0.1, "adversarial_start": 2}])
def test_a_codec_resumes_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    """6 steps = 4 steps, whose last checkpoint is of step 3, and then the rest."""
    options = replace(SMALL, steps=6, batch_size=8, restart=2, **change)
    data = TensorDataset(data=items(spec_of("image"), 24), spec=replace(spec_of("image"), range=None, classes=()))
    train = TrainOptions(checkpoint_every=3, device="cpu", validate_every=0)

    def trained(folder: Path, listener: Any = lambda event: None) -> dict[str, Tensor]:
        codec = build_codec(options, data.spec, seed=0)
        assert codec is not None
        made = train_codec_network(codec, options, train, data, folder, Devices(train), listener)
        assert made is not None
        return made.state_dict()

    def stop(event: object) -> None:
        if list((tmp_path / "parts" / "checkpoints").glob("*")):
            raise RuntimeError("stopped by the test")

    whole = trained(tmp_path / "whole")
    frequent = TrainOptions(checkpoint_every=3, device="cpu", validate_every=0, log_every=1)
    train, plain = frequent, train
    with pytest.raises(RuntimeError, match="stopped"):
        trained(tmp_path / "parts", stop)
    train = plain
    parts = trained(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)

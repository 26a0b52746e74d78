"""Prompts and labels of pipelines as candidates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.models import load
from undiffuse.tasks.classify import classify, error_table, match_texts

Pipelines = Callable[[str], tuple[Any, Path]]
PICTURES = torch.linspace(0, 255, 2 * 3 * 16 * 16).view(2, 3, 16, 16).sin() * 100 + 127


@pytest.mark.slow
def test_prompts_and_templates_compete_in_latent_space(pipelines: Pipelines) -> None:
    """The errors are those of diffusers' own network at the paper's steps, on the mean of its VAE."""
    pipe, folder = pipelines("stable")
    model = load(folder, size=16)
    found = classify(model, PICTURES, ["cat", ["dog", "pup"]], template=["a {}", "the {}"], times=2, keep=1)
    assert found.table.names == ("a cat", "the cat", "a dog", "a pup", "the dog", "the pup")
    assert (found.class_names, found.table.classes.tolist()) == (("cat", "dog"), [0, 0, 1, 1, 1, 1])
    assert found.nfe == found.promised == 12
    total = len(pipe.scheduler.alphas_cumprod)
    steps = [total // 4, 3 * total // 4]
    torch.testing.assert_close(found.table.times * total, torch.tensor(steps, dtype=torch.float64) + 1)
    x = PICTURES / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    torch.testing.assert_close(model.encode(PICTURES), latents, atol=1e-4, rtol=1e-4)
    from undiffuse.noise import KeyedNoise

    eps = KeyedNoise(0, [0]).normal("data", 0, (4, 8, 8))
    alpha = pipe.scheduler.alphas_cumprod[steps[0]]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * eps
    words = pipe.tokenizer("a dog", padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = pipe.text_encoder(words.input_ids)[0].expand(2, -1, -1)
        predicted = pipe.unet(noisy, steps[0], encoder_hidden_states=hidden).sample
    exact = (predicted - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(found.table.errors[:, 2, 0], exact, atol=2e-4, rtol=2e-4)
    with pytest.raises(ValueError, match="no place for the class"):
        classify(model, PICTURES, ["cat"], template="a cat")
    matches = match_texts(model, PICTURES, ["cat", "dog"], times=1)
    assert matches.scores.shape == (2, 2) and matches.table.null is not None


@pytest.mark.slow
def test_labels_of_a_transformer_compete(pipelines: Pipelines) -> None:
    model = load(pipelines("dit")[1], size=16)
    table = error_table(model, PICTURES, times=2, contrast=True)
    assert table.errors.shape == (2, len(model.spec.classes), 2) and table.null is not None
    assert not torch.equal(table.errors[:, 0], table.errors[:, 1])

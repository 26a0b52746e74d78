"""A tiny `VQDiffusionPipeline`, built here with random weights: the same probabilities as diffusers computes."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.cli.main import run
from undiffuse.denoisers.prompted_tokens import PromptedTokens
from undiffuse.errors import CheckpointError
from undiffuse.guidance.categorical import Truncate
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models import Model, load
from undiffuse.models.conditions import fit_conditions
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.tasks.features import FeatureEncoder

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

K, SIDE, T, LENGTH = 9, 3, 10, 7
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


def tiny_pipeline(folder: Path, learnable: bool = True) -> Any:
    from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
        LearnedClassifierFreeSamplingEmbeddings,
        VQDiffusionPipeline,
    )

    words = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*words, *(f"{letter}</w>" for letter in words), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                bos_token_id=52,
                eos_token_id=53,
                pad_token_id=53,
            )
        ).eval()
        transformer = diffusers.Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            cross_attention_dim=8,
            sample_size=SIDE,
            num_vector_embeds=K + 1,
            num_embeds_ada_norm=T,
            norm_type="ada_norm",
            activation_fn="geglu-approximate",
            attention_bias=True,
        ).eval()
        torch.nn.init.normal_(transformer.out.weight)
        vq = diffusers.VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            num_vq_embeddings=K,
            vq_embed_dim=4,
        ).eval()
        nulls = LearnedClassifierFreeSamplingEmbeddings(learnable=learnable, hidden_size=8, length=LENGTH)
        if learnable:
            torch.nn.init.normal_(nulls.embeddings)
    pipeline = VQDiffusionPipeline(
        vqvae=vq,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=diffusers.VQDiffusionScheduler(num_vec_classes=K + 1, num_train_timesteps=T),
        learned_classifier_free_sampling_embeddings=nulls,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model, Path]:
    folder = tmp_path_factory.mktemp("pipeline")
    return tiny_pipeline(folder), load(folder), folder


def test_the_parts_are_those_of_the_pipeline(pair: tuple[Any, Model, Path]) -> None:
    _, model, _ = pair
    assert isinstance(model.denoiser, PromptedTokens) and isinstance(model.process, CategoricalProcess)
    assert model.spec.shape == (3, 6, 6) and model.state_spec.grid == (SIDE, SIDE)
    assert model.process.classes == K and model.denoiser.levels == T
    assert model.defaults == {"solver": "ancestral", "steps": T, "guidance": 5.0}


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_probabilities_are_those_of_diffusers_for_the_same_state_and_prompt(
    pair: tuple[Any, Model, Path], scale: float
) -> None:
    """The law of x_{i-1} given x_i and the prompt, guided, at every level: 1e-4."""
    pipeline, model, _ = pair
    prompts = ["a cat", "dog"]
    x = torch.randint(0, K + 1, (2, SIDE * SIDE), generator=torch.Generator().manual_seed(1))
    guided = ClassifierFreeGuidance(model.denoiser, scale)
    cond = fit_conditions({"prompt": prompts}, 2, model.spec, model.device)
    embedded = guided.embed(dict(cond), 2)
    with torch.no_grad():
        read = pipeline._encode_prompt(prompts, 1, scale > 1)
        for i in range(T):
            twice = torch.cat([x] * 2) if scale > 1 else x
            answer = pipeline.transformer(twice, encoder_hidden_states=read, timestep=torch.tensor(i)).sample
            if scale > 1:
                null, asked = answer.chunk(2)
                answer = null + scale * (asked - null)
                answer = answer - torch.logsumexp(answer, dim=1, keepdim=True)
            post = guided(x, (i + 1) / T, embedded)
            torch.testing.assert_close(post.probs, answer.double().exp().mT, rtol=0, atol=1e-4)
            cut = pipeline.truncate(answer, 0.7).exp().mT
            ours = Truncate(guided, 0.7)(x, (i + 1) / T, embedded).probs
            torch.testing.assert_close(ours, (cut / cut.sum(-1, keepdim=True)).double(), rtol=0, atol=1e-4)
            if i:
                law = pipeline.scheduler.q_posterior(answer.clamp(-70), x, torch.tensor(i)).exp().mT.double()
                found = model.process.reverse(x, post.probs, (i + 1) / T, i / T)
                torch.testing.assert_close(found, law, rtol=0, atol=1e-4)


def test_pictures_are_those_that_diffusers_decodes(pair: tuple[Any, Model, Path]) -> None:
    pipeline, model, _ = pair
    tokens = torch.arange(SIDE * SIDE)[None] % K
    with torch.no_grad():
        vectors = pipeline.vqvae.quantize.get_codebook_entry(tokens, shape=(1, SIDE, SIDE, 4))
        theirs = pipeline.vqvae.decode(vectors, force_not_quantize=True).sample
        ours = model.codec.decode(tokens)  # type: ignore[union-attr]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_times_of_rows_are_asked_apart_and_times_of_tokens_refused(pair: tuple[Any, Model, Path]) -> None:
    model = pair[1]
    x = torch.randint(0, K + 1, (3, SIDE * SIDE), generator=torch.Generator().manual_seed(2))
    times = torch.tensor([0.3, 1.0, 0.3], dtype=torch.float64)
    with torch.no_grad():
        together = model.denoiser(x, times).logits
        for row in range(3):
            alone = model.denoiser(x[row : row + 1], float(times[row])).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one time for all tokens"):
        model.denoiser(x, times[:, None].expand(3, SIDE * SIDE))


def test_it_samples_in_fewer_steps_with_everything_on_and_a_row_alone_is_the_same(
    pair: tuple[Any, Model, Path],
) -> None:
    model = pair[1]
    words: dict[str, Any] = {"truncation": 0.9, "purity": 1.0, "tokens_per_call": 2, "steps": 2}
    both = model.sample_result(2, cond={"prompt": ["a cat", "dog"]}, **words)
    assert both.nfe == 2 * 5 and bool((both.x < K).all())  # guidance 5; 5 and 4 masks, two at a time
    alone = model.sample_result(1, first=1, cond={"prompt": "dog"}, **words)
    assert torch.equal(alone.x[0], both.x[1])
    with pytest.warns(UserWarning, match=f"knows {T} times; between them it is asked at the nearest"):
        assert model.sample(1, cond={"prompt": "dog"}, steps=3).shape == (1, 3, 6, 6)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the network knows")
        strides = model.sample_result(1, steps=5, guidance=1.0, trajectory=True)
    assert strides.nfe == 5


def test_tokens_of_another_grid_or_codebook_are_refused(pair: tuple[Any, Model, Path]) -> None:
    known = pair[1].denoiser
    assert isinstance(known, PromptedTokens)
    oblong = replace(known.spec, shape=(6,), grid=(2, 3))
    with pytest.raises(ValueError, match=r"works on 3 x 3 tokens, the codec makes \(2, 3\)"):
        PromptedTokens(known.transformer, known.process, known.reader, oblong)
    with pytest.raises(ValueError, match="has 10 states, masks among them, and the codec 7 code vectors"):
        PromptedTokens(known.transformer, CategoricalProcess("mask-replace", 7), known.reader, known.spec)


def test_features_are_maps_on_the_grid_of_the_tokens(pair: tuple[Any, Model, Path]) -> None:
    model = pair[1]
    picture = torch.rand(2, *model.spec.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoder = FeatureEncoder(model, "block0", 0.3, pool=1)
    found = encoder.maps(picture)["block0"]
    assert found.shape[2:] == (SIDE, SIDE) and encoder(picture).shape == (2, found.shape[1])
    assert not torch.equal(encoder(picture, cond={"prompt": "a cat"}), encoder(picture))


def test_what_a_prompt_must_be(pair: tuple[Any, Model, Path]) -> None:
    model = pair[1]
    with pytest.warns(UserWarning, match=f"over {LENGTH} tokens"):
        model.sample(1, cond={"prompt": "a b c d e f g h"}, steps=1)
    with pytest.raises(ValueError, match="unknown to this model"):
        model.sample(1, cond={"promt": "a"}, steps=1)
    with pytest.raises(ValueError, match="needs a condition"):
        model.sample(1, cond={}, guidance=3.0, steps=1)


def test_the_empty_prompt_is_the_null_where_none_was_learned(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path, learnable=False)
    model = load(tmp_path)
    x = torch.full((1, SIDE * SIDE), K)
    embedded = model.denoiser.embed(dict(fit_conditions({"prompt": ""}, 1, model.spec, model.device)), 1)
    with torch.no_grad():
        assert torch.equal(model.denoiser(x, 1.0, embedded).logits, model.denoiser(x, 1.0).logits)


def test_the_command_samples_from_the_folder(pair: tuple[Any, Model, Path], tmp_path: Path) -> None:
    words = ["--cond", "prompt=a cat", "--steps", "2", "-n", "2", "--out", str(tmp_path)]
    assert run(["sample", str(pair[2]), *words]) == 0
    assert len(list(tmp_path.glob("*.png"))) >= 2


def test_what_is_missing_or_does_not_fit_is_said(pair: tuple[Any, Model, Path], tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(pair[2], tmp_path / name))

    other = broken("other")
    (other / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline"}))
    with pytest.raises(CheckpointError, match="of class OtherPipeline"):
        load(other)
    pickled = broken("pickled")
    (pickled / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load(pickled)
    scheduler = broken("scheduler")
    path = scheduler / "scheduler" / "scheduler_config.json"
    for change, message in (({"num_vec_classes": 7}, "7 classes"), ({"num_train_timesteps": 5}, "knows 10 times")):
        path.write_text(json.dumps(json.loads((pair[2] / "scheduler" / path.name).read_text()) | change))
        with pytest.raises(CheckpointError, match=message):
            load(scheduler)

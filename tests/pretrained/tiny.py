"""Tiny pipelines of diffusers with random weights, written into folders by diffusers' own `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]
LENGTH = 12
SIDE = 8  # of latents, or of pictures without a codec


def clip_tokenizer(folder: Path, transformers: Any) -> Any:
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH
    )


def clip_encoder(transformers: Any, projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config).eval()


def t5(folder: Path, transformers: Any) -> tuple[Any, Any]:
    """Return a tokenizer of single letters and its encoder."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0), *((c, -3.0) for c in LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return tokenizer, transformers.T5EncoderModel(config).eval()


def vae(diffusers: Any, channels: int = 4, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    ).eval()


def unet(diffusers: Any, **options: Any) -> Any:
    return diffusers.UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **options,
    ).eval()


def text_unet(diffusers: Any, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **options,
    ).eval()


STABLE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def ddim(folder: Path, diffusers: Any, transformers: Any) -> Any:
    return diffusers.DDIMPipeline(unet=unet(diffusers), scheduler=diffusers.DDIMScheduler())


def consistency(folder: Path, diffusers: Any, transformers: Any) -> Any:
    network = unet(diffusers, num_class_embeds=5, time_embedding_type="positional")
    return diffusers.ConsistencyModelPipeline(
        unet=network, scheduler=diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    )


def dit(folder: Path, diffusers: Any, transformers: Any) -> Any:
    network = diffusers.DiTTransformer2DModel(
        sample_size=SIDE,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        activation_fn="gelu-approximate",
    ).eval()
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.2)
    return diffusers.DiTPipeline(
        transformer=network, vae=vae(diffusers), scheduler=diffusers.DDIMScheduler(clip_sample=False)
    )


def stable(folder: Path, diffusers: Any, transformers: Any, **schedule: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=text_unet(diffusers, cross_attention_dim=16),
        vae=vae(diffusers, scaling_factor=0.18215),
        text_encoder=clip_encoder(transformers),
        tokenizer=clip_tokenizer(folder, transformers),
        scheduler=diffusers.DPMSolverMultistepScheduler(**STABLE, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_v(folder: Path, diffusers: Any, transformers: Any) -> Any:
    pipe = stable(folder, diffusers, transformers)
    pipe.scheduler = diffusers.DDIMScheduler(
        **STABLE,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return pipe


def lcm(folder: Path, diffusers: Any, transformers: Any) -> Any:
    return diffusers.LatentConsistencyModelPipeline(
        unet=text_unet(diffusers, cross_attention_dim=16, time_cond_proj_dim=9),
        vae=vae(diffusers, scaling_factor=0.18215),
        text_encoder=clip_encoder(transformers),
        tokenizer=clip_tokenizer(folder, transformers),
        scheduler=diffusers.LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path, diffusers: Any, transformers: Any) -> Any:
    network = text_unet(
        diffusers,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    tokenizer = clip_tokenizer(folder, transformers)
    return diffusers.StableDiffusionXLPipeline(
        unet=network,
        vae=vae(diffusers, scaling_factor=0.13025),
        text_encoder=clip_encoder(transformers),
        text_encoder_2=clip_encoder(transformers, projected=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(**STABLE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def pixart(folder: Path, diffusers: Any, transformers: Any) -> Any:
    tokenizer, encoder = t5(folder, transformers)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    ).eval()
    return diffusers.PixArtAlphaPipeline(
        transformer=network,
        vae=vae(diffusers),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def sd3(folder: Path, diffusers: Any, transformers: Any) -> Any:
    tokenizer = clip_tokenizer(folder, transformers)
    tokenizer_3, encoder_3 = t5(folder, transformers)
    network = diffusers.SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    ).eval()
    encoder_3 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer_3),
            d_model=32,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    ).eval()
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        vae=vae(diffusers, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_encoder(transformers, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(transformers, projected=True),
        tokenizer_2=tokenizer,
        text_encoder_3=encoder_3,
        tokenizer_3=tokenizer_3,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(folder: Path, diffusers: Any, transformers: Any) -> Any:
    tokenizer_2, encoder_2 = t5(folder, transformers)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    ).eval()
    return diffusers.FluxPipeline(
        transformer=network,
        vae=vae(diffusers, channels=4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_encoder(transformers),
        tokenizer=clip_tokenizer(folder, transformers),
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    "ddim": ddim,
    "consistency": consistency,
    "dit": dit,
    "stable": stable,
    "stable-v": stable_v,
    "lcm": lcm,
    "sdxl": sdxl,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
}


def build(name: str, folder: Path) -> Any:
    """Build a pipeline with weights that follow from a seed, save it into `folder`, and return it."""
    import diffusers
    import transformers

    scratch = folder.with_name(folder.name + "-words")
    scratch.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = BUILDERS[name](scratch, diffusers, transformers)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe

"""The papers whose main claims `undiffuse papers NAME` reproduces: one literal table. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from undiffuse.papers.study import Study


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper and its reproduction.

    Args:
        title: Its title.
        source: Authors, year, arXiv number.
        claim: What is reproduced, in a sentence.
        minutes: How long that takes on two cores.
        location: "module:function"; the function takes quick, seed, listener and keep, and returns a `Study`.
    """

    title: str
    source: str
    claim: str
    minutes: int
    location: str


PAPERS: dict[str, Paper] = {
    "principles": Paper(
        title="The Principles of Diffusion Models",
        source="Lai, Song, Kim, Mitsufuji, Ermon 2025, arXiv:2510.21890",
        claim="Every solver converges at its order, the grid is worth more than the order, likelihoods are exact, "
        "and a flow map does in one call what a denoiser does in several.",
        minutes=14,
        location="undiffuse.papers.principles:reproduce",
    ),
    "mmd-ddm": Paper(
        title="Fast inference in denoising diffusion models via MMD finetuning",
        source="Aiello, Valsesia, Magli 2023, arXiv:2301.07969",
        claim="Minutes of fine-tuning through the sampler make samples of 3 or 5 calls better than those of the best "
        "untuned solver, and than more training.",
        minutes=10,
        location="undiffuse.papers.mmd_ddm:study",
    ),
    "masked-diffusion": Paper(
        title="Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical "
        "Sampling",
        source="Zheng, Chen, Mao, Liu, Zhu, Zhang 2024, arXiv:2409.02908",
        claim="Opening masks one by one draws the model's law exactly in as many calls as there are tokens; networks "
        "need no time; and float32 draws lower the temperature without saying so.",
        minutes=20,
        location="undiffuse.papers.masked_diffusion:reproduce",
    ),
    "red-diff": Paper(
        title="A Variational Perspective on Solving Inverse Problems with Diffusion Models",
        source="Mardani, Song, Kautz, Vahdat 2023, arXiv:2305.04391",
        claim="Restoration as an optimisation beats tuned samplers in PSNR of one image without a derivative of the "
        "network, if the times fall; it seeks modes, and fits heavy noise.",
        minutes=6,
        location="undiffuse.papers.red_diff:reproduce",
    ),
    "low-level-vision": Paper(
        title="Diffusion Models in Low-Level Vision: A Survey",
        source="He, Shen, Fang, Xiao, Tang, Zhang, Zuo, Guo, Li 2024, arXiv:2406.11138",
        claim="All zero-shot solvers on one prior whose posterior is known: moment-matched ones are calibrated, and "
        "PSNR of one sample rewards those that are too narrow.",
        minutes=14,
        location="undiffuse.papers.low_level_vision:reproduce",
    ),
    "vq-diffusion": Paper(
        title="Vector quantized diffusion model for text-to-image synthesis, and its improvement",
        source="Gu et al. 2021, arXiv:2111.14822, and Tang et al. 2022, arXiv:2205.16007",
        claim="Noise that masks and replaces tokens beats either alone, strides with the right kernel lose little with "
        "a quarter of the steps, and guidance, truncation and purity trade variety for precision.",
        minutes=15,
        location="undiffuse.papers.vq_diffusion:reproduce",
    ),
    "vq-ddm": Paper(
        title="Global Context with Discrete Diffusion in Vector Quantised Modelling for Image Generation",
        source="Hu, Wang, Cham, Yang, Suganthan 2021, arXiv:2112.01799",
        claim="A rebuilt codebook is used wholly and reconstructs better than one that is trained on; uniform "
        "diffusion on its codes completes pictures without training, once its answers are read rightly and its steps "
        "repeated.",
        minutes=18,
        location="undiffuse.papers.vq_ddm:reproduce",
    ),
    "classifier-compositionality": Paper(
        title="Diffusion Classifiers Understand Compositionality, but Conditions Apply",
        source="Jeong, Uselis, Oh, Rohrbach 2025, arXiv:2505.17955",
        claim="A model reads its own pictures best and others the worse the further they lie from them; weights of "
        "times learned from a few labelled pictures repair a part of that; and it tells which digit is where, which a "
        "bag of words cannot.",
        minutes=9,
        location="undiffuse.papers.classifier_compositionality:reproduce",
    ),
    "semantic-correspondence": Paper(
        title="A Tale of Two Features: Stable Diffusion Complements DINO for Zero-Shot Semantic Correspondence",
        source="Zhang, Herrmann, Hur, Cabrera, Jampani, Sun, Yang 2023, arXiv:2305.15347",
        claim="Features of a diffusion model find corresponding points without training, and fused with others they "
        "find more; on digits the controls tell how much of that is layout.",
        minutes=1,
        location="undiffuse.papers.semantic_correspondence:reproduce",
    ),
    "diffusion-features": Paper(
        title="Diffusion Models Beat GANs on Image Classification",
        source="Mukhopadhyay, Gwilliam, et al. 2023, arXiv:2307.08702 and 2311.17921",
        claim="A model trained to denoise is an encoder: a linear probe on one of its blocks at little noise beats raw "
        "pixels and the same network before training, which block and time matter, and few labels suffice.",
        minutes=6,
        location="undiffuse.papers.diffusion_features:reproduce",
    ),
    "diffusion-classifier": Paper(
        title="Your Diffusion Model is Secretly a Zero-Shot Classifier",
        source="Li, Prabhudesai, Duggal, Brown, Pathak 2023, arXiv:2303.16203",
        claim="The class under which a picture is denoised best is its class; with the same noise for all classes a "
        "few times are enough, and asking the better classes alone halves the cost.",
        minutes=5,
        location="undiffuse.papers.diffusion_classifier:reproduce",
    ),
}
"""Name -> paper."""


def find_paper(name: str) -> Paper:
    """Return the paper of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in PAPERS:
        raise ValueError(f"paper {name!r} is unknown; choose one of {', '.join(PAPERS)}.{did_you_mean(name, PAPERS)}")
    return PAPERS[name]


def load_reproduction(paper: Paper) -> Callable[..., Study]:
    """Return the function that reproduces a paper."""
    module, _, name = paper.location.partition(":")
    return getattr(import_module(module), name)

"""What a call of `Model.sample` asks of guidance, put around the model's denoiser in the usual order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.denoisers.base import Denoiser
from undiffuse.guidance.autoguidance import Autoguidance
from undiffuse.guidance.categorical import Sharpen, Truncate
from undiffuse.guidance.classifier import ClassifierGuidance
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.temperature import Temperature, TopK
from undiffuse.guidance.thresholding import Thresholding
from undiffuse.models.conditions import Fitted, fit_conditions

if TYPE_CHECKING:
    from undiffuse.models.model import Model

Wrap = Callable[[Denoiser], Denoiser]


@dataclass(frozen=True)
class ClassifierTarget:
    """A classifier and the class that it pulls samples to; the argument `classifier` of `Model.sample`.

    Args:
        network: "clean": maps data in model units (B, *) to logits (B, K); "noisy": maps the denoiser's noisy states
            and their times (B,) to logits. Its weights are left as they are.
        label: A class number, or one per sample.
        scale: 0 is without guidance, 1 Bayes' rule.
        at: What the network was trained on; see `ClassifierGuidance`.
    """

    network: Callable[..., Tensor]
    label: int | Sequence[int] | Tensor
    scale: float = 1.0
    at: Literal["noisy", "clean"] = "clean"

    def rows(self, low: int, high: int) -> ClassifierTarget:
        """Return the target of samples `low` to `high` - 1."""
        label = torch.as_tensor(self.label, dtype=torch.int64).reshape(-1)
        return self if len(label) == 1 else replace(self, label=label[low:high])


class GuidanceArguments(TypedDict, total=False):
    """What `Model.sample` and `Model.sample_result` take about guidance; what is left out, or None, is as the
    model's defaults say.

    Args:
        guidance: Classifier-free guidance scale; 1 is conditional without guidance.
        guidance_interval: (low, high] in sigma / alpha: guide only there.
        guidance_rescale: Share of the guided mean that is scaled back to the spread of the conditional one.
        negative: Conditions to move away from, instead of from the null: as `cond`.
        autoguide: A weaker model of the same data, to move away from instead of from the null; with `negative` it is
            told that. `guidance` is the scale of either.
        classifier: Pulls samples to a class; see `ClassifierTarget`.
        threshold: Bounds every answer to [-1, 1]: "static", "dynamic", or "none" against a default.
        temperature, top_k: Tokens: sharpen the law of each, or keep its likeliest classes only. Samples then follow
            another law than the model's; see `undiffuse.guidance.temperature`.
        truncation: Tokens: keep the likeliest classes of each that together reach this probability, in (0, 1].
        purity: Tokens: sharpen each by its purity, with this strength, and open pure places first; see
            `undiffuse.guidance.categorical`. Without a solver named it takes `token-budget`.
    """

    guidance: float | None
    guidance_interval: Sequence[float] | None
    guidance_rescale: float | None
    negative: dict[str, Any] | None
    autoguide: Model | Denoiser | None
    classifier: ClassifierTarget | None
    threshold: Literal["static", "dynamic", "none"] | None
    temperature: float | None
    top_k: int | None
    truncation: float | None
    purity: float | None


GUIDANCE_ARGUMENTS: tuple[str, ...] = tuple(GuidanceArguments.__annotations__)
"""Their names."""


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Guidance of one call: classifier-free or by a weaker model, then a classifier, then thresholding.

    Args:
        scale, interval, rescale: Of the reference; see `Guidance`.
        negative: Conditions of the reference, n rows each.
        weak: The weaker denoiser, where that is the reference.
        classifier: What pulls samples to a class.
        threshold: "static", "dynamic" or None.
        temperature, top_k: Of the laws of tokens; see `undiffuse.guidance.temperature`.
        truncation, purity: Likewise; see `undiffuse.guidance.categorical`.
        codec: What turns the denoiser's answers into data for a classifier of clean data.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    negative: Fitted | None = None
    weak: Denoiser | None = None
    classifier: ClassifierTarget | None = None
    threshold: Literal["static", "dynamic"] | None = None
    temperature: float | None = None
    top_k: int | None = None
    truncation: float | None = None
    purity: float | None = None
    codec: Codec | None = None

    def rows(self, low: int, high: int) -> Guided:
        """Return the guidance of samples `low` to `high` - 1."""
        negative = None if self.negative is None else self.negative.rows(low, high)
        classifier = None if self.classifier is None else self.classifier.rows(low, high)
        return replace(self, negative=negative, classifier=classifier)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """Put the wrappers around a denoiser."""
        if self.scale != 1:
            denoiser = self._contrasted(denoiser)
        if self.classifier is not None:
            denoiser = self._classified(denoiser, self.classifier)
        if self.threshold is not None:
            denoiser = Thresholding(denoiser, self.threshold)
        if self.temperature is not None:
            denoiser = Temperature(denoiser, self.temperature)
        if self.top_k is not None:
            denoiser = TopK(denoiser, self.top_k)
        if self.truncation is not None:
            denoiser = Truncate(denoiser, self.truncation)
        return denoiser if self.purity is None else Sharpen(denoiser, self.purity)

    def _contrasted(self, denoiser: Denoiser) -> Denoiser:
        options: dict[str, Any] = {"interval": self.interval, "rescale": self.rescale, "negative": self.negative}
        if self.weak is not None:
            return Autoguidance(denoiser, self.weak, self.scale, **options)
        return ClassifierFreeGuidance(denoiser, self.scale, **options)

    def _classified(self, denoiser: Denoiser, target: ClassifierTarget) -> Denoiser:
        network, codec, label = target.network, self.codec, torch.as_tensor(target.label)
        if codec is not None and target.at == "clean":
            return ClassifierGuidance(
                denoiser, lambda mean: network(codec.decode(mean)), label, target.scale, at="clean"
            )
        return ClassifierGuidance(denoiser, network, label, target.scale, at=target.at)


def read_guidance(model: Model, n: int, conditions: Fitted, **asked: Unpack[GuidanceArguments]) -> Guided:
    """Return the guidance that a call asks for, or that the model's defaults have where the call does not say.

    A default scale holds where there is something to guide by.

    Raises:
        ValueError: A negative condition, a weaker model, a classifier, an interval or a rescaling that does nothing or
            does not fit.
    """
    defaults, scale = model.defaults, asked.get("guidance")
    negative, autoguide = asked.get("negative"), asked.get("autoguide")
    references = bool(negative) or autoguide is not None
    if scale is None:
        by = references or bool(conditions.keys() - model.spec.kept_conditions)
        scale = defaults.get("guidance", 1.0) if by else 1.0
    if references and scale == 1:
        raise ValueError("negative and autoguide need a scale other than 1, at which they do nothing; add guidance=2.")
    if asked.get("guidance") not in (None, 1) and not references and _never_dropped(model):
        raise ValueError(
            f"guidance={scale} compares with no condition, which this model never saw: it was trained with "
            f"objective.drop=0. Use guidance=1 or a negative condition, or train it with objective.drop=0.1."
        )
    for name in ("guidance_interval", "guidance_rescale"):
        if asked.get(name) and asked.get("guidance") is None and scale == 1:
            raise ValueError(f"{name}={asked.get(name)} says how to guide, but nothing is guided; add guidance=2.")
    interval = asked.get("guidance_interval") or defaults.get("guidance_interval")
    rescale, truncation, purity = asked.get("guidance_rescale"), asked.get("truncation"), asked.get("purity")
    return Guided(
        scale=scale,
        interval=(interval[0], interval[1]) if interval else None,
        rescale=defaults.get("guidance_rescale", 0.0) if rescale is None else rescale,
        negative=fit_conditions(negative, n, model.state_spec, model.device, model.codec) if negative else None,
        weak=_same_latents(model, autoguide),
        classifier=_fitting(asked.get("classifier"), n),
        threshold=threshold_mode(model, asked.get("threshold")),
        temperature=asked.get("temperature"),
        top_k=asked.get("top_k"),
        truncation=defaults.get("truncation") if truncation is None else truncation,
        purity=defaults.get("purity") if purity is None else purity,
        codec=model.codec,
    )


def apply_wraps(denoiser: Denoiser, wrap: Wrap | Sequence[Wrap] | None) -> Denoiser:
    """Put wrappers around a denoiser in the order given, the first innermost."""
    for one in [] if wrap is None else [wrap] if callable(wrap) else wrap:
        denoiser = one(denoiser)
    return denoiser


def _never_dropped(model: Model) -> bool:
    """Whether a model of ours was trained without ever leaving a condition out; unknown where weights were given."""
    recipe = model.info.get("recipe") or {}
    return recipe.get("objective", {}).get("drop") == 0 and not recipe.get("train", {}).get("init")


def _same_latents(model: Model, autoguide: Model | Denoiser | None) -> Denoiser | None:
    """Return the weaker denoiser, on the model's device.

    Raises:
        ValueError: It works in other latents than the model.
    """
    if autoguide is None or isinstance(autoguide, Denoiser):
        return autoguide
    ours, theirs = model.codec, autoguide.codec
    if (ours is None) != (theirs is None) or (ours and theirs and not _equal(ours, theirs)):
        raise ValueError(
            "autoguide works in other latents than this model; both must have been trained with one codec."
        )
    autoguide.denoiser.eval()
    return autoguide.to(model.device).denoiser


def _equal(ours: Codec, theirs: Codec) -> bool:
    mine, other = ours.state_dict(), theirs.state_dict()
    same_latents = ours.latent == theirs.latent and mine.keys() == other.keys()
    return same_latents and all(torch.equal(mine[name].cpu(), other[name].cpu()) for name in mine)


def _fitting(target: ClassifierTarget | None, n: int) -> ClassifierTarget | None:
    if target is None:
        return None
    if not isinstance(target, ClassifierTarget):
        raise ValueError(f"classifier is a {type(target).__name__}; give ClassifierTarget(network, label, scale=1.0).")
    count = torch.as_tensor(target.label).numel()
    if count not in (1, n):
        raise ValueError(f"the classifier has {count} labels for {n} samples; give one, or one per sample.")
    return target


def threshold_mode(model: Model, asked: str | None) -> Any:
    """Return the mode of thresholding, None for none.

    Raises:
        ValueError: The model's states are not bounded.
    """
    mode = model.defaults.get("threshold") if asked is None else asked
    if mode in (None, "none"):
        return None
    if model.codec is not None or (model.spec.range is None and not model.spec.is_discrete):
        what = "latents" if model.codec is not None else f"{model.spec.kind} data without a range"
        raise ValueError(f"threshold={mode!r} bounds data in [-1, 1]; this model works on {what}. Leave it out.")
    return mode

"""`--negative`, `--autoguide`, `--classifier` and `--threshold` of `undiffuse sample`: words to arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from undiffuse.cli.conditions import load_conditions, read_conditions

if TYPE_CHECKING:
    import torch

    from undiffuse.models import Model
    from undiffuse.models.guided import ClassifierTarget


@dataclass(frozen=True)
class GuidanceWords:
    """What the command line says about guidance beyond its scale."""

    negative: list[str]
    autoguide: str | None = None
    classifier: str | None = None
    classifier_scale: float = 1.0
    classifier_label: list[str] = field(default_factory=list)
    threshold: str | None = None

    def said(self) -> dict[str, Any]:
        """Return what was said, by name, for files and folders."""
        found: dict[str, Any] = {"negative": " ".join(self.negative) or None, "autoguide": self.autoguide}
        if self.classifier:
            found |= {"classifier": self.classifier, "classifier_scale": self.classifier_scale}
            found |= {"classifier_label": ",".join(self.classifier_label) or None}
        return found | {"threshold": self.threshold}


def read_guides(
    words: GuidanceWords,
    model: Model,
    n: int,
    cond: dict[str, Any] | None,
    device: str,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Return the arguments of `Model.sample_result` that the words mean, as far as there are any.

    Args:
        words: What was said.
        model: The model to guide.
        n: Number of samples.
        cond: Conditions of the samples; their label is what a classifier pulls to unless told.
        device: Where the models are computed.
        dtype: Of their weights; None: as they are stored.

    Raises:
        ValueError: A word is not of its form, or does not fit the model.
        CheckpointError: A model or a classifier cannot be loaded.
    """
    from undiffuse.cli.places import find_model

    found: dict[str, Any] = {}
    if words.threshold is not None:
        if words.threshold not in ("static", "dynamic", "none"):
            raise ValueError(f"--threshold {words.threshold!r} is unknown; choose static, dynamic or none.")
        found["threshold"] = words.threshold
    if words.negative:
        found["negative"] = load_conditions(read_conditions([], words.negative, n, model.spec), model.state_spec)
    if words.autoguide is not None:
        found["autoguide"] = find_model(words.autoguide, device, dtype).model
    if words.classifier is not None:
        found["classifier"] = _classifier(words, model, n, cond, dtype)
    elif words.classifier_label:
        raise ValueError("--classifier-label needs --classifier, the folder of a classifier.")
    return found


def _classifier(
    words: GuidanceWords, model: Model, n: int, cond: dict[str, Any] | None, dtype: torch.dtype | None
) -> ClassifierTarget:
    from undiffuse.metrics.classifier import load_classifier
    from undiffuse.models.conditions import fit_conditions
    from undiffuse.models.guided import ClassifierTarget
    from undiffuse.spec import DataSpec

    assert words.classifier is not None
    network = load_classifier(words.classifier).to(model.device, dtype).eval()
    config = network.config
    if tuple(config.shape) != tuple(model.spec.shape):
        raise ValueError(
            f"classifier {words.classifier!r} is of images {config.shape}; this model makes {model.spec.shape}."
        )
    judged = DataSpec(kind="image", shape=config.shape, classes=config.classes)
    asked = read_conditions(words.classifier_label, [], n, judged) if words.classifier_label else None
    labels = (asked or {}).get("label")
    if labels is None and model.spec.classes == config.classes:
        labels = (cond or {}).get("label")
    if labels is None:
        raise ValueError("--classifier needs --classifier-label here: no label of its classes was asked for.")
    numbers = fit_conditions({"label": labels}, n, judged, model.device)["label"]
    return ClassifierTarget(network, numbers, words.classifier_scale)

"""Floor 2: guidance. Wrappers that turn a conditional denoiser into one that follows its condition harder."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, {"ClassifierFreeGuidance": "undiffuse.guidance.classifier_free:ClassifierFreeGuidance"}
)

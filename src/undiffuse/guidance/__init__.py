"""Floor 2: guidance. Wrappers that change what a denoiser answers; they compose in any order."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Autoguidance": "undiffuse.guidance.autoguidance:Autoguidance",
        "ClassifierFreeGuidance": "undiffuse.guidance.classifier_free:ClassifierFreeGuidance",
        "ClassifierGuidance": "undiffuse.guidance.classifier:ClassifierGuidance",
        "Contrast": "undiffuse.guidance.contrast:Contrast",
        "Guidance": "undiffuse.guidance.guidance:Guidance",
        "Thresholding": "undiffuse.guidance.thresholding:Thresholding",
    },
)

"""Floor 2: guidance. Wrappers that change what a denoiser answers; they compose in any order."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Autoguidance": "undiffuse.guidance.autoguidance:Autoguidance",
        "ClassifierFreeGuidance": "undiffuse.guidance.classifier_free:ClassifierFreeGuidance",
        "ClassifierGuidance": "undiffuse.guidance.classifier:ClassifierGuidance",
        "Contrast": "undiffuse.guidance.contrast:Contrast",
        "GradientPush": "undiffuse.guidance.push:GradientPush",
        "Guidance": "undiffuse.guidance.guidance:Guidance",
        "JFPS": "undiffuse.guidance.covariance:JFPS",
        "MMPS": "undiffuse.guidance.covariance:MMPS",
        "PiGDM": "undiffuse.guidance.measurement:PiGDM",
        "Proximal": "undiffuse.guidance.measurement:Proximal",
        "TMPD": "undiffuse.guidance.covariance:TMPD",
        "Sharpen": "undiffuse.guidance.categorical:Sharpen",
        "Temperature": "undiffuse.guidance.temperature:Temperature",
        "Thresholding": "undiffuse.guidance.thresholding:Thresholding",
        "TopK": "undiffuse.guidance.temperature:TopK",
        "Truncate": "undiffuse.guidance.categorical:Truncate",
    },
)

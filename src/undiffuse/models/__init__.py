"""Floor 3: `Model`, the bundle of denoiser, data description and defaults, in memory and on disk."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BUILTIN": "undiffuse.models.bundle:BUILTIN",
        "ClassifierTarget": "undiffuse.models.guided:ClassifierTarget",
        "Model": "undiffuse.models.model:Model",
        "check_model": "undiffuse.models.checks:check_model",
        "load": "undiffuse.models.bundle:load",
    },
)

"""Floor 3: models of diffusers as ours. Their networks, encoders and adapters are wrapped, never rewritten."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FAMILIES": "undiffuse.pretrained.families:FAMILIES",
        "ConsistencyMap": "undiffuse.pretrained.consistency:ConsistencyMap",
        "DiffusersDenoiser": "undiffuse.pretrained.denoiser:DiffusersDenoiser",
        "DiffusersNetwork": "undiffuse.networks.diffusers_network:DiffusersNetwork",
        "PretrainedOptions": "undiffuse.pretrained.options:PretrainedOptions",
    },
)

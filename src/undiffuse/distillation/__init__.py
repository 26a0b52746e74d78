"""Floor 4: from models of many steps to models of few."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CTM": "undiffuse.distillation.ctm:CTM",
        "Accelerated": "undiffuse.distillation.acceleration:Accelerated",
        "Consistency": "undiffuse.distillation.consistency:Consistency",
        "DMD": "undiffuse.distillation.dmd:DMD",
        "FlowMapObjective": "undiffuse.distillation.objective:FlowMapObjective",
        "METHODS": "undiffuse.distillation.methods:METHODS",
        "MeanFlow": "undiffuse.distillation.meanflow:MeanFlow",
        "MMDObjective": "undiffuse.distillation.mmd:MMDObjective",
        "MMDOptions": "undiffuse.distillation.mmd_options:MMDOptions",
        "Progressive": "undiffuse.distillation.progressive:Progressive",
        "Reflow": "undiffuse.distillation.reflow:Reflow",
        "SCM": "undiffuse.distillation.scm:SCM",
        "Shortcut": "undiffuse.distillation.shortcut:Shortcut",
        "Sampler": "undiffuse.distillation.mmd:Sampler",
        "accelerate": "undiffuse.distillation.acceleration:accelerate",
        "distill": "undiffuse.distillation.few_steps:distill",
    },
)

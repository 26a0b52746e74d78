"""Floor 4: objectives, laws of time, weights, the trainer, and what a run writes."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CategoricalELBO": "undiffuse.training.categorical:CategoricalELBO",
        "DenoisingObjective": "undiffuse.training.denoising:DenoisingObjective",
        "FrameTimes": "undiffuse.training.time_samplers:FrameTimes",
        "Losses": "undiffuse.training.objectives:Losses",
        "LossWeight": "undiffuse.training.weights:LossWeight",
        "MaskedELBO": "undiffuse.training.categorical:MaskedELBO",
        "Objective": "undiffuse.training.objectives:Objective",
        "Plan": "undiffuse.training.planning:Plan",
        "PowerEMA": "undiffuse.training.ema:PowerEMA",
        "Recipe": "undiffuse.training.recipe:Recipe",
        "Run": "undiffuse.training.run:Run",
        "TimeSampler": "undiffuse.training.time_samplers:TimeSampler",
        "TrainOptions": "undiffuse.training.options:TrainOptions",
        "Validation": "undiffuse.training.validation:Validation",
        "Trainer": "undiffuse.training.trainer:Trainer",
        "choose_recipe": "undiffuse.training.recipe:choose_recipe",
        "make_objective": "undiffuse.training.build:make_objective",
        "reconstruct_ema": "undiffuse.training.posthoc:reconstruct_ema",
        "sweep_ema": "undiffuse.training.ema_sweep:sweep_ema",
        "plan": "undiffuse.training.planning:plan",
        "read_log": "undiffuse.training.log:read_log",
        "refit_codebook": "undiffuse.training.refit:refit_codebook",
        "train_codec": "undiffuse.training.codec_run:train_codec",
        "train": "undiffuse.training.run:train",
    },
)

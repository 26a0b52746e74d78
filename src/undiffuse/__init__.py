"""undiffuse: one denoiser, every task.

    import undiffuse as ud

    model = ud.load("digits")
    images = model.sample(16, seed=0)
    run = ud.train("photos/", out="runs/photos")

Every public name is resolved on first use, so importing this package costs next to nothing and does not
import torch. `dir(undiffuse)` lists the names.
"""

from __future__ import annotations

from undiffuse._lazy import lazy

__version__ = "0.1.0"

PUBLIC = {
    "CategoricalProcess": "undiffuse.process:CategoricalProcess",
    "ClassifierFreeGuidance": "undiffuse.guidance:ClassifierFreeGuidance",
    "DataSpec": "undiffuse.spec:DataSpec",
    "DiffusionClassifier": "undiffuse.tasks.classify:DiffusionClassifier",
    "EmpiricalDenoiser": "undiffuse.denoisers:EmpiricalDenoiser",
    "FeatureEncoder": "undiffuse.tasks.features:FeatureEncoder",
    "GaussianDenoiser": "undiffuse.denoisers:GaussianDenoiser",
    "GaussianProcess": "undiffuse.process:GaussianProcess",
    "JointDenoiser": "undiffuse.denoisers:JointDenoiser",
    "KeyedNoise": "undiffuse.noise:KeyedNoise",
    "MixtureDenoiser": "undiffuse.denoisers:MixtureDenoiser",
    "Model": "undiffuse.models:Model",
    "NetworkDenoiser": "undiffuse.denoisers:NetworkDenoiser",
    "Reschedule": "undiffuse.denoisers:Reschedule",
    "UndiffuseError": "undiffuse.errors:UndiffuseError",
    "accelerate": "undiffuse.distillation:accelerate",
    "bench_match": "undiffuse.tasks.match:bench_match",
    "bench_compose": "undiffuse.analysis.compositionality:bench_compose",
    "bench_restore": "undiffuse.tasks.restore:bench_restore",
    "classify": "undiffuse.tasks.classify:classify",
    "decode_noise": "undiffuse.analysis:decode_noise",
    "distill": "undiffuse.distillation:distill",
    "domain_gap": "undiffuse.analysis.compositionality:domain_gap",
    "encode_noise": "undiffuse.analysis:encode_noise",
    "evaluate": "undiffuse.metrics:evaluate",
    "features": "undiffuse.tasks.features:features",
    "inpaint": "undiffuse.tasks:inpaint",
    "interpolate": "undiffuse.tasks:interpolate",
    "learn_weights": "undiffuse.analysis.compositionality:learn_weights",
    "load": "undiffuse.models:load",
    "log_likelihood": "undiffuse.analysis:log_likelihood",
    "make_grid": "undiffuse.process:make_grid",
    "make_schedule": "undiffuse.process:make_schedule",
    "make_solver": "undiffuse.sampling:make_solver",
    "match": "undiffuse.tasks.match:match",
    "match_dense": "undiffuse.tasks.match:match_dense",
    "match_texts": "undiffuse.tasks.classify:match_texts",
    "probe": "undiffuse.tasks.features:probe",
    "probe_search": "undiffuse.tasks.features:probe_search",
    "refit_codebook": "undiffuse.training:refit_codebook",
    "restore": "undiffuse.tasks.restore:restore",
    "sample": "undiffuse.sampling:sample",
    "swap": "undiffuse.tasks.match:swap",
    "self_bench": "undiffuse.analysis.compositionality:self_bench",
    "train": "undiffuse.training:train",
    "train_codec": "undiffuse.training:train_codec",
    # sub-packages
    "analysis": "undiffuse.analysis",
    "config": "undiffuse.config",
    "data": "undiffuse.data",
    "denoisers": "undiffuse.denoisers",
    "distillation": "undiffuse.distillation",
    "errors": "undiffuse.errors",
    "events": "undiffuse.events",
    "guidance": "undiffuse.guidance",
    "images": "undiffuse.images",
    "metrics": "undiffuse.metrics",
    "models": "undiffuse.models",
    "networks": "undiffuse.networks",
    "noise": "undiffuse.noise",
    "operators": "undiffuse.operators",
    "pretrained": "undiffuse.pretrained",
    "process": "undiffuse.process",
    "report": "undiffuse.report",
    "sampling": "undiffuse.sampling",
    "spec": "undiffuse.spec",
    "tasks": "undiffuse.tasks",
    "training": "undiffuse.training",
}
"""Public name -> "module:attribute", or "module" for a sub-package. All of them resolve on first use."""

__getattr__, __dir__, __all__ = lazy(__name__, PUBLIC)

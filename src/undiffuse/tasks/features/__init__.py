"""What the inside of a diffusion model says about data: features, probes on them, and the search for the best block."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FeatureEncoder": "undiffuse.tasks.features.encoder:FeatureEncoder",
        "FeatureTable": "undiffuse.tasks.features.table:FeatureTable",
        "FeatureTransformer": "undiffuse.tasks.features.transformer:FeatureTransformer",
        "HeadOptions": "undiffuse.tasks.features.options:HeadOptions",
        "ProbeClassifier": "undiffuse.tasks.features.probing:ProbeClassifier",
        "ProbeSearch": "undiffuse.tasks.features.search:ProbeSearch",
        "RawItems": "undiffuse.tasks.features.baselines:RawItems",
        "Target": "undiffuse.tasks.features.transferring:Target",
        "features": "undiffuse.tasks.features.table:features",
        "few_label_curve": "undiffuse.tasks.features.few_labels:few_label_curve",
        "layers_of": "undiffuse.tasks.features.layers:layers_of",
        "load_probe": "undiffuse.tasks.features.probing:load_probe",
        "probe": "undiffuse.tasks.features.probing:probe",
        "probe_search": "undiffuse.tasks.features.search:probe_search",
        "transfer": "undiffuse.tasks.features.transferring:transfer",
        "untrained": "undiffuse.tasks.features.baselines:untrained",
    },
)

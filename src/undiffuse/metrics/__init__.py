"""Floor 3: how good is a model? Distances between sets, each beside its real-v-real floor, and `evaluate`.

Metrics are plain functions of arrays or tensors in data units, computed in float64.
"""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Agreement": "undiffuse.metrics.agreement:Agreement",
        "ClassifierFeatures": "undiffuse.metrics.features:ClassifierFeatures",
        "Evaluation": "undiffuse.metrics.results:Evaluation",
        "FeatureExtractor": "undiffuse.metrics.features:FeatureExtractor",
        "FloorRatio": "undiffuse.metrics.floor:FloorRatio",
        "LabelClassifier": "undiffuse.metrics.agreement:LabelClassifier",
        "Memorisation": "undiffuse.metrics.neighbours:Memorisation",
        "NGram": "undiffuse.metrics.text:NGram",
        "PCAFeatures": "undiffuse.metrics.features:PCAFeatures",
        "Row": "undiffuse.metrics.results:Row",
        "SupportVectorClassifier": "undiffuse.metrics.agreement:SupportVectorClassifier",
        "bigram_distance": "undiffuse.metrics.text:bigram_distance",
        "bits_per_character": "undiffuse.metrics.text:bits_per_character",
        "energy_distance": "undiffuse.metrics.energy:energy_distance",
        "evaluate": "undiffuse.metrics.evaluation:evaluate",
        "frechet_distance": "undiffuse.metrics.frechet:frechet_distance",
        "frechet_from_moments": "undiffuse.metrics.frechet:frechet_from_moments",
        "frechet_ratio": "undiffuse.metrics.frechet:frechet_ratio",
        "label_agreement": "undiffuse.metrics.agreement:label_agreement",
        "memorisation": "undiffuse.metrics.neighbours:memorisation",
        "nearest_neighbours": "undiffuse.metrics.neighbours:nearest_neighbours",
        "ngram_bits": "undiffuse.metrics.text:ngram_bits",
        "ratio_to_floor": "undiffuse.metrics.floor:ratio_to_floor",
        "sliced_wasserstein": "undiffuse.metrics.energy:sliced_wasserstein",
        "unigram_entropy": "undiffuse.metrics.text:unigram_entropy",
    },
)

"""Classification by denoising: the condition under which an item is denoised best wins. No training, any candidates."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Classification": "undiffuse.tasks.classify.results:Classification",
        "DiffusionClassifier": "undiffuse.tasks.classify.estimator:DiffusionClassifier",
        "ErrorTable": "undiffuse.tasks.classify.table:ErrorTable",
        "TextMatches": "undiffuse.tasks.classify.matching:TextMatches",
        "TimeWeights": "undiffuse.tasks.classify.weights:TimeWeights",
        "classify": "undiffuse.tasks.classify.run:classify",
        "error_table": "undiffuse.tasks.classify.errors:error_table",
        "fit_temperature": "undiffuse.tasks.classify.temperature:fit_temperature",
        "match_texts": "undiffuse.tasks.classify.matching:match_texts",
    },
)

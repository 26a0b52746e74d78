"""Floor 5: tasks, what people do with a model beyond sampling. `restore`: undo what an operator did to data;
`completion`: fill what is missing of texts, rows and pictures, with models of tokens; `interpolation`: items between
two others, likewise.
"""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Completion": "undiffuse.tasks.completion:Completion",
        "RestoreResult": "undiffuse.tasks.restore.restorer:RestoreResult",
        "Restorer": "undiffuse.tasks.restore.restorer:Restorer",
        "inpaint": "undiffuse.tasks.completion:inpaint",
        "interpolate": "undiffuse.tasks.interpolation:interpolate",
    },
)

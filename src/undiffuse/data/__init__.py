"""Floor 3: data sets. Pictures, arrays, text and built-in samples, decoded once and batched by indexing.

Data must fit in memory in this version; what does not is refused before it is read.
`open_data` looks at what it is given and returns a `Dataset`; `split` holds a part of it out.
"""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DataOptions": "undiffuse.data.options:DataOptions",
        "Dataset": "undiffuse.data.dataset:Dataset",
        "Problem": "undiffuse.data.dataset:Problem",
        "TensorDataset": "undiffuse.data.dataset:TensorDataset",
        "TextDataset": "undiffuse.data.text:TextDataset",
        "decode_text": "undiffuse.data.text:decode_text",
        "encode_text": "undiffuse.data.text:encode_text",
        "open_data": "undiffuse.data.open:open_data",
        "split": "undiffuse.data.holdout:split",
    },
)

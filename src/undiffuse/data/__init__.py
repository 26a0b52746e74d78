"""Floor 3: data sets. What fits into memory is decoded once and batched by indexing; the rest is read while training.

`open_data` looks at what it is given and returns a `Dataset`; `split` holds a part of it out.
"""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "LazyDataset": "undiffuse.data.lazy:LazyDataset",
        "StreamDataset": "undiffuse.data.streams:StreamDataset",
        "DataOptions": "undiffuse.data.options:DataOptions",
        "Dataset": "undiffuse.data.dataset:Dataset",
        "Problem": "undiffuse.data.dataset:Problem",
        "TensorDataset": "undiffuse.data.dataset:TensorDataset",
        "TextDataset": "undiffuse.data.text:TextDataset",
        "decode_rows": "undiffuse.data.categories:decode_rows",
        "decode_text": "undiffuse.data.text:decode_text",
        "encode_text": "undiffuse.data.text:encode_text",
        "open_data": "undiffuse.data.open:open_data",
        "write_rows": "undiffuse.data.categories:write_rows",
        "split": "undiffuse.data.holdout:split",
    },
)

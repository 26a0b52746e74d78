"""Floor 1: networks, their conditioners, and hooks into them. They know nothing of schedules."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "MLP": "undiffuse.networks.mlp:MLP",
        "Backbone": "undiffuse.networks.backbone:Backbone",
        "Conditioners": "undiffuse.networks.conditioners:Conditioners",
        "CrossAttention": "undiffuse.networks.attention:CrossAttention",
        "DiT": "undiffuse.networks.dit:DiT",
        "DiTOptions": "undiffuse.networks.options:DiTOptions",
        "EmbeddingConditioner": "undiffuse.networks.sequences:EmbeddingConditioner",
        "Embedded": "undiffuse.networks.embedded:Embedded",
        "LabelConditioner": "undiffuse.networks.conditioners:LabelConditioner",
        "MapConditioner": "undiffuse.networks.maps:MapConditioner",
        "MLPOptions": "undiffuse.networks.options:MLPOptions",
        "TextConditioner": "undiffuse.networks.sequences:TextConditioner",
        "Transformer": "undiffuse.networks.transformer:Transformer",
        "TransformerOptions": "undiffuse.networks.options:TransformerOptions",
        "UNet": "undiffuse.networks.unet:UNet",
        "UNetOptions": "undiffuse.networks.options:UNetOptions",
        "VectorConditioner": "undiffuse.networks.conditioners:VectorConditioner",
        "block_map": "undiffuse.networks.block_maps:block_map",
        "build_network": "undiffuse.networks.build:build_network",
        "capture": "undiffuse.networks.hooks:capture",
        "compile_blocks": "undiffuse.networks.compilation:compile_blocks",
        "edit": "undiffuse.networks.hooks:edit",
        "inflate": "undiffuse.networks.inflation:inflate",
        "make_conditioners": "undiffuse.networks.conditioners:make_conditioners",
        "math_attention": "undiffuse.networks.attention:math_attention",
        "tokens_to_map": "undiffuse.networks.block_maps:tokens_to_map",
    },
)

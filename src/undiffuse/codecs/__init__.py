"""Floor 2: codecs, between data and the smaller latents that a denoiser can work on instead."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Autoencoder": "undiffuse.codecs.autoencoder:Autoencoder",
        "Codec": "undiffuse.codecs.codec:Codec",
        "PatchPCA": "undiffuse.codecs.pca:PatchPCA",
        "PretrainedCodec": "undiffuse.codecs.pretrained:PretrainedCodec",
        "PretrainedVQ": "undiffuse.codecs.pretrained:PretrainedVQ",
        "Reservoir": "undiffuse.codecs.clustering:Reservoir",
        "TokenCodec": "undiffuse.codecs.quantised:TokenCodec",
        "VQCodec": "undiffuse.codecs.vq:VQCodec",
        "build_codec": "undiffuse.codecs.build:build_codec",
        "codec_from_json": "undiffuse.codecs.build:codec_from_json",
        "cluster": "undiffuse.codecs.clustering:cluster",
        "codec_to_json": "undiffuse.codecs.build:codec_to_json",
    },
)

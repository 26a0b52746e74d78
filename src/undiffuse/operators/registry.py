"""Classes by the name that a file carries. Torch-free."""

from __future__ import annotations

KINDS: dict[str, str] = {
    "identity": "undiffuse.operators.diagonal:Identity",
    "diagonal": "undiffuse.operators.diagonal:Diagonal",
    "mask": "undiffuse.operators.diagonal:Mask",
    "separable": "undiffuse.operators.separable:Separable",
    "downsample": "undiffuse.operators.separable:Downsample",
    "blur": "undiffuse.operators.blur:Blur",
    "separable-blur": "undiffuse.operators.blur:SeparableBlur",
    "padded-blur": "undiffuse.operators.blur:PaddedBlur",
    "chain": "undiffuse.operators.compose:Chain",
    "linear-chain": "undiffuse.operators.compose:LinearChain",
    "stack": "undiffuse.operators.compose:Stack",
    "linear-stack": "undiffuse.operators.compose:LinearStack",
    "scaled": "undiffuse.operators.compose:Scaled",
    "per-frame": "undiffuse.operators.compose:PerFrame",
    "linear-per-frame": "undiffuse.operators.compose:LinearPerFrame",
    "svd-per-frame": "undiffuse.operators.compose:SVDPerFrame",
    "channel-mix": "undiffuse.operators.channels:ChannelMix",
    "sampled-transform": "undiffuse.operators.sensing:SampledTransform",
    "matrix": "undiffuse.operators.sensing:Matrix",
    "clip": "undiffuse.operators.pointwise:Clip",
    "quantise": "undiffuse.operators.pointwise:Quantise",
    "low-light": "undiffuse.operators.pointwise:LowLight",
    "haze": "undiffuse.operators.pointwise:Haze",
    "jpeg": "undiffuse.operators.jpeg:JPEG",
    "phase-retrieval": "undiffuse.operators.nonlinear:PhaseRetrieval",
    "network-blur": "undiffuse.operators.nonlinear:NetworkBlur",
    "mri": "undiffuse.operators.mri:MRI",
    "single-coil-mri": "undiffuse.operators.mri:SingleCoilMRI",
    "radon": "undiffuse.operators.ct:Radon",
    "transmission": "undiffuse.operators.ct:Transmission",
    "temporal-average": "undiffuse.operators.compose:TemporalAverage",
}
"""Kind -> "module:Class"."""

"""Measurement operators and noise models: what a restoration undoes.

    from undiffuse import operators as ops

    blur = ops.gaussian_blur((3, 64, 64), sigma=2.0)
    small = ops.Downsample((3, 64, 64), 4) @ blur           # blur first
    y = small(x)
    same = ops.parse_operator("blur:gaussian,sigma=2|downsample:4", (3, 64, 64))

`x` is (B, *in_shape) and `y` is (B, *out_shape), in model units (pictures in [-1, 1]).
"""

from undiffuse._lazy import lazy

PUBLIC = {
    "Blur": "undiffuse.operators.blur:Blur",
    "ChannelMix": "undiffuse.operators.channels:ChannelMix",
    "Clip": "undiffuse.operators.pointwise:Clip",
    "Diagonal": "undiffuse.operators.diagonal:Diagonal",
    "Downsample": "undiffuse.operators.separable:Downsample",
    "GaussianNoise": "undiffuse.operators.noise:GaussianNoise",
    "Haze": "undiffuse.operators.pointwise:Haze",
    "Identity": "undiffuse.operators.diagonal:Identity",
    "JPEG": "undiffuse.operators.jpeg:JPEG",
    "LaplaceNoise": "undiffuse.operators.noise:LaplaceNoise",
    "LinearOperator": "undiffuse.operators.base:LinearOperator",
    "LowLight": "undiffuse.operators.pointwise:LowLight",
    "MRI": "undiffuse.operators.mri:MRI",
    "Mask": "undiffuse.operators.diagonal:Mask",
    "Matrix": "undiffuse.operators.sensing:Matrix",
    "Measurement": "undiffuse.operators.files:Measurement",
    "NOISES": "undiffuse.operators.catalogue:NOISES",
    "NetworkBlur": "undiffuse.operators.nonlinear:NetworkBlur",
    "NoNoise": "undiffuse.operators.noise:NoNoise",
    "NoiseModel": "undiffuse.operators.noise:NoiseModel",
    "OPERATORS": "undiffuse.operators.catalogue:OPERATORS",
    "Operator": "undiffuse.operators.base:Operator",
    "PaddedBlur": "undiffuse.operators.blur:PaddedBlur",
    "PhaseRetrieval": "undiffuse.operators.nonlinear:PhaseRetrieval",
    "PoissonGaussianNoise": "undiffuse.operators.noise:PoissonGaussianNoise",
    "PoissonNoise": "undiffuse.operators.noise:PoissonNoise",
    "Quantise": "undiffuse.operators.pointwise:Quantise",
    "Radon": "undiffuse.operators.ct:Radon",
    "SVDOperator": "undiffuse.operators.base:SVDOperator",
    "SaltPepperNoise": "undiffuse.operators.noise:SaltPepperNoise",
    "SampledTransform": "undiffuse.operators.sensing:SampledTransform",
    "Separable": "undiffuse.operators.separable:Separable",
    "SeparableBlur": "undiffuse.operators.blur:SeparableBlur",
    "SingleCoilMRI": "undiffuse.operators.mri:SingleCoilMRI",
    "SpeckleNoise": "undiffuse.operators.noise:SpeckleNoise",
    "TemporalAverage": "undiffuse.operators.compose:TemporalAverage",
    "Transmission": "undiffuse.operators.ct:Transmission",
    "UniformNoise": "undiffuse.operators.noise:UniformNoise",
    "bayer_mask": "undiffuse.operators.masks:bayer_mask",
    "box_mask": "undiffuse.operators.masks:box_mask",
    "chain": "undiffuse.operators.compose:chain",
    "colourise": "undiffuse.operators.channels:colourise",
    "conjugate_gradient": "undiffuse.operators.krylov:conjugate_gradient",
    "ct_scan": "undiffuse.operators.ct:ct_scan",
    "estimate_coils": "undiffuse.operators.mri:estimate_coils",
    "freeform_mask": "undiffuse.operators.masks:freeform_mask",
    "from_deepinv": "undiffuse.operators.adapters:from_deepinv",
    "gaussian_blur": "undiffuse.operators.blur:gaussian_blur",
    "gaussian_matrix": "undiffuse.operators.sensing:gaussian_matrix",
    "half_mask": "undiffuse.operators.masks:half_mask",
    "haze": "undiffuse.operators.pointwise:haze",
    "kernel_blur": "undiffuse.operators.blur:kernel_blur",
    "lines_mask": "undiffuse.operators.masks:lines_mask",
    "load_operator": "undiffuse.operators.files:load_operator",
    "motion_blur": "undiffuse.operators.blur:motion_blur",
    "mri_scan": "undiffuse.operators.mri:mri_scan",
    "network_blur": "undiffuse.operators.nonlinear:network_blur",
    "pansharpen": "undiffuse.operators.channels:pansharpen",
    "parse_noise": "undiffuse.operators.parse:parse_noise",
    "parse_operator": "undiffuse.operators.parse:parse_operator",
    "per_frame": "undiffuse.operators.compose:per_frame",
    "project_simplex": "undiffuse.operators.simplex:project_simplex",
    "random_mask": "undiffuse.operators.masks:random_mask",
    "sampled": "undiffuse.operators.sensing:sampled",
    "save_operator": "undiffuse.operators.files:save_operator",
    "simulate_coils": "undiffuse.operators.mri:simulate_coils",
    "stack": "undiffuse.operators.compose:stack",
    "to_deepinv": "undiffuse.operators.adapters:to_deepinv",
    "uniform_blur": "undiffuse.operators.blur:uniform_blur",
    "with_phase": "undiffuse.operators.mri:with_phase",
}
"""Public name -> "module:attribute"."""

__getattr__, __dir__, __all__ = lazy(__name__, PUBLIC)

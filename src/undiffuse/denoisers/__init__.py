"""Floor 1: denoisers (given x_t at t, what is the posterior over x_0?), flow maps, and the exact oracles."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CategoricalDenoiser": "undiffuse.denoisers.categorical:CategoricalDenoiser",
        "EvidenceFree": "undiffuse.denoisers.evidence:EvidenceFree",
        "CategoricalPosterior": "undiffuse.denoisers.posterior:CategoricalPosterior",
        "Denoiser": "undiffuse.denoisers.base:Denoiser",
        "EachChannel": "undiffuse.denoisers.each_channel:EachChannel",
        "EachSlice": "undiffuse.denoisers.each_slice:EachSlice",
        "EmpiricalDenoiser": "undiffuse.denoisers.empirical:EmpiricalDenoiser",
        "FlowMap": "undiffuse.denoisers.flow_map:FlowMap",
        "GaussianDenoiser": "undiffuse.denoisers.mixture:GaussianDenoiser",
        "GaussianFlowMap": "undiffuse.denoisers.flow_map:GaussianFlowMap",
        "JointDenoiser": "undiffuse.denoisers.joint:JointDenoiser",
        "LowRankMixtureDenoiser": "undiffuse.denoisers.mixture:LowRankMixtureDenoiser",
        "MixtureDenoiser": "undiffuse.denoisers.mixture:MixtureDenoiser",
        "NetworkFlowMap": "undiffuse.denoisers.network_flow_map:NetworkFlowMap",
        "NetworkDenoiser": "undiffuse.denoisers.network:NetworkDenoiser",
        "Posterior": "undiffuse.denoisers.posterior:Posterior",
        "Reschedule": "undiffuse.denoisers.reschedule:Reschedule",
        "Wrapper": "undiffuse.denoisers.base:Wrapper",
    },
)

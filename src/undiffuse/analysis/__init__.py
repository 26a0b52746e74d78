"""Floor 5: what a model says about given data: likelihoods, the noise behind an item, checks of its answers."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Likelihood": "undiffuse.analysis.results:Likelihood",
        "LikelihoodOptions": "undiffuse.analysis.options:LikelihoodOptions",
        "asymmetry": "undiffuse.analysis.diagnostics:asymmetry",
        "SolverChoice": "undiffuse.analysis.solver_results:SolverChoice",
        "cka": "undiffuse.analysis.similarity:cka",
        "compare_layers": "undiffuse.analysis.similarity:compare_layers",
        "choose_solver": "undiffuse.analysis.solver_choice:choose_solver",
        "continuity_residual": "undiffuse.analysis.diagnostics:continuity_residual",
        "decode_noise": "undiffuse.analysis.encoding:decode_noise",
        "denoising_bound": "undiffuse.analysis.gaussian_bound:denoising_bound",
        "encode_noise": "undiffuse.analysis.encoding:encode_noise",
        "flow_log_prob": "undiffuse.analysis.probability_flow:flow_log_prob",
        "log_likelihood": "undiffuse.analysis.likelihood:log_likelihood",
        "rademacher": "undiffuse.analysis.probability_flow:rademacher",
        "score_matching": "undiffuse.analysis.score_objectives:score_matching",
    },
)

"""Floor 2: the sampling loop, solvers, plans and constraints."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DDIM": "undiffuse.sampling.ddim:DDIM",
        "DDPM": "undiffuse.sampling.ddim:DDPM",
        "SOLVERS": "undiffuse.sampling.registry:SOLVERS",
        "AffineSolver": "undiffuse.sampling.solver:AffineSolver",
        "Ancestral": "undiffuse.sampling.ancestral:Ancestral",
        "Constraint": "undiffuse.sampling.constraints:Constraint",
        "DPMpp2M": "undiffuse.sampling.dpm_multistep:DPMpp2M",
        "EDMHeun": "undiffuse.sampling.euler:EDMHeun",
        "Euler": "undiffuse.sampling.euler:Euler",
        "FirstHitting": "undiffuse.sampling.first_hitting:FirstHitting",
        "Heun": "undiffuse.sampling.euler:Heun",
        "Known": "undiffuse.sampling.constraints:Known",
        "Replacement": "undiffuse.sampling.constraints:Replacement",
        "SampleResult": "undiffuse.sampling.loop:SampleResult",
        "Solver": "undiffuse.sampling.solver:Solver",
        "make_solver": "undiffuse.sampling.registry:make_solver",
        "sample": "undiffuse.sampling.loop:sample",
        "sample_flow_map": "undiffuse.sampling.flow_map:sample_flow_map",
    },
)

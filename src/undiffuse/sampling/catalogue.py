"""What every solver is, in words: the table of `undiffuse solvers`. Torch-free, so that it is there at once.

Every name of `SOLVERS` has a row. The columns that the classes know themselves (order, evaluations, randomness, needs)
are held to them by a test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SolverFacts:
    """A row of the table.

    Args:
        order: Order of convergence.
        evaluations: Evaluations per step, for people.
        stochastic: Whether steps draw noise.
        data: "data" or "tokens".
        needs: What it needs beyond a denoiser and a grid; empty for nothing.
        what: What it is, in a line.
        source: Where it is from.
        grid: The grid that it was published with, which `grid="published"` takes; empty for none.
    """

    order: int
    evaluations: str
    stochastic: bool
    data: str
    needs: str
    what: str
    source: str
    grid: str = ""

    @property
    def is_ode(self) -> bool:
        """Whether it follows the probability-flow ODE of a denoiser, so that its error to a fine run is defined."""
        return self.data == "data" and not self.stochastic and self.needs in ("", "no grid")

    @property
    def short_source(self) -> str:
        """Where it is from, as a number or a name."""
        return self.source.split(", ")[-1]

    @property
    def makes_times(self) -> bool:
        """Whether it makes its own times, so that neither steps nor a grid are given."""
        return "no grid" in self.needs


def _ode(order: int, what: str, source: str, evaluations: str = "1", needs: str = "", *, grid: str = "") -> SolverFacts:
    return SolverFacts(order, evaluations, False, "data", needs, what, source, grid)


def _sde(order: int, what: str, source: str, evaluations: str = "1", needs: str = "", *, grid: str = "") -> SolverFacts:
    return SolverFacts(order, evaluations, True, "data", needs, what, source, grid)


_TWO, _THREE, _FOUR = (f"{n} (1 in a step to 0)" for n in (2, 3, 4))
_DPM, _DPMPP = "Lu et al. 2022, arXiv:2206.00927", "Lu et al. 2022, arXiv:2211.01095"
_EDM, _DEIS = "Karras et al. 2022, arXiv:2206.00364", "Zhang and Chen 2022, arXiv:2204.13902"
_UNIPC, _SONG = "Zhao et al. 2023, arXiv:2302.04867", "Song et al. 2020, arXiv:2011.13456"

CATALOGUE: dict[str, SolverFacts] = {
    "ddim": _ode(1, "Euler in noise over signal; eta > 0 adds noise", "Song et al. 2020, arXiv:2010.02502", grid="t"),
    "ddpm": _sde(1, "ancestral sampling as first published", "Ho et al. 2020, arXiv:2006.11239", grid="t"),
    "ddpm-learned": _sde(
        1,
        "ancestral sampling with a variance per element",
        "Nichol and Dhariwal 2021, arXiv:2102.09672",
        needs="a variance head",
        grid="t",
    ),
    "euler": _ode(1, "Euler in t; ddim where the schedule is linear in t (rf)", _SONG),
    "heun": _ode(2, "the average of two slopes in t", _SONG, _TWO),
    "edm-heun": _ode(2, "Heun in noise over signal; churn > 0 adds noise", _EDM, _TWO, grid="karras"),
    "euler-ancestral": _sde(
        1, "ddim with eta = 1, as k-diffusion's Euler ancestral", "Song et al. 2020, arXiv:2010.02502", grid="t"
    ),
    "lcm": _sde(1, "to the data and back up with noise alone, for LCM", "Luo et al. 2023, arXiv:2310.04378", grid="t"),
    "tcd": _sde(1, "ddim below the end of a step, then noise, for TCD", "Zheng et al. 2024, arXiv:2402.19159"),
    "dpm++2m": _ode(2, "two answers, exact in the linear part: the default", _DPMPP, grid="logsnr"),
    "dpm++3m": _ode(3, "three answers, with the third-order term corrected", _DPMPP, grid="logsnr"),
    "dpm-solver-2m": _ode(2, "dpm++2m on the noise instead of the data", _DPM, grid="logsnr"),
    "dpm-solver-3m": _ode(3, "dpm++3m on the noise instead of the data", _DPM, grid="logsnr"),
    "sde-dpm++1": _sde(1, "one answer, exact in the linear part, with noise", _DPMPP, grid="logsnr"),
    "sde-dpm++2m": _sde(2, "dpm++2m with noise", _DPMPP, grid="logsnr"),
    "sde-dpm++3m": _sde(3, "dpm++3m with noise; of order 2 in the variance", _DPMPP, grid="logsnr"),
    "deis-2": _ode(2, "Adams-Bashforth with a polynomial in t, two answers", _DEIS, grid="quadratic"),
    "deis-3": _ode(3, "Adams-Bashforth with a polynomial in t, three answers", _DEIS, grid="quadratic"),
    "lms": _ode(4, "Adams-Bashforth with a polynomial in noise over signal, four answers", _EDM),
    "ipndm": _ode(4, "Adams-Bashforth with classical coefficients, four answers", _DEIS),
    "unipc": _ode(2, "dpm++2m and a corrector that reuses the next answer", _UNIPC, grid="logsnr"),
    "unipc-3": _ode(3, "dpm++3m and a corrector that reuses the next answer", _UNIPC, grid="logsnr"),
    "dpm-solver-2": _ode(2, "one answer half-way in each step, on the noise", _DPM, _TWO, grid="logsnr"),
    "dpm2-ancestral": _sde(2, "dpm-solver-2 below the end of a step, then noise up to it", _EDM, _TWO),
    "dpm-solver-3": _ode(3, "two answers within each step, on the noise", _DPM, _THREE, grid="logsnr"),
    "dpm++2s": _ode(2, "one answer half-way in each step, on the data", _DPMPP, _TWO, grid="logsnr"),
    "dpm++3s": _ode(3, "two answers within each step, on the data", _DPMPP, _THREE, grid="logsnr"),
    "dpm-fast": _ode(
        3, "dpm-solver-3 for any number of evaluations", _DPM, "1 (steps of 3 together)", grid="logsnr, in threes"
    ),
    "rk4": _ode(4, "the classical Runge-Kutta step in t; for references", "Kutta 1901", _FOUR),
    "dpm-adaptive-12": _ode(2, "dpm-solver-2 that chooses its steps, per sample", _DPM, "adaptive", "no grid"),
    "dpm-adaptive-23": _ode(3, "dpm-solver-3 that chooses its steps, per sample", _DPM, "adaptive", "no grid"),
    "rk45": _ode(5, "Dormand-Prince in t that chooses its steps; for references", _SONG, "adaptive", "no grid"),
    "euler-maruyama": _sde(1, "Euler of the reverse SDE in t", _SONG, grid="t"),
    "pc-langevin": _sde(1, "an ancestral step, then Langevin steps", _SONG, _TWO, grid="t"),
    "annealed-langevin": _sde(
        1,
        "Langevin dynamics at each level",
        "Song and Ermon 2019, arXiv:1907.05600",
        "100 (1 more in a step to 0)",
        grid="logsnr",
    ),
    "flow-map": _ode(1, "jumps of a distilled model", "Boffi et al. 2024, arXiv:2406.07507", needs="a flow map"),
    "consistency": _sde(
        1, "jumps to the data and back up with noise", "Song et al. 2023, arXiv:2303.01469", needs="a flow map"
    ),
    "ancestral": SolverFacts(
        1, "1", True, "tokens", "tokens", "draws every token on a grid of times", "Austin et al. 2021, arXiv:2107.03006"
    ),
    "token-budget": SolverFacts(
        1,
        "by cap",
        True,
        "tokens",
        "tokens with a mask",
        "opens the expected number of masks, few at once, at random or pure places",
        "Tang et al. 2022, arXiv:2205.16007",
    ),
    "first-hitting": SolverFacts(
        1,
        "1",
        True,
        "tokens",
        "tokens with a mask; no grid",
        "opens masks one by one: exact",
        "Zheng et al. 2024, arXiv:2409.02908",
    ),
    "left-to-right": SolverFacts(
        1,
        "1",
        True,
        "tokens",
        "a causal network; no grid",
        "writes token after token: exact",
        "Bengio et al. 2003, JMLR 3",
    ),
}
"""Name -> what it is, in the order of `SOLVERS`."""

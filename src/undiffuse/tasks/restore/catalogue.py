"""What every restoration method is, in words: the table of `undiffuse solvers --restore`. Torch-free.

Every name of `RESTORERS` has a row; the columns that the classes know themselves are held to them by a test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestorerFacts:
    """A row of the table.

    Args:
        needs: What the operator must offer; see `restorer.NEEDS`.
        noise: Whether noise in y is accounted for; others reproduce it.
        gradient: Whether the network is differentiated.
        cost: Network passes per step, for people.
        what: What it is, in a line.
        source: Where it is from.
        experimental: Whether it is new and little tested.
    """

    needs: tuple[str, ...]
    noise: bool
    gradient: bool
    cost: str
    what: str
    source: str
    experimental: bool = False


_ONE, _BACK = "1", "1 and a backward pass"
_LINEAR, _PINV, _ANY = ("linear",), ("linear", "pinv"), ("differentiable",)

FACTS: dict[str, RestorerFacts] = {
    "mmps": RestorerFacts(
        _LINEAR,
        True,
        True,
        "1 and 6 backward passes",
        "the posterior's own covariance, by conjugate gradients: best calibrated",
        "Rozet et al. 2024, arXiv:2405.13712",
    ),
    "tmpd": RestorerFacts(
        _LINEAR,
        True,
        True,
        "1 and 17 backward passes",
        "the diagonal of that covariance in the measurement",
        "Boys et al. 2023, arXiv:2310.06721",
    ),
    "jfps": RestorerFacts(
        _LINEAR, True, False, _ONE, "a fixed covariance of the data", "Rozet et al. 2024, arXiv:2405.13712"
    ),
    "pigdm": RestorerFacts(
        ("pinv",),
        True,
        True,
        _BACK,
        "pseudo-inverse guidance of the mean, with the data's variance",
        "Song et al. 2023, ICLR 2023",
    ),
    "pigdm-step": RestorerFacts(
        ("pinv",),
        True,
        True,
        _BACK,
        "pseudo-inverse guidance of the step, as published; narrow where y is noisy",
        "Song et al. 2023, ICLR 2023",
    ),
    "diffpir": RestorerFacts(
        _LINEAR, True, False, _ONE, "a proximal step at every answer", "Zhu et al. 2023, arXiv:2305.08995"
    ),
    "dps": RestorerFacts(
        _ANY,
        True,
        True,
        _BACK,
        "a gradient step on the misfit; any operator, any noise, also latent",
        "Chung et al. 2022, arXiv:2209.14687",
    ),
    "ddrm": RestorerFacts(
        ("svd",), True, False, _ONE, "a step for each singular value", "Kawar et al. 2022, arXiv:2201.11793"
    ),
    "ddnm+": RestorerFacts(
        ("svd",),
        True,
        False,
        _ONE,
        "the null-space model for noisy y: ddrm with eta_b = 1",
        "Wang et al. 2022, arXiv:2212.00490",
    ),
    "snips": RestorerFacts(
        ("svd",),
        True,
        False,
        "5",
        "annealed Langevin steps, of a length of their own for each singular value",
        "Kawar et al. 2021, arXiv:2105.14951",
    ),
    "ddnm": RestorerFacts(
        _PINV, False, False, _ONE, "replaces what is measured in every answer", "Wang et al. 2022, arXiv:2212.00490"
    ),
    "dds": RestorerFacts(
        _LINEAR,
        True,
        False,
        _ONE,
        "conjugate gradients at every answer; MRI and CT",
        "Chung et al. 2023, arXiv:2303.05754",
    ),
    "diffusion-mbir": RestorerFacts(
        ("linear", "slices"),
        True,
        False,
        _ONE,
        "dds of volumes by a model of their slices, with total variation across them",
        "Chung et al. 2023, arXiv:2211.10655",
    ),
    "repaint": RestorerFacts(
        ("mask",), False, False, "10", "noisy replacement with resampling", "Lugmayr et al. 2022, arXiv:2201.09865"
    ),
    "ilvr": RestorerFacts(
        _PINV, False, False, _ONE, "noisy replacement of what the operator keeps", "Choi et al. 2021, arXiv:2108.02938"
    ),
    "score-mri": RestorerFacts(
        _LINEAR, False, False, "2", "predictor-corrector with data steps; MRI", "Chung and Ye 2022, arXiv:2110.05243"
    ),
    "mcg": RestorerFacts(
        _PINV, False, True, _BACK, "a manifold gradient and noisy replacement", "Chung et al. 2022, arXiv:2206.00941"
    ),
    "daps": RestorerFacts(
        _ANY,
        False,
        False,
        "5",
        "decoupled annealing with a Langevin chain at each level",
        "Zhang et al. 2024, arXiv:2407.01521",
    ),
    "daps-moments": RestorerFacts(
        _LINEAR,
        True,
        False,
        _ONE,
        "decoupled annealing with matched moments: exact covariance for analytic priors",
        "Zhang et al. 2024, arXiv:2407.01521",
    ),
    "red-diff": RestorerFacts(
        _ANY,
        True,
        False,
        _ONE,
        "optimises one answer; sharp and faithful, no uncertainty",
        "Mardani et al. 2023, arXiv:2305.04391",
    ),
    "red-diff-quality": RestorerFacts(
        _ANY, True, False, _ONE, "red-diff with steps that fade out at the end", "Mardani et al. 2023, arXiv:2305.04391"
    ),
    "gdp": RestorerFacts(
        _ANY,
        False,
        False,
        _ONE,
        "a gradient on the answer alone; can learn the light",
        "Fei et al. 2023, arXiv:2304.01247",
    ),
    "tds": RestorerFacts(
        _LINEAR,
        True,
        True,
        "128 particles",
        "a particle filter: exact in few dimensions",
        "Wu et al. 2023, arXiv:2306.17775",
    ),
    "psld": RestorerFacts(
        ("codec", "linear-pixels"),
        True,
        True,
        _BACK,
        "latent dps with a pull to what decodes well",
        "Rout et al. 2023, arXiv:2307.00619",
        True,
    ),
    "resample": RestorerFacts(
        ("codec", "differentiable"),
        False,
        False,
        _ONE,
        "fits latents to the measurement every few steps",
        "Song et al. 2023, arXiv:2307.08123",
        True,
    ),
    "supervised": RestorerFacts(
        (),
        True,
        False,
        _ONE,
        "a model trained for it, given y (SR3, ResShift, ...)",
        "Saharia et al. 2021, arXiv:2104.07636",
    ),
    "blind-dps": RestorerFacts(
        ("kernel",), True, True, _BACK, "dps that learns the blur's kernel", "Chung et al. 2022, arXiv:2211.10656", True
    ),
}
"""Name -> what it is, in the order of `RESTORERS`."""

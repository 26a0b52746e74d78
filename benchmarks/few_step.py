"""Few-step methods on points and digits: each is trained for a minute or two and sampled with 1, 2, 4, 8 evaluations.

    python benchmarks/few_step.py [--data mixture|gaussian|digits] [--steps 6000] [--methods consistency,scm]

The first row is the denoiser with DDIM; its 100 steps are the yardstick. What the figures are:
`undiffuse.papers.few_steps.compare`.
"""

from __future__ import annotations

from typing import get_args

from undiffuse.distillation import METHODS
from undiffuse.papers.few_steps import CHANCE, MANY, Points, Trained, compare
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options


def main() -> None:
    """Train, sample, print the table."""
    parser = script_options(__doc__ or "")
    parser.add_argument("--data", choices=get_args(Points), default="mixture")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps of the denoiser and of each map")
    parser.add_argument("--teacher-steps", type=int, help="of the denoiser, where that is another number")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys of the maps")
    options = parser.parse_args()
    steps = 20 if options.quick else options.steps
    found = compare(
        options.data,
        options.methods.split(","),
        steps,
        teacher_steps=None if options.quick else options.teacher_steps,
        students=options.set,
        heard=show,
    )
    floor = found[0].errors[MANY]
    rows = [
        Measure(f"{t.name}, {n} evaluation(s)", value, "", asked=asked(options.data, t, n, floor))
        for t in found
        for n, value in t.errors.items()
    ]
    said = "Errors of few-step methods on points or digits; how they are measured: undiffuse.papers.few_steps."
    settings = machine_settings(steps=steps, data=options.data, students=" ".join(options.set))
    publish(Results("Few steps", said, tuple(rows), settings), options.out)


def asked(data: str, trained: Trained, count: int, floor: float) -> float | None:
    """Return what one evaluation should reach: 5 % on the Gaussian; 4 times 100 steps of the ODE on the mixture."""
    if count != 1 or trained.name not in METHODS:
        return None
    if data == "gaussian":
        return 0.05
    if data == "digits":
        return None
    return 4 * max(floor, CHANCE) if trained.name in ("meanflow", "meanflow-training", "consistency-training") else None


def show(trained: Trained) -> None:
    """Print a line."""
    figures = "  ".join(f"{n}: {value:8.5f}" for n, value in trained.errors.items())
    print(f"{trained.name:22s} {trained.seconds:5.0f} s   {figures}", flush=True)


if __name__ == "__main__":
    main()

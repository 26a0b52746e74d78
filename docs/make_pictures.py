"""Make every picture of the documentation, and print the figures that its pages quote, as JSON.

    python docs/make_pictures.py [NAME ...] [--model FOLDER] [--out docs/pictures]

Needs nothing but the package: the built-in digits model, exact denoisers, and two short trainings.
All pictures but "choice" take about four minutes on one core, and that one five.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from drawing.canvas import Drawn, save
from drawing.of_models import (
    draw_choice,
    draw_digits,
    draw_guidance,
    draw_likelihoods,
    draw_readings,
    draw_trajectory,
    draw_tuned,
)
from drawing.of_perception import draw_classes, draw_features, draw_matched, draw_two_digits
from drawing.of_recipes import draw_recipes
from drawing.of_restoration import draw_operators, draw_photograph, draw_restored, draw_spread
from drawing.of_sampling import draw_distilled, draw_frames, draw_mixture, draw_solvers, draw_weights, draw_wrappers
from drawing.of_tokens import draw_codebook, draw_completion, draw_openings, draw_token_laws

import undiffuse as ud

OF_MODEL: dict[str, Callable[[ud.Model], Drawn]] = {
    "digits": draw_digits,
    "guidance": draw_guidance,
    "readings": draw_readings,
    "trajectory": draw_trajectory,
    "tuned": draw_tuned,
    "matched": draw_matched,
    "likelihoods": draw_likelihoods,
    "choice": draw_choice,
    "classes": draw_classes,
}


ALONE: dict[str, Callable[[], Drawn]] = {
    "solvers": draw_solvers,
    "wrappers": draw_wrappers,
    "frames": draw_frames,
    "weights": draw_weights,
    "mixture": draw_mixture,
    "distilled": draw_distilled,
    "codebook": draw_codebook,
    "token-laws": draw_token_laws,
    "openings": draw_openings,
    "completion": draw_completion,
    "spread": draw_spread,
    "restored": draw_restored,
    "photograph": draw_photograph,
    "operators": draw_operators,
    "recipes": draw_recipes,
    "features": draw_features,
    "two-digits": draw_two_digits,
}


def main() -> None:
    """Draw the pictures asked for, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join([*OF_MODEL, *ALONE])}; none: all")
    parser.add_argument("--model", default="digits", help="a model of the digits; default: the built-in one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    asked = parser.parse_args()
    unknown = set(asked.names) - {*OF_MODEL, *ALONE}
    if unknown:
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    numbers = {}
    for name in asked.names or [*OF_MODEL, *ALONE]:
        drawn = OF_MODEL[name](ud.load(asked.model)) if name in OF_MODEL else ALONE[name]()
        size = save(drawn.figure, asked.out / f"{name}.png")
        numbers[name] = {"bytes": size, **drawn.numbers}
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()

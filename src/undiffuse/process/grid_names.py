"""Names of grids. Torch-free, so that options can check them; `make_grid` makes the grids."""

from __future__ import annotations

from typing import Literal, get_args

from undiffuse.words import did_you_mean

GridShape = Literal["t", "logsnr", "exponential", "karras", "quadratic", "beta", "linspace", "leading", "trailing"]
PUBLISHED = "published"  # the grid that the solver was published with


def check_grid_name(name: str) -> None:
    """Refuse what names no grid on any schedule.

    Raises:
        ValueError: It is neither the name of a shape, nor "published", nor "logsnr:LOW:HIGH" or "logsnr:LOW:HIGH:BEND"
            with LOW < HIGH and BEND in (-1, 1).
    """
    known = (*get_args(GridShape), PUBLISHED)
    if name.startswith("logsnr:"):
        low, high, bend = read_limits(name)
        if not (low < high and abs(bend) < 1):
            raise ValueError(f"grid {name!r} needs LOW < HIGH, values of half log-SNR, and BEND in (-1, 1).")
    elif name not in known:
        near = did_you_mean(name, known)
        raise ValueError(
            f"grid {name!r} is unknown; choose one of {', '.join(known)}, logsnr:LOW:HIGH:BEND, or for samples falling "
            f"times such as 1,0.6,0.2,0.{near}"
        )


def read_limits(name: str) -> tuple[float, float, float]:
    """Return LOW, HIGH and BEND of "logsnr:LOW:HIGH:BEND", whose BEND is 0 where it is left out.

    Raises:
        ValueError: The name is not of that form.
    """
    numbers = name.split(":")[1:]
    try:
        low, high, bend = map(float, numbers if len(numbers) == 3 else [*numbers, "0"])
    except ValueError:
        raise ValueError(f"grid {name!r} is not of the form logsnr:LOW:HIGH or logsnr:LOW:HIGH:BEND.") from None
    return low, high, bend

"""Options of classification by denoising errors. Torch-free: `--help` reads this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args, get_type_hints

from undiffuse.limits import check_counts
from undiffuse.words import did_you_mean, option


@dataclass(frozen=True, kw_only=True)
class ErrorOptions:
    """How the error of a candidate is measured.

    Raises:
        ValueError: An unknown word, or a number out of range.
    """

    loss: Literal["l2", "l1", "huber", "rms"] = option(
        "l2", "mean square, mean absolute value, Huber's with delta 1, or the root of the mean square"
    )
    target: Literal["eps", "x0", "v", "velocity"] = option(
        "eps", "what the error is of: the noise, the data, v, or the flow's velocity"
    )
    spacing: Literal["auto", "t", "logsnr"] = option(
        "auto", "times uniform in t or in log-SNR; auto: logsnr for weight elbo, else t"
    )
    between: tuple[float, float] | None = option(None, "lowest and highest time; none: all")
    antithetic: bool = option(False, "take each noise and its negative: removes the error's linear part in the noise")
    contrast: bool = option(False, "subtract the error without the condition, which compares across items")
    seed: int = option(0, "of the noise")
    batch_size: int = option(256, "questions computed at once; changes speed and memory only")

    def __post_init__(self) -> None:
        types = get_type_hints(ErrorOptions)
        for name in ("loss", "target", "spacing"):
            _check_word(name, getattr(self, name), get_args(types[name]))
        check_counts(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Which candidates are measured how often: all at first, then the best of them at more times.

    Args:
        times: Times known after each round, rising.
        keep: Candidates that each round keeps, not rising, 1 at last.
        order: "corput": every round goes on where the last one ended; "reference": the sets of the paper's code.
        race: Give up a candidate after a round also where it lags behind the best by so many standard errors of their
            paired difference; None: never.

    Raises:
        ValueError: Times that do not rise, candidates that do not become fewer or end in 1, or other lengths.
    """

    times: tuple[int, ...]
    keep: tuple[int, ...]
    order: Literal["corput", "reference"] = "corput"
    race: float | None = None

    def __post_init__(self) -> None:
        times, keep = self.times, self.keep
        for name, counts in (("times", times), ("keep", keep)):
            for count in counts:
                check_counts(None, **{name: count})
        if len(times) != len(keep) or not times:
            raise ValueError(
                f"times={times} and keep={keep} must be as long as each other: a number of times and of candidates "
                "kept for each round."
            )
        if times[0] < 1 or any(a >= b for a, b in pairwise(times)):
            raise ValueError(f"times={times} must be at least 1 and rise from round to round.")
        if keep[-1] != 1 or any(a < b for a, b in pairwise(keep)):
            raise ValueError(f"keep={keep} must not rise from round to round, and must end in 1.")
        _check_word("order", self.order, ("corput", "reference"))
        if self.race is not None and not self.race > 0:
            raise ValueError(f"race={self.race} must be above 0: standard errors, such as 3.")


def usual_rounds(
    candidates: int,
    times: int | tuple[int, ...] | None = None,
    keep: int | tuple[int, ...] | None = None,
    order: Literal["corput", "reference"] = "corput",
    race: float | None = None,
) -> Rounds:
    """Return rounds with what is not said: a quarter of 40 times for all, the rest for the best half, at most 5.

    Args:
        candidates: Number of distinct candidates.
        times: A number of times; or one for each round. Below 8 a number is not divided.
        keep: Candidates kept by each round; without it one number of times is divided, and `race` keeps all.
        order, race: See `Rounds`.

    Raises:
        ValueError: See `Rounds`.
    """
    total = 40 if times is None else times
    if not isinstance(total, int | tuple):
        raise ValueError(f"times={times} must be a whole number of times, or one for each round.")
    if keep is not None:
        kept = tuple(keep) if isinstance(keep, Sequence) else (keep,)
        counts = (total,) if isinstance(total, int) else tuple(total)
        if isinstance(total, int) and len(kept) == 2:
            counts = (max(1, total // 4), total)
        return Rounds(times=counts, keep=kept, order=order, race=race)
    if not isinstance(total, int):
        counts = tuple(total)
        kept = tuple(max(1, min(5, candidates // 2)) for _ in counts[:-1])
        return Rounds(times=counts, keep=(*kept, 1), order=order, race=race)
    if race is not None:
        counts = tuple(dict.fromkeys(max(1, total // share) for share in (8, 4, 2, 1)))
        return Rounds(times=counts, keep=(*[max(1, candidates)] * (len(counts) - 1), 1), order=order, race=race)
    half = min(5, candidates // 2)
    if total < 8 or half < 2:
        return Rounds(times=(total,), keep=(1,), order=order)
    return Rounds(times=(max(2, total // 4), total), keep=(half, 1), order=order)


def _check_word(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = did_you_mean(str(value), known)
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.{near}")

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from undiffuse import limits

NAN = float("nan")


@pytest.mark.parametrize(
    ("refuse", "passes", "refused"),
    [
        (limits.at_least_one, (1, 7), (0, -1, NAN)),
        (limits.positive, (1e-9, 3), (0, -1.0, NAN)),
        (limits.not_negative, (0, 2.5), (-1e-9, NAN)),
        (limits.share, (0, 0.5, 1), (-0.1, 1.1, NAN)),
        (limits.share_below_one, (0, 0.99), (-0.1, 1, NAN)),
    ],
)
def test_values_within_a_limit_pass_and_others_are_named(refuse, passes, refused):
    for value in (*passes, None):
        refuse(SimpleNamespace(a=passes[0], b=value), "a", "b")
    for value in refused:
        with pytest.raises(ValueError, match=f"^b={value} "):
            refuse(SimpleNamespace(a=passes[0], b=value), "a", "b")


@dataclass
class Counted:
    steps: int | None = None
    rate: float = 1.0


def test_counts_are_whole_numbers():
    limits.check_counts(n=np.int64(3), steps=None)
    limits.check_counts(None, seed=-4)
    limits.at_least_one(Counted(steps=2, rate=1.5), "steps", "rate")
    for wrong, message in (
        ({"n": 2.5}, "n=2.5 must be a whole number, at least 1"),
        ({"n": True}, "n=True must"),
        ({"n": 0}, "n=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            limits.check_counts(**wrong)
    with pytest.raises(ValueError, match=r"steps=2\.5 must be a whole number"):
        limits.at_least_one(Counted(steps=2.5), "steps", "rate")  # type: ignore[arg-type]

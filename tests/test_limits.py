from __future__ import annotations

from types import SimpleNamespace

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

"""What another implementation measured of restoration on the digits, and what counts as near it.

Both tables are of the exact mixture of the digits, 24 held-out digits and 8 samples of each; which digits were held out
differs, so decibels are compared by how far they lie from those of the exact posterior on the same digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undiffuse.tasks.restore.bench_results import BenchRow

Pairs = tuple[tuple[float, float] | None, ...]
QUIET, LOUD = 0.05, 0.4  # model units
CASES = {
    "inpaint .05": ("inpaint50", QUIET),
    "box .05": ("box4", QUIET),
    "sr2 .05": ("sr2", QUIET),
    "blur .05": ("blur1", QUIET),
    "inpaint .4": ("inpaint50", LOUD),
    "blur .4": ("blur1", LOUD),
}
"""Head of a column -> operator and noise."""
CALIBRATED: dict[str, Pairs] = {
    "daps-moments": ((1.00, 0.05), (1.28, 0.13), (1.24, 0.16), (1.02, 0.01), (1.23, 0.11), (1.16, 0.17)),
    "mmps": ((1.06, 0.05), (1.20, 0.12), (1.24, 0.20), (0.97, 0.00), (1.19, 0.09), (1.14, 0.16)),
    "tmpd": ((1.01, 0.07), (1.03, 0.12), (1.21, 0.19), (1.00, 0.10), (0.96, 0.07), (0.91, 0.13)),
    "pigdm": ((1.05, 0.13), (1.24, 0.33), (1.19, 0.36), (0.83, 0.06), (0.96, 0.12), (0.91, 0.10)),
    "pigdm-step": ((0.76, 0.03), (0.81, 0.16), (0.98, 0.23), None, (0.53, 0.43), (0.52, 0.95)),
    "dps": ((0.84, 0.04), (0.86, 0.13), (1.05, 0.24), (0.89, 0.13), (0.92, 0.42), (1.27, 0.45)),
    "diffpir": ((1.06, 0.12), (1.48, 0.35), (1.27, 0.37), (0.91, 0.09), (1.06, 0.12), (1.00, 0.11)),
    "dds": ((1.03, 0.06), (1.09, 0.19), (1.21, 0.38), (0.92, 0.10), (1.22, 0.63), (1.26, 0.61)),
    "ddnm": ((0.99, 0.06), (1.01, 0.17), (1.01, 0.22), None, (0.45, 1.6), None),
    "ddrm": ((1.04, 0.18), (1.54, 0.55), (1.24, 0.50), (0.69, 0.27), (0.72, 0.09), (1.07, 0.57)),
    "daps": ((1.13, 0.11), (1.50, 0.43), (1.48, 0.39), (0.90, 0.01), (0.60, 1.2), None),
    "repaint": ((0.75, 0.06), (1.20, 0.22), None, None, (0.40, 1.5), None),
    "mcg": ((1.10, 0.21), (1.57, 0.29), None, None, (0.57, 1.3), None),
    "ilvr": ((1.61, 0.57), (2.08, 0.76), (1.58, 0.76), None, (0.78, 1.4), None),
    "red-diff-quality": (None,) * 6,
}
"""Method -> spread and energy distance, by case; none where it failed or was not measured."""
EXACT_DB: Pairs = ((17.70, 20.46), (16.71, 20.06), (15.80, 18.98), (17.71, 20.99))
"""The exact posterior: PSNR of one sample and of the mean, in the first four cases."""
Setting = tuple[str, int, Mapping[str, Any]]
DECIBELS: dict[str, tuple[Setting, Pairs]] = {
    "dps": (("dps", 100, {}), ((18.09, 19.94), (18.50, 19.97), (16.04, 18.00), (17.81, 20.13))),
    "pigdm-step": (("pigdm-step", 100, {}), ((18.17, 20.09), (17.80, 19.53), (15.35, 17.95), (17.77, 19.46))),
    "pigdm, v = 1": (
        ("pigdm", 100, {"data_var": 1.0}),
        ((17.08, 19.14), (16.49, 18.38), (13.65, 16.58), (18.21, 20.37)),
    ),
    "mmps, once, grid t": (
        ("mmps", 100, {"grid": "t", "repeats": 1}),
        ((17.11, 19.85), (16.76, 19.63), (15.97, 17.80), (18.35, 20.61)),
    ),
    "ddrm, 20 steps, eta 1": (
        ("ddrm", 20, {"eta": 1.0}),
        ((16.96, 18.50), (15.43, 17.05), (14.75, 16.48), (18.85, 19.95)),
    ),
    "red-diff, 1000 steps": (("red-diff", 1000, {}), ((19.15, 20.45), (19.04, 19.49), (16.46, 17.80), None)),
    "repaint": (("repaint", 100, {}), ((18.35, 20.27), (18.08, 19.12), None, None)),
}
"""Row -> method, steps and options, and PSNR of one sample and of the mean in the first four cases."""


def near_calibrated(row: BenchRow, known: tuple[float, float]) -> bool:
    """Whether the spread is within 15 %, or both it and the distance are nearer to the exact posterior."""
    spread, energy = row.exact_spread or 0.0, row.energy if row.energy is not None else 9.0
    return abs(spread / known[0] - 1) <= 0.15 or (energy <= known[1] + 0.05 and abs(spread - 1) <= abs(known[0] - 1))


def decibels_apart(row: BenchRow, exact: BenchRow) -> tuple[float, float]:
    """Return how far PSNR of one sample and of the mean lie from those of the exact posterior on the same items."""
    return (row.psnr or 0.0) - (exact.psnr or 0.0), (row.psnr_mean or 0.0) - (exact.psnr_mean or 0.0)


def near_decibels(apart: tuple[float, float], known: tuple[float, float], exact: tuple[float, float]) -> bool:
    """Whether one sample and their mean are at most 0.5 dB below those there, each against its own exact posterior, or
    nearer to that: one sample far above it is too narrow."""
    theirs = [k - e for k, e in zip(known, exact, strict=True)]
    return all(a >= there - 0.5 or abs(a) <= abs(there) for a, there in zip(apart, theirs, strict=True))

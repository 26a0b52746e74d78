"""The ways to few steps, by name. Torch-free: `undiffuse distill --help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A way to few steps.

    Args:
        kind: Its objective.
        summary: For people.
        taught: Whether the teacher answers during training; else only its weights are where the student starts.
        options: Options of the objective that make it this method.
        schedule: The schedule that it is made for; empty: the teacher's.
    """

    kind: str
    summary: str
    taught: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    schedule: str = ""


METHODS: dict[str, Method] = {
    "progressive": Method("progressive", "two steps become one, round after round"),
    "consistency": Method("consistency", "neighbours on the teacher's paths map to one end", taught=True),
    "consistency-training": Method("consistency", "the same from data alone (iCT)"),
    "scm": Method("scm", "continuous-time consistency distillation (sCD)", taught=True, schedule="trig"),
    "scm-training": Method("scm", "the same from data alone (sCT)", schedule="trig"),
    "meanflow": Method("meanflow", "average velocities from their derivative along the teacher's paths", taught=True),
    "meanflow-training": Method("meanflow", "the same from data alone"),
    "shortcut": Method("shortcut", "one jump is two of half its length, tied to the teacher's velocity", taught=True),
    "shortcut-training": Method("shortcut", "the same from data alone"),
    "ctm": Method("ctm", "jumps from neighbours on the teacher's paths agree (CTM without GAN)", taught=True),
    "dmd": Method("dmd", "samples whose noisy density is the teacher's (DMD2 without GAN)", taught=True),
    "reflow": Method("reflow", "straight lines between the teacher's noise and its samples", taught=True),
}
"""Methods by name."""

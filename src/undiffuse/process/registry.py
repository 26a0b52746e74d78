"""Schedules by name: one table that feeds recipes, listings and loading."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from undiffuse._lazy import resolve
from undiffuse.process.schedules import Schedule
from undiffuse.words import did_you_mean

SCHEDULES: dict[str, str] = {
    "vp": "undiffuse.process.schedules:VPSchedule",
    "subvp": "undiffuse.process.schedules:SubVPSchedule",
    "ve": "undiffuse.process.schedules:VESchedule",
    "cosine": "undiffuse.process.schedules:CosineSchedule",
    "trig": "undiffuse.process.schedules:TrigSchedule",
    "edm": "undiffuse.process.schedules:EDMSchedule",
    "rf": "undiffuse.process.schedules:RectifiedFlowSchedule",
    "ddpm": "undiffuse.process.tables:ddpm_schedule",
    "scaled-linear": "undiffuse.process.tables:scaled_linear_schedule",
    "cosine-table": "undiffuse.process.tables:cosine_table_schedule",
    "ir-sde": "undiffuse.process.restoration:IRSDESchedule",
    "resshift": "undiffuse.process.restoration:ResShiftSchedule",
    "i2sb": "undiffuse.process.restoration:I2SBSchedule",
    "indi": "undiffuse.process.restoration:InDISchedule",
    "rddm": "undiffuse.process.restoration:RDDMSchedule",
    "table": "undiffuse.process.tables:TableSchedule",
}


def make_schedule(name: str, **options: Any) -> Schedule:
    """Build the schedule called `name` with its own options.

    Raises:
        ValueError: The name or an option is unknown.
    """
    if name not in SCHEDULES:
        near = did_you_mean(name, SCHEDULES)
        raise ValueError(f"schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}.{near}")
    try:
        return resolve(SCHEDULES[name])(**options)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} does not take these options: {error}.") from error


def schedule_to_json(schedule: Schedule) -> dict[str, Any]:
    """Return {"name": ..., options}, from which `schedule_from_json` rebuilds it."""
    fields = asdict(schedule)
    if schedule.name == "table":  # t_min and t_max follow from the table
        fields = {"alphas_cumprod": list(fields["alphas_cumprod"])}
    return {"name": schedule.name, **fields}


def schedule_from_json(fields: dict[str, Any]) -> Schedule:
    """Rebuild a schedule from `schedule_to_json`."""
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items() if key != "name"
    }
    return make_schedule(fields["name"], **options)

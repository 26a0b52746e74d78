"""Restorers by name: one literal table that feeds `--help`, listings and loading. Torch-free; `catalogue` says more."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, get_type_hints

from undiffuse._lazy import resolve
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.tasks.restore.restorer import Restorer

_HOME = "undiffuse.tasks.restore"
_PLAIN = (bool, int, float, str, type(None))

RESTORERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mmps": (f"{_HOME}.corrected:MMPSRestorer", {}),
    "tmpd": (f"{_HOME}.corrected:TMPDRestorer", {}),
    "jfps": (f"{_HOME}.corrected:JFPSRestorer", {}),
    "pigdm": (f"{_HOME}.corrected:PiGDMRestorer", {}),
    "pigdm-step": (f"{_HOME}.pushed:PiGDMStepRestorer", {}),
    "diffpir": (f"{_HOME}.corrected:DiffPIRRestorer", {}),
    "dps": (f"{_HOME}.pushed:DPSRestorer", {}),
    "ddrm": (f"{_HOME}.spectral:DDRMRestorer", {}),
    "ddnm+": (f"{_HOME}.spectral:DDRMRestorer", {"eta_b": 1.0}),
    "snips": (f"{_HOME}.snips:SNIPSRestorer", {}),
    "ddnm": (f"{_HOME}.projected:DDNMRestorer", {}),
    "dds": (f"{_HOME}.projected:DDSRestorer", {}),
    "diffusion-mbir": (f"{_HOME}.projected:DiffusionMBIRRestorer", {}),
    "repaint": (f"{_HOME}.projected:RePaintRestorer", {}),
    "ilvr": (f"{_HOME}.projected:ILVRRestorer", {}),
    "score-mri": (f"{_HOME}.projected:ScoreMRIRestorer", {}),
    "mcg": (f"{_HOME}.pushed:MCGRestorer", {}),
    "daps": (f"{_HOME}.daps:LangevinDAPS", {}),
    "daps-moments": (f"{_HOME}.daps:MomentMatchedDAPS", {}),
    "red-diff": (f"{_HOME}.red_diff:RedDiff", {}),
    "red-diff-quality": (f"{_HOME}.red_diff:RedDiff", {"tail": "decay"}),
    "gdp": (f"{_HOME}.gdp:GDPRestorer", {}),
    "tds": (f"{_HOME}.particles:TDSRestorer", {}),
    "psld": (f"{_HOME}.pushed:PSLDRestorer", {}),
    "resample": (f"{_HOME}.latent:ReSampleRestorer", {}),
    "supervised": (f"{_HOME}.supervised:Supervised", {}),
    "blind-dps": (f"{_HOME}.blind:BlindDPSRestorer", {}),
}


def make_restorer(name: str, **options: Any) -> Restorer:
    """Build the restorer called `name`; `options` are its own, e.g. scale=50 for "dps".

    Raises:
        ValueError: The name or an option is unknown, or an option is out of range.
        ConfigError: An option has another type.
    """
    restorer = restorer_class(name)
    known = [field.name for field in fields(restorer)]
    if not set(options) <= set(known):
        raise ValueError(
            f"method {name!r} does not take these options ({', '.join(options)}); its own are: "
            f"{', '.join(known) or 'none'}."
        )
    hints = get_type_hints(restorer) if options else {}
    given = {key: _typed(f"{name}: {key}", hints[key], value) for key, value in options.items()}
    return restorer(**{**RESTORERS[name][1], **given})  # type: ignore[no-any-return]


def _typed(key: str, hint: Any, value: Any) -> Any:
    """Return a value as the type that a field declares; objects, such as a solver or a tensor, pass as they are.

    Raises:
        ConfigError: It has another type.
    """
    from undiffuse.config.schema import members
    from undiffuse.config.values import read_value

    objects = tuple(part for part in members(hint) if isinstance(part, type) and part not in _PLAIN)
    if objects and isinstance(value, objects):
        return value
    return read_value(key, reduce(or_, (part for part in members(hint) if part not in objects)), value)


def restorer_class(name: str) -> Any:
    """Return the class of a restorer.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in RESTORERS:
        near = did_you_mean(name, RESTORERS)
        raise ValueError(f"method {name!r} is unknown; `undiffuse solvers --restore` lists them all.{near}")
    return resolve(RESTORERS[name][0])

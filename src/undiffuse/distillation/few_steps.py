"""`distill`: from a model that needs many steps to one that needs few, with the trainer of all others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.config import resolve
from undiffuse.data import DataOptions
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.build import SCHEDULE_FREE, check_teacher, make_student, teacher_hash
from undiffuse.distillation.options import FlowMapOptions
from undiffuse.errors import ConfigError
from undiffuse.events import Listener, silent
from undiffuse.models import Model, load
from undiffuse.networks.backbone import Backbone
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.options import GaussianOptions
from undiffuse.process.registry import make_schedule
from undiffuse.training.recipe import Recipe, override_layers
from undiffuse.training.run import Run, Source, choose, train_from
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.data import Dataset

DISTILLATION_DEFAULTS: dict[str, Any] = {"steps": 10_000, "batch_size": 128, "lr": 3e-4}
"""Training options of a distillation, unless told otherwise."""

TEACHER = "teacher"  # its place in a run's folder, where it was given without one


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


def distill(
    model: Model | str | Path,
    *,
    method: str,
    data: Source | None = None,
    steps: int | None = None,
    out: str | Path | None = None,
    listener: Listener = silent,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Model:
    """Turn a model into a few-step generator, or go on with a run that was interrupted.

    Args:
        model: The teacher: a folder, a built-in name, or a model.
        method: One of `METHODS`.
        data: Data as `train` takes them; None: what the teacher was trained on, where it knows.
        steps: Optimizer steps.
        out: The run's folder; default runs/<teacher>-<method>.
        listener: Hears about progress.
        overrides: "group.key=value" texts.
        options: Groups (`objective={"guidance": 2.0}`), or names of training options (`lr=1e-4`).

    Returns:
        The student, whose default sampler makes one jump or a few; as far as it got where SIGINT or SIGTERM stopped it.

    Raises:
        ConfigError: An unknown method; a teacher that does not fit it.
        UndiffuseError: Data, folder or training trouble, each with what to do.
    """
    if steps is not None:
        options = {"steps": steps, **options}
    return distill_run(model, method, data, out, listener=listener, overrides=overrides, **options).model


def distill_run(
    model: Model | str | Path,
    method: str,
    data: Source | None = None,
    out: str | Path | None = None,
    *,
    listener: Listener = silent,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Run:
    """As `distill`, and return the run."""
    chosen = _method(method)
    folder = Path(out) if out is not None else Path("runs") / f"{_name(model)}-{method}"
    teacher = model if isinstance(model, Model) else load(model)
    place = str(teacher.save(folder / TEACHER)) if isinstance(model, Model) else str(model)
    network = _network(teacher, place)
    layers = override_layers(overrides, **options)
    recipe, dataset = _choose(teacher, network, place, chosen, data, layers)
    assert isinstance(recipe.objective, FlowMapOptions)
    student = _student(teacher, network, recipe, chosen)
    return train_from(student, dataset, recipe, out=folder, codec=teacher.codec, listener=listener)


def _method(name: str) -> Method:
    if name not in METHODS:
        near = did_you_mean(name, METHODS)
        raise ConfigError(f"method {name!r} is unknown; choose one of {', '.join(METHODS)}.{near}")
    return METHODS[name]


def _name(model: Model | str | Path) -> str:
    return "model" if isinstance(model, Model) else Path(model).resolve().name


def _network(teacher: Model, name: str) -> NetworkDenoiser:
    """Return the teacher's denoiser.

    Raises:
        ConfigError: It has none, or none that can be a student.
    """
    check_teacher(teacher, name)
    held = teacher.module
    if isinstance(held, NetworkFlowMap) and held.spans == "any":
        held = held.denoiser
    if not isinstance(held, NetworkDenoiser):
        raise ConfigError(f"teacher={name} is a few-step model itself; distil from the model that it came from.")
    return held


def _choose(
    teacher: Model, network: NetworkDenoiser, place: str, method: Method, data: Source | None, layers: Sequence[Any]
) -> tuple[Recipe, Dataset]:
    """Return the recipe and the data of a distillation."""
    kept = (teacher.info.get("recipe") or {}).get("data") or {}
    if data is None and not kept.get("source"):
        raise ConfigError("the model does not say what it was trained on; name the data (data=..., --data ...).")
    backbone = network.backbone
    if not isinstance(backbone, Backbone) or backbone.options is None:
        raise ConfigError("the network of the teacher was built by hand; build it with build_network(options).")
    objective = {"kind": method.kind, "teacher_hash": teacher_hash(teacher), **method.options}
    guided = any("guidance" in str(layer) for layer in layers)
    if method.taught or guided:
        objective["teacher"] = place
    base = resolve(
        Recipe,
        {
            "data": {key: value for key, value in kept.items() if key in DataOptions.__dataclass_fields__},
            "model": asdict(backbone.options),
            "process": _process(network, method, place),
            "objective": objective,
            "train": {**DISTILLATION_DEFAULTS, "init": place},
        },
    )
    return choose(data, base, layers)


def _process(network: NetworkDenoiser, method: Method, place: str) -> dict[str, Any]:
    """Return the options of the student's process: the teacher's, unless the method has a schedule of its own."""
    schedule = network.process.schedule
    if method.schedule and method.schedule != schedule.name:
        if network.prediction not in SCHEDULE_FREE:
            raise ConfigError(
                f"this method is made for schedule {method.schedule}; teacher={place} predicts {network.prediction} on "
                f"{schedule.name}, which means something else there. Use a teacher that predicts v."
            )
        schedule = make_schedule(method.schedule)
    options: dict[str, Any] = {"kind": "gaussian", "schedule": schedule.name, "shift": getattr(schedule, "shift", 1.0)}
    known = make_schedule(schedule.name, **({"shift": options["shift"]} if schedule.name == "rf" else {}))
    if known != schedule:
        raise ConfigError(f"teacher={place} has a {schedule.name} schedule with options that recipes lack; retrain it.")
    return {**options, "prediction": network.prediction, "data_std": network.data_std}


def _student(teacher: Model, network: NetworkDenoiser, recipe: Recipe, method: Method) -> NetworkFlowMap:
    """Return a flow map that starts as the teacher.

    Raises:
        ConfigError: Schedules differ, or the method is not for this denoiser.
    """
    assert isinstance(recipe.objective, FlowMapOptions)
    options = recipe.process
    assert isinstance(options, GaussianOptions)
    process = GaussianProcess(make_schedule(options.schedule, **options.schedule_options))
    if process != network.process and network.prediction not in SCHEDULE_FREE:
        raise ConfigError(
            f"the student is on schedule {process.schedule.name} and the teacher on {network.process.schedule.name}, "
            f"where prediction {network.prediction} means something else; leave process.schedule out."
        )
    if options.prediction != network.prediction:
        raise ConfigError(
            f"process.prediction={options.prediction}, but the teacher predicts {network.prediction}, and the student "
            f"starts from its weights; leave it out."
        )
    backbone = copy.deepcopy(network.backbone).requires_grad_(True)
    own = NetworkDenoiser(backbone, process, network.prediction, spec=network.spec, data_std=network.data_std)
    student = make_student(own, recipe.objective, recipe.train.seed)
    if isinstance(teacher.module, NetworkFlowMap):
        student.jump.load_state_dict(teacher.module.jump.state_dict())
    return student

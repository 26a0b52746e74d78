"""From a recipe's options to a student and its objective."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.distillation.consistency import Consistency, consistency_times
from undiffuse.distillation.ctm import CTM
from undiffuse.distillation.dmd import DMD
from undiffuse.distillation.meanflow import MeanFlow
from undiffuse.distillation.objective import FlowMapObjective, gaussian
from undiffuse.distillation.options import (
    ConsistencyOptions,
    CTMOptions,
    DMDOptions,
    FlowMapOptions,
    MeanFlowOptions,
    ProgressiveOptions,
    ReflowOptions,
    SCMOptions,
    ShortcutOptions,
)
from undiffuse.distillation.progressive import Progressive
from undiffuse.distillation.reflow import Reflow
from undiffuse.distillation.scm import SCM
from undiffuse.distillation.shortcut import Shortcut
from undiffuse.errors import ConfigError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models import load
from undiffuse.models.model import Model
from undiffuse.process.schedules import Schedule
from undiffuse.spec import DataSpec

SCHEDULE_FREE = ("data", "noise", "v", "edm")
"""Predictions whose network knows the noise level alone, so that it means the same on every schedule."""


@dataclass(frozen=True)
class Student:
    """What a method trains: pairs of times, and the times between which it maps."""

    spans: Any
    start: float = 1.0
    end: float = 0.0


def make_student(denoiser: NetworkDenoiser, options: FlowMapOptions, seed: int = 0) -> NetworkFlowMap:
    """Return the flow map that a method trains, around a denoiser.

    Raises:
        ConfigError: The method is not for the denoiser's schedule or prediction.
    """
    check_method(denoiser, options)
    student = _student(denoiser, options)
    return NetworkFlowMap(
        denoiser, spans=student.spans, start=student.start, end=student.end, guided=options.guidance, seed=seed
    )


def make_flow_map_objective(options: FlowMapOptions, student: FlowMap, steps: int) -> FlowMapObjective:
    """Build the objective for a student.

    Args:
        options: The method's.
        student: As it starts: from its teacher's weights, or fresh.
        steps: Optimizer steps of the run.

    Raises:
        ConfigError: The teacher is gone, is another one, or does not fit.
    """
    teacher = open_teacher(options, student) if options.teacher else None
    if isinstance(options, ProgressiveOptions):
        return Progressive(
            student,
            first_steps=options.first_steps,
            rounds=options.rounds,
            steps=steps,
            teacher=teacher,
            average=options.average,
            drop=options.drop,
        )
    if isinstance(options, ConsistencyOptions):
        return Consistency(student, options, steps=steps, teacher=teacher)
    if isinstance(options, SCMOptions):
        return SCM(options, steps=steps, teacher=teacher)
    if isinstance(options, MeanFlowOptions):
        return MeanFlow(options, teacher=teacher)
    if isinstance(options, ShortcutOptions):
        return Shortcut(student, options, teacher=teacher)
    if isinstance(options, CTMOptions):
        return CTM(student, options, teacher=teacher)
    assert teacher is not None, "check_method asked for one"
    if isinstance(options, DMDOptions):
        assert isinstance(student, NetworkFlowMap)
        return DMD(options, teacher=teacher, fake=copy.deepcopy(student.denoiser), steps=steps)
    if isinstance(options, ReflowOptions):
        return Reflow(options, teacher=teacher)
    raise AssertionError(options)


def check_method(denoiser: NetworkDenoiser, options: FlowMapOptions) -> None:
    """Refuse a schedule or prediction that a method is not made for.

    Raises:
        ConfigError: It is.
    """
    prediction, schedule = denoiser.prediction, gaussian(denoiser).schedule
    if prediction == "noise":
        raise ConfigError(
            "process.prediction=noise says nothing about the data at pure noise, where a flow map starts; use v, data, "
            "edm or velocity, or a teacher that does."
        )
    if isinstance(options, SCMOptions) and (schedule.name != "trig" or prediction != "v"):
        raise ConfigError(
            f"objective=scm is made for process.schedule=trig and process.prediction=v, not {schedule.name} and "
            f"{prediction}; a teacher of any schedule that predicts v can be distilled to it."
        )
    _check_teaching(denoiser, options)


def _check_teaching(denoiser: NetworkDenoiser, options: FlowMapOptions) -> None:
    """Refuse a method without the teacher, or a guided one without the conditions, that it needs.

    Raises:
        ConfigError: It is.
    """
    if isinstance(options, (DMDOptions, ReflowOptions)) and not options.teacher:
        raise ConfigError(
            f"objective={options.kind} learns from a teacher, and there is none; use undiffuse distill MODEL --method "
            f"{options.kind}, or set objective.teacher."
        )
    if isinstance(options, DMDOptions) and gaussian(denoiser).source == "data":
        raise ConfigError(
            "objective=dmd compares scores, and a model trained with objective.coupling=optimal has none; use "
            "progressive or ctm, or another teacher."
        )
    spec = denoiser.spec
    if options.guidance != 1 and spec is not None and not set(spec.conditions) - spec.kept_conditions:
        raise ConfigError(
            f"objective.guidance={options.guidance} pushes away from samples without a condition, and these data have "
            f"none; leave it at 1."
        )


def open_teacher(options: FlowMapOptions, student: FlowMap) -> Denoiser:
    """Return the teacher on the student's schedule, with guidance folded in.

    Raises:
        ConfigError: It is of tokens, of other data, or not the one it was.
        CheckpointError: There is none.
    """
    model = load(options.teacher)
    if options.teacher_hash and teacher_hash(model) != options.teacher_hash:
        raise ConfigError(
            f"teacher={options.teacher} has other weights than when this run began; put the old ones back, or start a "
            f"new run in another folder."
        )
    check_teacher(model, options.teacher)
    denoiser = on_schedule(model.denoiser, student)
    if gaussian(denoiser).source != gaussian(student).source:
        raise ConfigError(
            f"teacher={options.teacher} was trained with objective.coupling=optimal, so its noise is paired with data, "
            f"and this student is not made for that; use undiffuse distill."
        )
    if student.spec is not None and denoiser.spec is not None and not _same_data(student.spec, denoiser.spec):
        raise ConfigError(
            f"teacher={options.teacher} makes {denoiser.spec.noun} of shape {denoiser.spec.shape}, but these data "
            f"are {student.spec.kind} of shape {student.spec.shape}; use data like its own."
        )
    return denoiser if options.guidance == 1 else ClassifierFreeGuidance(denoiser, options.guidance)


def check_teacher(model: Model, name: str) -> None:
    """Refuse a teacher that has no flow map to learn.

    Raises:
        ConfigError: Its process is categorical.
    """
    if model.spec.is_discrete:
        raise ConfigError(f"teacher={name} makes tokens; flow maps are for continuous data, so it cannot be distilled.")


def on_schedule(denoiser: Denoiser, student: FlowMap) -> Denoiser:
    """Return a denoiser on the student's schedule, exactly."""
    same = student.process.schedule == gaussian(denoiser).schedule
    return denoiser if same else Reschedule(denoiser, student.process)


def teacher_hash(model: Model) -> str:
    """Return a hash of a model's weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def keep_model(model: Model, name: str, folder: Path) -> None:
    """Write a model that has no place of its own into a run's folder, which is ours, unless it is there.

    Raises:
        ConfigError: Another one is there.
    """
    place = folder / name
    if not (place / "config.json").is_file():
        model.save(place)
    elif teacher_hash(load(place)) != teacher_hash(model):
        raise ConfigError(
            f"{place} holds another model than the one given; choose another out folder, or remove it to begin anew."
        )


def _student(denoiser: NetworkDenoiser, options: FlowMapOptions) -> Student:
    if isinstance(options, ProgressiveOptions):
        return Student(Progressive.spans)
    if isinstance(options, ConsistencyOptions):
        end, start = consistency_times(denoiser.process.schedule, options)
        return Student(Consistency.spans, start, end)
    if isinstance(options, SCMOptions):
        return Student(SCM.spans)
    if isinstance(options, CTMOptions):
        return Student(CTM.spans, start=consistency_times(denoiser.process.schedule, options)[1])
    if isinstance(options, MeanFlowOptions):
        return Student(MeanFlow.spans, start=highest_time(denoiser.process.schedule, options.rho_max))
    others: dict[type[FlowMapOptions], type[FlowMapObjective]] = {
        ShortcutOptions: Shortcut,
        DMDOptions: DMD,
        ReflowOptions: Reflow,
    }
    return Student(others[type(options)].spans)


def highest_time(schedule: Schedule, rho: float) -> float:
    """Return the time at which sigma / alpha is `rho`, or `t_max` where the schedule does not go so far."""
    return min(float(schedule.time(-torch.tensor(rho, dtype=torch.float64).log())), schedule.t_max)


def _same_data(ours: DataSpec, theirs: DataSpec) -> bool:
    return (ours.kind, ours.shape) == (theirs.kind, theirs.shape) and ours.conditions.keys() == theirs.conditions.keys()

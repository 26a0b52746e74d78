"""`distill`: from a model that needs many steps to one that needs few, with the trainer of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from undiffuse.config import resolve, to_dict
from undiffuse.data import DataOptions
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.build import SCHEDULE_FREE, check_teacher, keep_model, make_student, teacher_hash
from undiffuse.distillation.methods import METHODS, Method
from undiffuse.distillation.options import FlowMapOptions, ProgressiveOptions
from undiffuse.errors import ConfigError
from undiffuse.events import Listener, silent
from undiffuse.models import Model, load
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.build import build_network
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.options import GaussianOptions
from undiffuse.process.registry import make_schedule
from undiffuse.process.tables import TableSchedule
from undiffuse.training.fine_tuning import take_weights
from undiffuse.training.recipe import Recipe, override_layers
from undiffuse.training.run import Run, Source, choose, train_from
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.data import Dataset

DISTILLATION_DEFAULTS: dict[str, Any] = {"steps": 10_000, "batch_size": 128, "lr": 3e-4}
"""Training options of a distillation, unless told otherwise."""

TEACHER = "teacher"  # its place in a run's folder, where it was given without one


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
    place = str(folder / TEACHER) if isinstance(model, Model) else str(model)
    network = _network(teacher, place)
    layers = override_layers(overrides, **options)
    recipe, dataset = _choose(teacher, network, place, chosen, data, layers)
    student = _student(teacher, network, recipe, place)
    fill = partial(keep_model, teacher, TEACHER) if isinstance(model, Model) else None
    return train_from(student, dataset, recipe, out=folder, codec=teacher.codec, listener=listener, fill=fill)


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
    if getattr(held.backbone, "counts_steps", False):
        raise ConfigError(
            f"teacher={name} is a network of diffusers, which cannot be told a second time; tune it for few steps with "
            f"undiffuse accelerate, or train model=unet or dit."
        )
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
    taught = resolve(
        Recipe,
        {
            "data": {key: value for key, value in kept.items() if key in DataOptions.__dataclass_fields__},
            "model": asdict(backbone.options),
            "process": _process(network, method, place),
            "objective": {
                "kind": method.kind,
                "teacher_hash": teacher_hash(teacher),
                "teacher": place,
                **method.options,
            },
            "train": {**DISTILLATION_DEFAULTS, "init": place},
        },
    )
    assert isinstance(taught.objective, FlowMapOptions)
    if method.taught or _guided_by_teacher(taught, layers):
        return choose(data, taught, layers)
    return choose(data, replace(taught, objective=replace(taught.objective, teacher="")), layers)


def _guided_by_teacher(recipe: Recipe, layers: Sequence[Any]) -> bool:
    """Whether the layers ask for guidance, and the method of a recipe needs its teacher for that."""
    assert isinstance(recipe.objective, FlowMapOptions)
    if not recipe.objective.needs_teacher_to_guide:
        return False
    asked = resolve(Recipe, to_dict(recipe), *layers).objective
    return isinstance(asked, FlowMapOptions) and asked.guidance != 1


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
    if isinstance(schedule, TableSchedule):
        raise ConfigError(
            f"teacher={place} has a table of noise levels, and students follow schedules; train one on cosine or rf."
        )
    options: dict[str, Any] = {"kind": "gaussian", "schedule": schedule.name, "shift": getattr(schedule, "shift", 1.0)}
    known = make_schedule(schedule.name, **({"shift": options["shift"]} if schedule.name == "rf" else {}))
    if known != schedule:
        raise ConfigError(f"teacher={place} has a {schedule.name} schedule with options that recipes lack; retrain it.")
    return {**options, "prediction": network.prediction, "data_std": network.data_std}


def _student(teacher: Model, network: NetworkDenoiser, recipe: Recipe, place: str) -> NetworkFlowMap:
    """Return a flow map that starts as the teacher, without its head for the variance of a step.

    Raises:
        ConfigError: Schedules differ, the start is another one, or the method is not for this denoiser.
        CheckpointError: The recipe's network is another one than the teacher's.
    """
    assert isinstance(recipe.objective, FlowMapOptions)
    options = recipe.process
    assert isinstance(options, GaussianOptions)
    if recipe.train.init != place:
        raise ConfigError(f"train.init={recipe.train.init}, but a student starts as its teacher {place}; leave it out.")
    schedule = make_schedule(options.schedule, **options.schedule_options)
    if schedule != network.process.schedule and network.prediction not in SCHEDULE_FREE:
        raise ConfigError(
            f"the student is on schedule {schedule.name} and the teacher on {network.process.schedule.name}, "
            f"where prediction {network.prediction} means something else; leave process.schedule out."
        )
    if options.prediction != network.prediction:
        raise ConfigError(
            f"process.prediction={options.prediction}, but the teacher predicts {network.prediction}, and the student "
            f"starts from its weights; leave it out."
        )
    spec = network.spec
    assert spec is not None and not isinstance(recipe.model, PretrainedNetworkOptions)
    process = GaussianProcess(schedule, _source(network, recipe.objective))
    fresh = build_network(recipe.model, spec, seed=recipe.train.seed)
    own = NetworkDenoiser(fresh, process, network.prediction, spec=spec, data_std=network.data_std)
    take_weights(own, network, place)
    student = make_student(own, recipe.objective, recipe.train.seed)
    if isinstance(teacher.module, NetworkFlowMap):
        student.jump.load_state_dict(teacher.module.jump.state_dict())
    return student


def _source(network: NetworkDenoiser, options: FlowMapOptions) -> Literal["gaussian", "data"]:
    """Return the source of the student's process: the teacher's, where the student follows its paths."""
    follows = options.teacher or isinstance(options, ProgressiveOptions)
    return network.process.source if follows else "gaussian"

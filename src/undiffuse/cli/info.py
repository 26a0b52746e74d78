"""`undiffuse info`: what a model, a run, a data set or a recipe is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Json, Load

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.cli.places import Found
    from undiffuse.codecs.codec import Codec
    from undiffuse.data import DataOptions
    from undiffuse.process.schedules import Schedule
    from undiffuse.spec import DataSpec

EPILOG = """\b
Examples:
  undiffuse info runs/photos
  undiffuse info photos/ data.size=32 data.cond=caption,age:vector
  undiffuse info recipe:image
"""


def info(
    name: Annotated[str, typer.Argument(metavar="MODEL|RUN|DATA|recipe:NAME", help="What to look at.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data.KEY=VALUE]", help="How to read data, as for training.", show_default=False),
    ] = None,
    load: Load = None,
    json: Json = False,
) -> None:
    """Say what a model, a run, a data set (also: data:digits) or a recipe (recipe:image) is."""
    from undiffuse.cli.output import Output
    from undiffuse.models.codecs import is_codec_alone

    output = Output(json)
    kind, colon, rest = name.partition(":")
    path = Path(name)
    is_other = bool(options) or (bool(colon) and kind in ("recipe", "data")) or is_codec_alone(path)
    if load and (is_other or not _is_model(name)):
        raise ValueError(f"--load says how a pipeline of diffusers is loaded, and {name} is no model; leave it out.")
    if options:
        _show_data(output, rest if colon and kind == "data" else name, options)
    elif colon and kind == "recipe":
        from undiffuse.cli.keys import show_keys

        show_keys(output, rest)
    elif colon and kind == "data":
        _show_data(output, rest)
    elif is_codec_alone(path):
        _show_codec(output, name)
    elif _is_model(name):
        _show_model(output, name, load)
    elif (path / "recipe.yaml").is_file():
        _show_unfinished(output, path)
    else:
        _show_data(output, name)


def _is_model(name: str) -> bool:
    from undiffuse.models import BUILTIN
    from undiffuse.pretrained.loading import is_diffusers

    path = Path(name)
    known = name in BUILTIN or path.name == "model.safetensors" or (path / "config.json").is_file()
    return known or is_diffusers(name)


def _show_model(output: Output, name: str, load: list[str] | None) -> None:
    from undiffuse.cli.places import find_model

    found = find_model(name, "cpu", load=load)
    facts = {"model": name, **_spec_facts(found.model.spec), **_codec_facts(found.model.codec), **_network_facts(found)}
    facts |= _run_facts(found.folder) if found.folder is not None else {}
    output.pairs(facts)
    output.result(facts | {"spec": found.model.spec.to_json(), "defaults": found.model.defaults} | _recipe(found))


def _show_codec(output: Output, name: str) -> None:
    from undiffuse.models.codecs import load_codec

    codec = load_codec(name)
    facts = {"codec of": name, **_spec_facts(codec.data), **_codec_facts(codec), **_run_facts(Path(name))}
    output.pairs(facts)
    output.result(facts | {"spec": codec.data.to_json(), "latent": codec.latent.to_json()})


def _codec_facts(codec: Codec | None) -> dict[str, Any]:
    """Return what a codec makes, and the health of its codebook as its training logged it last."""
    from undiffuse.training.planning import latent_words

    if codec is None:
        return {}
    return {"codec": f"{codec.options.kind}, to latents of {latent_words(codec.latent)}"}


def _codebook_facts(folder: Path) -> dict[str, Any]:
    """Return the health of the codebook at the end of the codec's training, from its log."""
    from undiffuse.training.log import read_log

    rows = [row for place in (folder, folder / "codec") for row in read_log(place / "log.jsonl") if "codebook" in row]
    if not rows:
        return {}
    last = rows[-1]["codebook"]
    return {
        "codebook": f"{last['usage']:.1%} of {last['codes']} codes used, perplexity {last['perplexity']:.1f}, squared "
        f"error {last['error']:.4g}"
    }


def _recipe(found: Found) -> dict[str, Any]:
    from undiffuse.config import to_dict

    return {"recipe": None if found.recipe is None else to_dict(found.recipe)}


def _show_unfinished(output: Output, path: Path) -> None:
    facts = {"run": path, "state": "no model yet; its first checkpoint writes one", **_run_facts(path)}
    output.pairs(facts)
    output.result(facts)


def _show_data(output: Output, source: str, options: Sequence[str] = ()) -> None:
    from undiffuse.data import open_data

    dataset = open_data(source, data_options(options) if options else None)
    lines = dataset.summary()
    facts = {"data": source, **_spec_facts(dataset.spec), "items": len(dataset)}
    output.pairs(facts)
    for line in lines:
        (output.warn if line.startswith("warning") else output.say)(line)
    problems = [str(problem) for problem in dataset.problems]
    output.result(facts | {"spec": dataset.spec.to_json(), "summary": lines, "problems": problems})


def data_options(words: Sequence[str]) -> DataOptions:
    """Return how to read data, from texts "data.key=value".

    Raises:
        typer.BadParameter: A word is about something else than data.
        ConfigError: There is no such option, or its value does not fit.
    """
    from undiffuse.config import resolve
    from undiffuse.training.recipe import Recipe, override_layers

    for word in words:
        if "=" not in word or not word.startswith(("data.", "data=")):
            raise typer.BadParameter(f"{word!r} does not say how to read data; write data.KEY=VALUE")
    return resolve(Recipe, *override_layers(words)).data


def _spec_facts(spec: DataSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": spec.kind, "shape": " x ".join(map(str, spec.shape))}
    if spec.range is not None:
        facts["range"] = f"{spec.range[0]:g} to {spec.range[1]:g}"
    if spec.classes:
        facts["classes"] = f"{len(spec.classes)}: {_some(spec.classes)}"
    if spec.vocabulary:
        facts["vocabulary"] = f"{len(spec.vocabulary)}: {_some([repr(token) for token in spec.vocabulary])}"
    return facts


def _some(names: tuple[str, ...] | list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _network_facts(found: Found) -> dict[str, Any]:
    from undiffuse.models.description import denoiser_to_json

    if "pipeline" in found.model.info:
        return _pipeline_facts(found)
    described = denoiser_to_json(found.model.module)
    network, process = described["network"], described["process"]
    jumps = {"flow map": _jumps(described["flow_map"])} if "flow_map" in described else {}
    return jumps | {
        "network": f"{network['kind']}, {found.model.parameters:,} parameters",
        "process": _process(process, described["parametrisation"], found),
        "sampling": ", ".join(f"{key} {value}" for key, value in found.model.defaults.items()) or "defaults",
        "trained on": found.recipe.data.source if found.recipe is not None else "unknown",
    }


def _pipeline_facts(found: Found) -> dict[str, Any]:
    """Return what a model from diffusers is: its network, its noise levels and its conditions."""
    model = found.model
    process, defaults = model.process, dict(model.defaults)
    scheduler = (defaults.pop("scheduler", None) or {}).get("config", {}).get("_class_name")
    levels = f"gaussian, {_schedule_words(process.schedule)}" if hasattr(process, "schedule") else "categorical"
    predicts = f", predicts {model.module.prediction}" if hasattr(model.module, "prediction") else ""
    encoders = ", encoders of text included" if "prompt" in model.spec.cond else ""
    sampling = {**({"as": scheduler} if scheduler else {}), **defaults}
    return {
        "network": f"{model.info['pipeline']} of diffusers, {model.parameters:,} parameters{encoders}",
        "process": levels + predicts,
        "conditions": ", ".join(f"{name} ({part.kind})" for name, part in model.spec.conditions.items()) or "none",
        "sampling": ", ".join(f"{key} {value}" for key, value in sampling.items()) or "defaults",
    }


def _schedule_words(schedule: Schedule) -> str:
    """Return the name of a schedule; of a table the betas that make it."""
    from undiffuse.process.tables import TableSchedule
    from undiffuse.sampling.diffusers_betas import Betas

    if not isinstance(schedule, TableSchedule):
        return f"{schedule.name} schedule"
    betas = Betas.of(schedule)
    ends = f" {betas.first:.4g} to {betas.last:.4g}" if betas.kind in ("linear", "scaled_linear") else ""
    if betas.trained is not None:
        law = f"betas of its own, {betas.trained[0]:.4g} to {betas.trained[-1]:.4g}"
    else:
        law = f"{betas.kind.replace('_', ' ')} betas{ends}"
    return f"table of {betas.count} levels ({law}{', ending in pure noise' if schedule.ends_in_noise else ''})"


def _jumps(trained: dict[str, Any]) -> str:
    """Return which jumps a flow map was trained for."""
    words = {"any": "any two times", "clean": "to clean data", "steps": "the steps of a grid"}
    guided = f", guidance {trained['guided']:g} folded in" if trained["guided"] != 1 else ""
    return f"jumps: {words[trained['spans']]}{guided}"


def _process(process: dict[str, Any], parametrisation: dict[str, Any], found: Found) -> str:
    if process["kind"] == "gaussian":
        words = _schedule_words(found.model.process.schedule)  # type: ignore[union-attr]
        return f"gaussian, {words}, predicts {parametrisation['prediction']}"
    return f"categorical, {process['corruption']}"


def _run_facts(folder: Path) -> dict[str, Any]:
    """Return how far a run went, from its log and its figures."""
    from undiffuse.cli.places import read_run_recipe
    from undiffuse.training.log import read_log

    facts: dict[str, Any] = _codebook_facts(folder)
    rows = [row for row in read_log(folder / "log.jsonl") if row.get("loss") is not None]
    recipe = read_run_recipe(folder)
    if rows and recipe is not None:
        facts["steps"] = f"{rows[-1]['step']} of {recipe.train.steps}"
    if rows:
        facts["loss"] = f"{rows[-1]['loss']:.4g}"
    for name in ("report.html", "metrics.json"):
        if (folder / name).is_file():
            facts[name.partition(".")[0]] = folder / name
    return facts

"""Self-Bench: a model's own generations as a task, so that what it cannot do is told from what lies outside its domain.

Each prompt is drawn several times by the model itself. The pictures, filtered, become items whose candidates are the
prompt and what competes with it. A model then reads its own pictures (in domain) and those of others (across).

Source: Jeong et al. 2025, arXiv:2505.17955, section 4.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.analysis.compositionality.bench import ComposeReport, bench_compose
from undiffuse.analysis.compositionality.pictures import load_pictures
from undiffuse.analysis.compositionality.prompts import Prompt, prompts_of
from undiffuse.analysis.compositionality.task import FILE, Item, Picture, Task, Text, read_json, save_array, write_task
from undiffuse.errors import DataError, UndiffuseError
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.files import write_whole
from undiffuse.images.write import write_image
from undiffuse.limits import check_counts
from undiffuse.metrics.shares import Share, share
from undiffuse.models.model import Model
from undiffuse.spec import DataSpec
from undiffuse.words import plain_json

TASK = "self-bench"
SETTINGS = "self.json"
_BATCH = 64
Filter = Callable[[Tensor, Sequence[Prompt]], Any] | str | Path


@dataclass(frozen=True)
class SelfBench:
    """A model's generations as tasks.

    Args:
        tasks: What passed the filter, a task for each kind of prompt.
        folder: Where they lie.
        drawn: Pictures drawn.
        passed: How many passed, with an interval; None without a filter.
    """

    tasks: tuple[Task, ...]
    folder: Path
    drawn: int
    passed: Share | None = None


def self_bench(
    model: Model,
    folder: str | Path,
    *,
    prompts: Sequence[Prompt] | None = None,
    samples: int = 4,
    guidance: float = 3.0,
    filter: Filter | None = None,
    seed: int = 0,
    listener: Listener = silent,
    **sampling: Any,
) -> SelfBench:
    """Draw pictures of prompts and write them as tasks. What is there already is not drawn again.

    Args:
        model: Draws; a picture depends on its prompt's place, the seed and the settings alone.
        folder: Where pictures, `self.json` and a folder with `task.json` for each kind of prompt go.
        prompts: See `prompts_of`, `geneval_prompts` and `text_prompts`; None: all classes of the model.
        samples: Pictures of each.
        guidance: Scale of classifier-free guidance; 1 is conditional without it.
        filter: Keeps what shows its prompt: called with pictures (n, *shape) in data units and their prompts it returns
            bool (n,); or a CSV file with the columns file and correct (as people filled it in). None: all are kept.
        seed: Of the noise.
        listener: Hears about progress.
        sampling: Further arguments of `Model.sample`: solver, steps, grid, ...

    Raises:
        ValueError: No prompts, or fewer than one picture each.
        UndiffuseError: The folder holds a Self-Bench of other settings, or nothing passes the filter.
    """
    chosen = prompts_of(model.spec) if prompts is None else list(prompts)
    check_counts(samples=samples)
    if not chosen:
        raise ValueError("there are no prompts; give at least one.")
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    settings = {"seed": seed, "samples": samples, "guidance": guidance, "sampling": sampling}
    settings["model"] = fingerprint(model)
    _bind(place, plain_json({"prompts": [prompt.text for prompt in chosen], **settings}))
    files = _draw(model, place, chosen, samples, {"seed": seed, "guidance": guidance, **sampling}, listener)
    asked = [prompt for prompt in chosen for _ in range(samples)]
    kept = None if filter is None else _passed(filter, model.spec, place, files, asked)
    tasks = _tasks(place, files, asked, kept)
    if not tasks:
        raise UndiffuseError(f"none of {len(files)} pictures in {place} passed the filter; look at them.")
    for name in {prompt.task for prompt in chosen} - {task.name for task in tasks}:
        (place / name / FILE).unlink(missing_ok=True)  # of another filter
    for task in tasks:
        write_task(task, place / task.name)
    return SelfBench(tuple(tasks), place, len(files), None if kept is None else share(kept))


def fingerprint(model: Model) -> str:
    """Return a name of a model by its shapes and a few numbers of each of its tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        few = tensor.detach().flatten()[:16].double().cpu().numpy()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + few.tobytes())
    return found.hexdigest()[:16]


def _bind(folder: Path, settings: dict[str, Any]) -> None:
    """Tie the folder to settings.

    Raises:
        UndiffuseError: It is tied to others.
    """
    path = folder / SETTINGS
    if path.is_file():
        known = read_json(path)
        other = [key for key in settings if not isinstance(known, dict) or known.get(key) != settings[key]]
        if other:
            raise UndiffuseError(
                f"{folder} holds a Self-Bench with another {', '.join(other)}; give another folder, or remove it."
            )
        return
    text = json.dumps(settings, indent=1) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _draw(
    model: Model, folder: Path, prompts: Sequence[Prompt], samples: int, sampling: dict[str, Any], listener: Listener
) -> list[str]:
    """Draw what is missing and return the names of all files, prompt by prompt."""
    suffix = "png" if model.spec.kind == "image" and model.spec.range else "npy"
    count = len(prompts) * samples
    files = [f"{number:06d}.{suffix}" for number in range(count)]
    listener(Started(TASK, count, "picture"))
    for low in range(0, count, _BATCH):
        numbers = range(low, min(low + _BATCH, count))
        if not all((folder / files[number]).is_file() for number in numbers):
            cond = conditions([prompts[number // samples].text for number in numbers], model.spec)
            pictures = model.sample(len(numbers), cond=cond, first=low, **sampling)
            for number, picture in zip(numbers, pictures, strict=True):
                if not (folder / files[number]).is_file():
                    _write(folder / files[number], picture.cpu(), model.spec, prompts[number // samples])
        listener(Advanced(TASK, numbers.stop))
    listener(Finished(TASK))
    return files


def conditions(texts: Sequence[Text], spec: DataSpec) -> dict[str, list[Any]]:
    """Return the conditions of samples that are drawn from texts, one value a sample.

    Raises:
        ValueError: The texts do not say which condition they are.
    """
    if all(not isinstance(text, str) for text in texts):
        return {key: [text[key] for text in texts] for key in texts[0]}  # type: ignore[index]
    known = spec.conditions
    words = [name for name, part in known.items() if part.kind in ("text", "embedding")]
    name = "label" if "label" in known else words[0] if len(words) == 1 else ""
    if not name or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"which of {', '.join(known) or 'no conditions'} are the texts? Give conditions by name.")
    return {name: list(texts)}


def _write(path: Path, picture: Tensor, spec: DataSpec, prompt: Prompt) -> None:
    if path.suffix == ".npy":
        write_whole(path, partial(save_array, array=picture.numpy()))
        return
    assert spec.range is not None
    low, high = spec.range
    pixels = ((picture.permute(1, 2, 0) - low) * (255.0 / (high - low))).round().clamp(0, 255).byte().numpy()
    write_image(path, pixels, {"prompt": plain_json(prompt.text)})


def _passed(filter: Filter, spec: DataSpec, folder: Path, files: Sequence[str], asked: Sequence[Prompt]) -> Tensor:
    """Return which pictures pass, bool (n,)."""
    if not callable(filter):
        verdicts = read_verdicts(Path(filter))
        missing = [file for file in files if file not in verdicts]
        if missing:
            raise DataError(f"{filter} says nothing of {len(missing)} of {len(files)} pictures, such as {missing[0]}.")
        return torch.tensor([verdicts[file] for file in files])
    everything = _as_task(folder, files, asked)
    found = [
        torch.as_tensor(
            filter(load_pictures(everything, _pictures(files[low : low + 256]), spec), asked[low : low + 256])
        )
        for low in range(0, len(files), 256)
    ]
    kept = torch.cat(found)
    if kept.shape != (len(files),):
        raise ValueError(
            f"the filter returned shape {tuple(kept.shape)} for {len(files)} pictures; expected one bool each."
        )
    return kept.bool()


def read_verdicts(path: Path) -> dict[str, bool]:
    """Read a CSV file with the columns file and correct: 1, true or yes for what shows its prompt.

    Raises:
        DataError: It is missing or has other columns.
    """
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            return {row["file"]: row["correct"].strip().lower() in ("1", "true", "yes") for row in csv.DictReader(file)}
    except OSError as error:
        raise DataError(
            f"{path} is no filter ({error.strerror}); say classifier, or a CSV file with the columns file and correct."
        ) from error
    except (KeyError, AttributeError) as error:
        raise DataError(f"{path} lacks the columns file and correct, or a value of them.") from error


def classifier_filter(classifier: Any, classes: Sequence[str]) -> Callable[[Tensor, Sequence[Prompt]], Tensor]:
    """Return a filter that keeps what a supervised classifier names as it was asked for.

    Args:
        classifier: Has `predict`, from items (n, *) to class numbers (n,), such as `ClassifierFeatures`.
        classes: Their names.
    """

    def keep(pictures: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        unknown = next((prompt.text for prompt in prompts if prompt.text not in classes), None)
        if unknown is not None:
            raise ValueError(
                f"the classifier knows no {unknown!r}; filter such prompts by a CSV file that people filled in."
            )
        wanted = torch.tensor([list(classes).index(str(prompt.text)) for prompt in prompts])
        return torch.as_tensor(np.asarray(classifier.predict(pictures.cpu()))) == wanted

    return keep


def _pictures(files: Sequence[str]) -> list[Picture | int]:
    return [Picture(file) for file in files]


def _as_task(folder: Path, files: Sequence[str], asked: Sequence[Prompt]) -> Task:
    items = tuple(
        Item(images=(Picture(file),), texts=prompt.candidates, answer=prompt.answer)
        for file, prompt in zip(files, asked, strict=True)
    )
    return Task(name="self-bench", items=items, folder=folder)


def _tasks(folder: Path, files: Sequence[str], asked: Sequence[Prompt], kept: Tensor | None) -> list[Task]:
    everything = _as_task(folder, files, asked)
    kinds = list(dict.fromkeys((prompt.task, prompt.group) for prompt in asked))
    found = []
    for name, group in kinds:
        chosen = [i for i, p in enumerate(asked) if p.task == name and (kept is None or bool(kept[i]))]
        if chosen:
            items = everything.take(chosen).items
            found.append(Task(name=name, items=items, group=group, folder=folder))
    return found


def read_self_bench(folder: str | Path) -> list[Task]:
    """Read the tasks that `self_bench` wrote.

    Raises:
        DataError: There are none.
    """
    from undiffuse.analysis.compositionality.task import read_task

    place = Path(folder).expanduser()
    found = sorted(path.parent for path in place.glob(f"*/{FILE}"))
    if not found:
        raise DataError(f"{place} holds no Self-Bench; undiffuse self-bench writes one.")
    return [read_task(path) for path in found]


def joined(tasks: Sequence[Task], name: str = "own") -> Task:
    """Return tasks of pictures on disk as one, in which each item keeps its own texts."""

    def whole(task: Task, item: Item) -> Item:
        base = task.folder or Path()
        files = (
            replace(image, file=str((base / image.file).resolve()))
            for image in item.images
            if isinstance(image, Picture)
        )
        return replace(item, images=tuple(files))

    return Task(name=name, items=tuple(whole(task, item) for task in tasks for item in task.items))


def cross_matrix(
    models: Mapping[str, Model], benches: Mapping[str, Sequence[Task]], listener: Listener = silent, **options: Any
) -> dict[tuple[str, str], ComposeReport]:
    """Return how each model reads the pictures of each: (reader, maker) -> report.

    Args:
        models: Name -> reader.
        benches: Name of the maker -> its tasks.
        listener: Hears about progress.
        options: See `bench_compose`.
    """
    return {
        (reader, maker): bench_compose(model, tasks, listener=listener, **options)
        for reader, model in models.items()
        for maker, tasks in benches.items()
    }

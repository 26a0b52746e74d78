"""Self-Bench: what a model draws is what it is asked about; the exact model reads it as Bayes does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tasks.classify.oracles import gaussian_classes, log_joint
from undiffuse.analysis.compositionality.bench import rows_of
from undiffuse.analysis.compositionality.own_generations import cross_matrix, read_self_bench, self_bench
from undiffuse.analysis.compositionality.prompts import Prompt, geneval_prompts, prompts_of, text_prompts
from undiffuse.analysis.compositionality.score import score_task
from undiffuse.analysis.compositionality.task import read_task
from undiffuse.errors import DataError, UndiffuseError
from undiffuse.models.model import Model
from undiffuse.spec import ConditionSpec, DataSpec

FAST = {"solver": "ddim", "steps": 12, "guidance": 1.0}


@pytest.fixture(scope="module")
def model() -> Model:
    """Three Gaussian classes that overlap, in 6 dimensions."""
    mixture = gaussian_classes([0.5, 0.5, 0.5], dims=6, spread=0.6)
    return Model(mixture, DataSpec(kind="vector", shape=(6,), classes=("a", "b", "c")))


@pytest.mark.slow
def test_the_exact_model_reads_its_own_items_as_bayes_does(model: Model, tmp_path: Path):
    """Generation by its own sampler, choice by the evidence bound: the Bayes accuracy, 120 items of each class.

    Both choose by the same items, so what differs is the quadrature: at most 2 % of the choices; and the accuracy is
    that of the Bayes rule on items drawn exactly, at 3 standard errors of both.
    """
    made = self_bench(model, tmp_path, samples=120, guidance=1.0, solver="heun", steps=40)
    (task,) = made.tasks
    found = score_task(model, task, times=20, spacing="logsnr", antithetic=True)
    (row, *_) = rows_of(found, "elbo")
    data = torch.stack(
        [torch.from_numpy(_array(tmp_path / image.file)) for item in task.items for image in item.images]
    )
    answers = torch.tensor(task.answers)
    bayes = log_joint(model.denoiser, data.double()).argmax(1) == answers
    chosen = torch.tensor(row.hits)
    assert float((chosen != bayes).double().mean()) < 0.02
    noise = torch.randn(30_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = torch.stack([part.mean for part in model.denoiser.components])
    labels = torch.arange(3).repeat_interleave(10_000)
    exact = log_joint(model.denoiser, means[labels] + 0.5**0.5 * noise).argmax(1) == labels
    p = float(exact.double().mean())
    assert 0.6 < p < 0.95
    assert abs(row.value - p) < 3 * (p * (1 - p) * (1 / 360 + 1 / 30_000)) ** 0.5


def _array(path: Path):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.load(path, allow_pickle=False)


def test_what_is_there_is_not_drawn_again(model: Model, tmp_path: Path):
    first = self_bench(model, tmp_path, samples=2, seed=4, **FAST)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
    assert len(kept) == 6 and first.drawn == 6
    (tmp_path / "000003.npy").unlink()
    stamp = (tmp_path / "000000.npy").stat().st_mtime_ns
    self_bench(model, tmp_path, samples=2, seed=4, **FAST)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")} == kept
    assert (tmp_path / "000000.npy").stat().st_mtime_ns == stamp
    assert [task.answers for task in read_self_bench(tmp_path)] == [[0, 0, 1, 1, 2, 2]]
    with pytest.raises(UndiffuseError, match="with another seed; give another folder"):
        self_bench(model, tmp_path, samples=2, seed=5, **FAST)
    other = Model(gaussian_classes([0.5, 0.5, 0.5], dims=6, spread=0.5), model.spec)
    with pytest.raises(UndiffuseError, match="with another model; give another folder"):
        self_bench(other, tmp_path, samples=2, seed=4, **FAST)


def test_filters_keep_what_they_say(model: Model, tmp_path: Path):
    def positive(items: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert [prompt.text for prompt in prompts] == ["a", "a", "b", "b", "c", "c"]
        return items[:, 0] > 0

    made = self_bench(model, tmp_path, samples=2, filter=positive, **FAST)
    assert made.passed is not None and made.passed.n == 6
    assert sum(map(len, made.tasks)) == made.passed.hits
    verdicts = "file,correct\n" + "".join(f"{i:06d}.npy,{i % 2}\n" for i in range(6))
    (tmp_path / "people.csv").write_text(verdicts)
    by_people = self_bench(model, tmp_path, samples=2, filter=tmp_path / "people.csv", **FAST)
    assert by_people.tasks[0].answers == [0, 1, 2]
    assert read_task(tmp_path / "own-classes").answers == [0, 1, 2]
    (tmp_path / "people.csv").write_text("file,correct\n000000.npy,1\n")
    with pytest.raises(DataError, match="says nothing of 5 of 6 pictures"):
        self_bench(model, tmp_path, samples=2, filter=tmp_path / "people.csv", **FAST)
    with pytest.raises(UndiffuseError, match="none of 6 pictures"):
        self_bench(model, tmp_path, samples=2, filter=lambda items, prompts: torch.zeros(len(items)), **FAST)


def test_each_model_reads_the_pictures_of_each(model: Model, tmp_path: Path):
    tasks = self_bench(model, tmp_path, samples=2, **FAST).tasks
    found = cross_matrix({"m": model, "n": model}, {"m": tasks}, times=2)
    assert set(found) == {("m", "m"), ("n", "m")}
    assert found["m", "m"].rows == found["n", "m"].rows


def test_prompts_of_labels_and_their_combinations():
    spec = DataSpec(
        kind="vector",
        shape=(2,),
        cond={
            "left": ConditionSpec(kind="label", classes=("1", "2")),
            "right": ConditionSpec(kind="label", classes=("x", "y", "z")),
        },
    )
    found = prompts_of(spec)
    assert (
        len(found) == 6
        and found[3].text == {"left": "2", "right": "y"}
        and len(set(map(str, found[0].candidates))) == 6
    )
    with pytest.raises(ValueError, match="give prompts"):
        prompts_of(DataSpec(kind="vector", shape=(2,)))
    with pytest.raises(ValueError, match="two or more, each once"):
        text_prompts(["a cat", "a cat"])


def test_prompts_of_geneval_compete_with_their_kind(tmp_path: Path):
    lines = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
        {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"},
        {"tag": "colors", "include": [{"class": "kite", "color": "red"}], "prompt": "a photo of a red kite"},
        {
            "tag": "position",
            "include": [{"class": "cat", "count": 1}, {"class": "dog", "position": ["left of", 0]}],
            "prompt": "a photo of a dog left of a cat",
        },
        {
            "tag": "color_attr",
            "include": [{"class": "cup", "color": "red"}, {"class": "box", "color": "blue"}],
            "prompt": "a photo of a red cup and a blue box",
        },
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = {prompt.task: prompt for prompt in geneval_prompts(path)}
    assert found["own-single-object"].candidates == ("a photo of a bench", "a photo of a cow")
    assert set(found["own-counting"].candidates) == {
        "a photo of one dog",
        "a photo of two dogs",
        "a photo of three dogs",
        "a photo of four dogs",
    }
    assert len(found["own-colors"].candidates) == 10 and "a photo of an orange kite" in found["own-colors"].candidates
    assert set(found["own-position"].candidates) == {  # one of them is true
        f"a photo of a dog {place} a cat" for place in ("left of", "right of", "above", "below")
    }
    assert len(found["own-color-attr"].candidates) == 90
    assert all(prompt.text in [line["prompt"] for line in lines] for prompt in found.values())
    path.write_text('{"tag": "smell"}')
    with pytest.raises(DataError, match="not laid out as GenEval"):
        geneval_prompts(path)

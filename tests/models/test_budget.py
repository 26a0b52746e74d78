"""Truncation, purity and caps as arguments of `Model.sample`, defaults of a model, and words of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.masked import binary_joint, joint_denoiser
from undiffuse.cli.main import run
from undiffuse.config import resolve
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import ConfigError
from undiffuse.guidance.categorical import Sharpen, Truncate
from undiffuse.models.model import Model
from undiffuse.networks import TransformerOptions, build_network
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.token_budget import TokenBudget
from undiffuse.spec import DataSpec
from undiffuse.training.recipe import Recipe

SPEC = DataSpec(kind="tokens", shape=(6,), vocabulary=("a", "b"))


def joint_model(**defaults: Any) -> Model:
    return Model(joint_denoiser(binary_joint()), SPEC, defaults)


def test_arguments_are_the_solver_and_the_wrappers_in_their_order() -> None:
    words: dict[str, Any] = {"truncation": 0.8, "purity": 2.0, "tokens_per_call": 2, "steps": 2}
    found = joint_model().sample_result(8, **words)
    solver = TokenBudget(tokens_per_call=2, positions="purity")
    built = joint_model().sample_result(
        8, solver=solver, steps=2, wrap=[lambda d: Truncate(d, 0.8), lambda d: Sharpen(d, 2.0)]
    )
    assert torch.equal(found.x, built.x) and found.nfe == built.nfe == 4
    by_default = joint_model(solver="token-budget", **words).sample_result(8)
    assert torch.equal(found.x, by_default.x) and by_default.nfe == 4


def test_purity_with_another_solver_sharpens_alone() -> None:
    found = joint_model().sample(8, purity=2.0, solver="ancestral", steps=5)
    assert torch.equal(found, joint_model().sample(8, solver="ancestral", steps=5, wrap=lambda d: Sharpen(d, 2.0)))


def test_without_any_the_model_samples_as_before_and_one_and_zero_change_nothing() -> None:
    plain = joint_model().sample(8, steps=3, solver="ancestral")
    assert torch.equal(plain, joint_model().sample(8, steps=3, solver="ancestral", truncation=1.0, purity=0.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"truncation": 0.0}, r"outside of \(0, 1\]"),
        ({"truncation": 1.2}, r"outside of \(0, 1\]"),
        ({"purity": -1.0}, "must not be negative"),
        ({"tokens_per_call": 0}, "at least 1"),
        ({"tokens_per_call": 3, "solver": "ancestral"}, "belongs to solver 'token-budget', not 'ancestral'"),
        ({"guidance": 3.0, "cond": {"label": 1}}, "label"),
    ],
)
def test_bad_arguments_say_what_to_do(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joint_model().sample(2, **words)


def test_continuous_data_have_no_classes_to_rule_out() -> None:
    gaussian = GaussianDenoiser(torch.zeros(2), torch.eye(2), GaussianProcess(make_schedule("rf")))
    model = Model(gaussian, DataSpec(kind="vector", shape=(2,)))
    with pytest.raises(ValueError, match="continuous"):
        model.sample(2, truncation=0.5)


def test_a_recipe_holds_them_and_says_what_they_need() -> None:
    tokens = ["model=transformer", "process=categorical", "objective=masked-elbo"]
    budget = ["sample.solver=token-budget", "sample.purity=1", "sample.tokens_per_call=4", "sample.truncation=0.9"]
    assert resolve(Recipe, tokens + budget).sample.purity == 1.0
    for words, message in (
        (["sample.purity=1"], "token-budget"),
        (["sample.truncation=2"], "outside"),
        (["sample.purity=-1", "sample.solver=token-budget"], "negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve(Recipe, tokens + words)
    with pytest.raises(ConfigError, match="classes of tokens"):
        resolve(Recipe, ["sample.truncation=0.9"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of letters with two classes of texts."""
    spec = DataSpec(kind="tokens", shape=(8,), vocabulary=tuple("abcd"), classes=("x", "y"))
    process = CategoricalProcess("mask-replace", 4)
    options = TransformerOptions(width=16, depth=1, heads=2, time_dependent=True)
    network = build_network(options, spec, states=process.states)
    denoiser = CategoricalDenoiser(network, process, spec=spec, time_dependent=True)
    return Model(denoiser, spec).save(tmp_path_factory.mktemp("model"))


def test_the_command_takes_them(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--guidance", "2", "--truncation", "0.86", "--purity", "1", "--tokens-per-call", "3", "--steps", "2"]
    assert run(["sample", str(folder), *words, "-n", "2", "--json", "--out", str(tmp_path)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["sampling"] | {"truncation": 0.86, "purity": 1.0, "tokens_per_call": 3} == made["sampling"]
    assert made["evaluations"] % 2 == 0  # guided: two for each call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--truncation", "1.5"], "outside of (0, 1]"),
        (["--purity", "-1"], "must not be negative"),
        (["--tokens-per-call", "2", "--solver", "ancestral"], "token-budget"),
        (["--guidance", "3", "--label", "none"], "needs a condition"),
    ],
)
def test_bad_words_are_one_line(
    folder: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", str(folder), "-n", "1", *words, "--out", str(tmp_path)]) != 0
    error = capsys.readouterr().err
    assert message in " ".join(error.split()) and "Traceback" not in error

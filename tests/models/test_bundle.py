"""A model on disk: what comes back is what was saved, and what is refused says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import undiffuse
from tests.oracles.continuous import SCHEDULE_NAMES, process_of, spec_mixture
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import CheckpointError
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models.bundle import BUILTIN, load
from undiffuse.models.folder import SCHEMA
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import DiTOptions, MLPOptions, NetworkOptions, TransformerOptions, UNetOptions
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.keep import LinearKeep
from undiffuse.spec import ConditionSpec, DataSpec


def stirred(network: nn.Module) -> nn.Module:
    """Move every weight, so that zero-initialised outputs say something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network


def vector_model(schedule: str = "trig", **options: Any) -> Model:
    pose = ConditionSpec(kind="vector", width=3)
    spec = DataSpec(
        kind="vector", shape=(2,), mean=(1.0, 2.0), std=(0.5, 2.0), classes=("cat", "dog"), cond={"pose": pose}
    )
    network = stirred(build_network(MLPOptions(width=8, depth=1), spec))
    denoiser = NetworkDenoiser(network, process_of(schedule, **options), "v", spec=spec, data_std=0.8)
    return Model(denoiser, spec, {"solver": "ddim", "steps": 4, "guidance": 1.5}, {"note": "test", "seed": 3})


def image_model() -> Model:
    spec = DataSpec(kind="image", shape=(1, 4, 4), range=(0, 16))
    options: NetworkOptions = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
    denoiser = NetworkDenoiser(stirred(build_network(options, spec)), process_of("rf", shift=2.0), "edm", spec=spec)
    return Model(denoiser, spec)


def token_model() -> Model:
    spec = DataSpec(kind="tokens", shape=(6,), vocabulary=("a", "b", "\n"))
    process = CategoricalProcess("absorbing", 3, LinearKeep())
    network = stirred(build_network(TransformerOptions(width=16, depth=1, heads=2), spec, states=process.states))
    return Model(CategoricalDenoiser(network, process, spec=spec, time_dependent=False), spec)


def video_model() -> Model:
    spec = DataSpec(kind="video", shape=(3, 1, 4, 4))
    options = DiTOptions(width=16, depth=2, heads=2, positions="learned", qk_norm=True, temporal=True)
    return Model(NetworkDenoiser(stirred(build_network(options, spec)), process_of("rf"), "velocity", spec=spec), spec)


MODELS: dict[str, Callable[[], Model]] = {
    "vector": vector_model,
    "image": image_model,
    "video": video_model,
    "tokens": token_model,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return vector_model().save(tmp_path / "model")


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_model_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    folder = model.save(tmp_path / "deep" / "model")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = load(folder)
    assert again.spec == model.spec
    assert again.defaults == model.defaults
    assert again.info == model.info
    assert again.denoiser.process == model.denoiser.process
    assert not again.denoiser.training
    before, after = model.denoiser.state_dict(), again.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again.sample(3, seed=5), model.sample(3, seed=5))
    # saving what was loaded writes the same files
    twice = again.save(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (twice / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_every_schedule_survives(name: str, tmp_path: Path) -> None:
    model = vector_model(name)
    again = load(model.save(tmp_path / "m"))
    assert again.denoiser.process == model.denoiser.process
    assert torch.equal(again.sample(2), model.sample(2))


def test_building_a_model_leaves_the_global_generator_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_model_draws_pictures_and_states_its_figures(name: str) -> None:
    model = load(name)
    drawn = model.sample(2, steps=3, seed=0)
    assert drawn.shape == (2, *model.spec.shape)
    assert drawn.isfinite().all()
    folder = Path(undiffuse.__file__).parent / "builtin" / name
    assert (folder / "model.safetensors").stat().st_size < 12e6
    assert json.loads((folder / "metrics.json").read_text())["rows"]
    assert not Path(json.loads((folder / "config.json").read_text())["info"]["recipe"]["data"]["source"]).is_absolute()


def test_a_bundle_holds_no_pickle_and_its_card_describes_it(saved: Path) -> None:
    for path in saved.iterdir():
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"PK")
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert "vector" in card
    assert "note: test" in card
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["schema"] == SCHEMA
    assert config["kind"] == "denoiser"


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Copies: what safetensors loads is mapped to the file, and dies with it when it is overwritten in place."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def refuse(folder: Path, *parts: str) -> None:
    """Loading fails in one line that holds `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    for part in parts:
        assert part in message, message


def test_newer_schemas_are_refused(saved: Path) -> None:
    edit(saved, lambda c: c.update(schema=SCHEMA + 1))
    refuse(saved, f"schema {SCHEMA + 1}", "update undiffuse")


@pytest.mark.parametrize("schema", [None, 0, -1, "1", 1.5])
def test_schemas_that_are_no_number_are_refused(saved: Path, schema: object) -> None:
    edit(saved, lambda c: c.update(schema=schema))
    refuse(saved, "schema")


def test_pickles_are_refused_whatever_their_name(saved: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = tensors_of(weights)
    torch.save(tensors, weights)
    refuse(saved, "pickle", "Convert it")
    weights.write_bytes(pickle.dumps({"a": 1}))
    refuse(saved, "pickle")
    weights.unlink()
    torch.save(tensors, saved / "model.pt")
    refuse(saved, "model.pt", "pickle", "convert")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(saved: Path, keep: int) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refuse(saved, "damaged or truncated", "copy it again")


def test_tensors_of_another_network_are_refused(saved: Path, tmp_path: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = tensors_of(weights)
    name = min(tensors)
    save_file({**tensors, name: torch.zeros(7)}, weights)
    refuse(saved, name, "shape (7,)", "Put the two files of one model together")
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    refuse(saved, name, "1 missing")
    save_file({**tensors, "other": torch.zeros(1)}, weights)
    refuse(saved, "'other'", "1 unknown")
    shutil.copy(image_model().save(tmp_path / "image") / "model.safetensors", weights)
    refuse(saved, "another network")


def test_tensors_of_another_dtype_or_not_finite_keep_the_model_usable(saved: Path) -> None:
    weights = saved / "model.safetensors"
    save_file({k: v.half() for k, v in tensors_of(weights).items()}, weights)
    model = load(saved)
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("spec"),
        lambda c: c.pop("network"),
        lambda c: c.pop("process"),
        lambda c: c.pop("parametrisation"),
        lambda c: c["network"].update(kind="other"),
        lambda c: c["network"].update(depth=-1),
        lambda c: c["network"].update(unheard_of=1),
        lambda c: c["spec"].update(kind="smell"),
        lambda c: c["process"]["schedule"].update(name="none"),
        lambda c: c["parametrisation"].update(prediction="x"),
        lambda c: c.update(network=None),
        lambda c: c.update(spec=[1, 2]),
        lambda c: c["process"].update(kind="other"),
    ],
)
def test_configs_that_do_not_describe_a_model_are_refused(
    saved: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit(saved, change)
    refuse(saved)


def test_what_is_no_bundle_is_refused_with_a_remedy(tmp_path: Path, saved: Path) -> None:
    refuse(tmp_path / "nothing", "there is no model", "built-in")
    with pytest.raises(CheckpointError, match="Did you mean 'digits'"):
        load("digit")
    file = tmp_path / "file"
    file.write_text("x")
    refuse(file, "is a file", "give the folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, "config.json")
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    refuse(pipeline, "diffusers pipeline")
    (saved / "config.json").write_text("{not json")
    refuse(saved, "not readable JSON")
    for other in ("[]", '{"architectures": ["X"]}', "3"):
        (saved / "config.json").write_text(other)
        refuse(saved, "not a model of undiffuse")


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    refuse(saved, "model.safetensors is missing")


def test_wrappers_and_hand_built_networks_are_not_saved(tmp_path: Path) -> None:
    model = vector_model()
    guided = Model(ClassifierFreeGuidance(model.denoiser, 2.0), model.spec)
    with pytest.raises(TypeError, match="without wrappers"):
        guided.save(tmp_path / "a")
    with pytest.raises(TypeError, match="cannot be saved"):
        Model(spec_mixture(process_of("vp")), model.spec).save(tmp_path / "b")

    class Own(nn.Module):
        def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
            return x

    with pytest.raises(TypeError, match="built by hand"):
        Model(NetworkDenoiser(Own(), process_of("vp")), model.spec).save(tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot write the model"):
        vector_model().save(tmp_path / "file" / "model")


def test_saving_over_a_model_replaces_it_and_leaves_no_scraps(saved: Path) -> None:
    other = vector_model("rf")
    other.save(saved)
    assert load(saved).denoiser.process == other.denoiser.process
    assert len(list(saved.iterdir())) == 3


def test_schema_1_named_only_the_width_of_conditions(saved: Path) -> None:
    edit(saved, lambda c: (c.update(schema=1), c["spec"].update(cond={"pose": 3})))
    assert load(saved).spec == vector_model().spec

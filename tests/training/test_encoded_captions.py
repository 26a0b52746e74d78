"""From pictures with captions through a frozen encoder to a model that is asked in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from tests.data.encoders import write_encoder
from tests.data.files import pixels, save
from tests.models.test_bundle import stirred
from undiffuse.cli.conditions import load_conditions, of_sample, read_conditions
from undiffuse.codecs.options import PCAOptions
from undiffuse.data import open_data
from undiffuse.data.encoders import TextEncoder, get_encoder
from undiffuse.data.options import DataOptions
from undiffuse.errors import CheckpointError
from undiffuse.models.conditions import fit_conditions
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.latents import encode_data, start_codec
from undiffuse.training.recipe import Recipe

pytest.importorskip("transformers", reason="needs transformers")

CPU = torch.device("cpu")
CAPTIONS = ["a red square", "a blue circle", "green"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve captioned pictures and an encoder."""
    place = tmp_path_factory.mktemp("place")
    for at in range(12):
        save(place / "photos" / f"{at}.png", pixels(8, 8, seed=at))
        (place / "photos" / f"{at}.txt").write_text(CAPTIONS[at % 3])
    write_encoder(place / "encoder")
    return place


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    get_encoder.cache_clear()
    return tmp_path


def spec_of(folder: Path, length: int = 5) -> DataSpec:
    identity = TextEncoder(str(folder)).identity
    part = ConditionSpec(kind="embedding", length=length, width=16, encoder=str(folder), encoder_hash=identity)
    plain = ConditionSpec(kind="embedding", length=2, width=16)
    return DataSpec(kind="image", shape=(3, 8, 8), cond={"caption": part, "clip": plain})


def fitted(spec: DataSpec, n: int, value) -> torch.Tensor:
    return fit_conditions({"caption": value}, n, spec, CPU)["caption"]


def test_two_steps_of_training_and_a_caption(here: Path):
    overrides = ("data.encoder=encoder", "model.channels=8", "train.steps=2", "train.batch_size=4")
    run = ud.train("photos", out="run", overrides=(*overrides, "train.preview_every=0"))
    part = run.model.spec.cond["caption"]
    assert (part.kind, part.length, part.width, part.encoder) == ("embedding", 5, 16, "encoder")
    trained = run.model
    stirred(trained.denoiser)  # the last layer begins at zero, and two steps are few
    trained.save("model")
    model = ud.load("model")
    assert ud.load("run").spec == model.spec == run.model.spec
    assert DataSpec.from_json(model.spec.to_json()) == model.spec
    rows = TextEncoder("encoder").encode(["a blue circle"], 5).outputs.float()
    spoken = model.sample(2, cond={"caption": "a blue circle"}, steps=2, guidance=2.0)
    assert torch.equal(spoken, model.sample(2, cond={"caption": rows}, steps=2, guidance=2.0))
    assert not torch.equal(spoken, model.sample(2, cond={"caption": "green"}, steps=2, guidance=2.0))
    shutil.rmtree("encoder")
    get_encoder.cache_clear()
    with pytest.raises(CheckpointError, match=r"the encoder encoder is gone: .* give the encoder's outputs as tensors"):
        model.sample(1, cond={"caption": "green"}, steps=2)
    assert torch.equal(spoken, model.sample(2, cond={"caption": rows}, steps=2, guidance=2.0))


def test_a_batch_and_a_question_hold_the_same_numbers(here: Path):
    """Outputs are rounded to float16, so batches of other sizes differ in the last of these bits at most."""
    data = open_data("photos", DataOptions(encoder="encoder"))
    rows = data.batch(torch.arange(3))["cond"]["caption"]
    order = [(here / "photos" / f"{at}.txt").read_text() for at in (0, 1, 10)]  # names are sorted as text
    torch.testing.assert_close(fitted(data.spec, 3, order), rows, rtol=2.0**-10, atol=1e-6)


def test_words_and_tensors_may_be_mixed(here: Path):
    spec = spec_of(here / "encoder")
    red, blue = fitted(spec, 1, "a red square")[0], fitted(spec, 1, "a blue circle")[0]
    assert red.shape == (5, 16) and red.dtype == torch.float32
    mixed = fitted(spec, 3, ["a red square", blue[:3], "a red square"])
    assert torch.equal(mixed[0], red) and torch.equal(mixed[2], red)
    assert torch.equal(mixed[1, :3], blue[:3]) and (mixed[1, 3:] == 0).all()
    assert torch.equal(fitted(spec, 4, "a red square"), red.expand(4, 5, 16))
    words = ["green", "a red square", "a blue circle"]
    assert torch.equal(fitted(spec, 3, words), torch.cat([fitted(spec, 1, word) for word in words]))
    assert (fitted(spec, 1, "")[0] != 0).any(1).tolist() == [True, True, False, False, False]


def test_what_words_cannot_be_is_refused(here: Path):
    spec = spec_of(here / "encoder", length=4)
    with pytest.raises(ValueError, match=r"5 tokens long, 'a red square'.*reads at most 4\. Shorten it"):
        fitted(spec, 1, "a red square")
    with pytest.raises(ValueError, match=r"does not know the encoder .* as a tensor \(up to 2, 16\)"):
        fit_conditions({"clip": "red"}, 1, spec, CPU)
    with pytest.raises(ValueError, match="2 rows"):
        fitted(spec, 3, ["red", "green"])
    write_encoder(here / "encoder", seed=5)
    get_encoder.cache_clear()
    with pytest.raises(CheckpointError, match="has changed"):
        fitted(spec, 1, "red")
    with pytest.raises(ValueError, match="only embeddings have one"):
        ConditionSpec(kind="text", length=3, encoder="encoder")


def test_the_encoder_is_loaded_once_for_sampling(here: Path, monkeypatch: pytest.MonkeyPatch):
    spec = spec_of(here / "encoder")
    fitted(spec, 1, "red")
    monkeypatch.setattr(TextEncoder, "__init__", lambda *_: pytest.fail("it was loaded again"))
    assert not torch.equal(fitted(spec, 1, "green"), fitted(spec, 1, "red"))


def test_the_command_takes_words_and_files(here: Path):
    spec = spec_of(here / "encoder")
    np.save("green.npy", fitted(spec, 1, "green")[0].numpy())
    asked = read_conditions([], ["caption=a red square", "caption=green.npy"], 3, spec)
    assert of_sample(asked, 2, spec) == {"caption": "a red square"}
    rows = fit_conditions(load_conditions(asked, spec), 3, spec, CPU)["caption"]
    assert torch.equal(rows, fitted(spec, 3, ["a red square", "green", "a red square"]))
    one = load_conditions(read_conditions([], ["caption=a.npy is no file here"], 2, spec), spec)
    assert one == {"caption": "a.npy is no file here"}
    with pytest.raises(ValueError, match=r"caption=gone\.npy: there is no such file"):
        load_conditions(read_conditions([], ["caption=gone.npy"], 2, spec), spec)
    with pytest.raises(ValueError, match="there is no such file"):
        load_conditions(read_conditions([], ["clip=a red square"], 2, spec), spec)


def test_latents_keep_embeddings_as_they_are(here: Path):
    data = open_data("photos", DataOptions(encoder="encoder"))
    codec = start_codec(Recipe(codec=PCAOptions(patch=2, channels=2)), data)
    assert codec is not None
    latents = encode_data(codec, data, CPU, lambda _: None)
    assert latents.cond["caption"].dtype == torch.float16
    index = torch.arange(len(data))
    assert torch.equal(latents.batch(index)["cond"]["caption"], data.batch(index)["cond"]["caption"])

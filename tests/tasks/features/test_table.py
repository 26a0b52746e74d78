"""Features as files and as a step of scikit-learn."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.data import open_data
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.items import number_items, read_split


@pytest.fixture(scope="module")
def model() -> ud.Model:
    return ud.load("digits")


def test_a_tensor_a_name_and_a_file_give_the_same_features(model: ud.Model, tmp_path):
    digits = open_data("digits")
    x = digits.batch(torch.arange(6))["x"]
    raw = digits.spec.from_model(x)
    found = ud.features(model, raw, layers=["mid", "up1.0"], pool=2, t=0.05)
    direct = FeatureEncoder(model, ["mid", "up1.0"], 0.05, pool=2)(x)
    torch.testing.assert_close(found.values, direct)
    torch.testing.assert_close(found.part("up1.0"), direct[:, 256:])
    assert found.parts == {"mid": 256, "up1.0": 256} and found.labels is None
    chosen = ud.features(model, "digits", layers="mid", pool=2, t=0.05, n=5, seed=3)
    assert len(chosen) == 5 and set(chosen.labels) <= set("0123456789")
    where = chosen.index
    noise_as_there = FeatureEncoder(model, "mid", 0.05, pool=2, seed=3)(digits.batch(where)["x"], index=where)
    torch.testing.assert_close(chosen.values, noise_as_there)
    np.save(tmp_path / "six.npy", raw.numpy().astype(np.uint8))
    from_file = ud.features(model, tmp_path / "six.npy", layers=["mid", "up1.0"], pool=2, t=0.05)
    torch.testing.assert_close(from_file.values, found.values)
    with pytest.raises(ValueError, match=r"items of shape \(1, 9, 9\); the model's are \(1, 8, 8\)"):
        ud.features(model, torch.zeros(2, 1, 9, 9))
    with pytest.raises(ValueError, match="no features of 'down'"):
        found.part("down")


def test_files_hold_what_was_computed(model: ud.Model, tmp_path, monkeypatch):
    table = ud.features(model, "digits", layers="mid", n=4)
    np.testing.assert_array_equal(np.load(table.save(tmp_path / "f.npy")), table.values.numpy())
    with np.load(table.save(tmp_path / "deep" / "f.npz"), allow_pickle=False) as found:
        np.testing.assert_array_equal(found["features"], table.values.numpy())
        np.testing.assert_array_equal(found["index"], table.index.numpy())
        assert found["label"].tolist() == list(table.labels)
        assert json.loads(str(found["settings"]))["layers"] == ["mid"]
    parquet = pytest.importorskip("pyarrow.parquet")
    read = parquet.read_table(table.save(tmp_path / "f.parquet"))
    np.testing.assert_array_equal(np.array(read["features"].to_pylist(), dtype=np.float32), table.values.numpy())
    assert read["label"].to_pylist() == list(table.labels) and b"undiffuse" in read.schema.metadata
    with pytest.raises(ValueError, match=r"end it in .npz, .npy, .parquet"):
        table.save(tmp_path / "f.pkl")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        table.save(tmp_path / "f.parquet")


def test_labels_are_the_data_s_own_and_the_split_is_that_of_the_training(model: ud.Model):
    learned, judged = read_split(model, "digits", n=50)
    assert len(learned) == 50 and len(judged) == 400
    held_out = ud.data.split(open_data("digits"))[1].batch(torch.arange(400))["index"]
    assert torch.equal(judged.index, held_out)
    assert not set(learned.index.tolist()) & set(held_out.tolist())


def test_a_step_of_a_pipeline_is_cloned_searched_and_named(model: ud.Model):
    base, pipeline, selection = (
        pytest.importorskip(f"sklearn.{name}") for name in ("base", "pipeline", "model_selection")
    )
    linear = pytest.importorskip("sklearn.linear_model")
    from undiffuse.tasks.features import FeatureTransformer

    digits = open_data("digits")
    batch = digits.batch(torch.arange(60))
    X, y = digits.spec.from_model(batch["x"]).flatten(1).numpy(), batch["cond"]["label"].numpy()
    step = FeatureTransformer(model, layers="up1.0", pool=2)
    twin = base.clone(step)
    assert twin.model is model and twin.get_params() == step.get_params() and not hasattr(twin, "encoder_")
    given = step.fit_transform(X[:5])
    encoder, numbers = FeatureEncoder(model, "up1.0", pool=2), number_items(batch["x"][:5])
    torch.testing.assert_close(torch.from_numpy(given), encoder(batch["x"][:5], index=numbers))
    np.testing.assert_allclose(step.transform(X[[3, 1]]), given[[3, 1]], rtol=1e-5, atol=1e-5)  # wherever a row stands
    names = step.get_feature_names_out()
    assert len(names) == given.shape[1] == step.n_features_out_ and names[1] == "up1.0.1"
    pipe = pipeline.make_pipeline(step, linear.RidgeClassifier())
    search = selection.GridSearchCV(pipe, {"featuretransformer__layers": ["in", "up1.0"]}, cv=2).fit(X, y)
    assert search.best_params_ == {"featuretransformer__layers": "up1.0"} and search.best_score_ > 0.7
    assert search.predict(X[:3]).shape == (3,)
    with pytest.raises(ValueError, match="flattened rows"):
        step.fit(X[:, :60])
    assert FeatureTransformer("digits").fit(X).n_features_in_ == 64

"""`DataSpec`: shapes, units, JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from undiffuse.spec import ConditionSpec, DataSpec

POSE = ConditionSpec(kind="vector", width=3)


@pytest.mark.parametrize(
    ("kind", "shape", "channels"),
    [
        ("image", (3, 8, 9), 3),
        ("video", (6, 2, 8, 8), 2),
        ("volume", (1, 4, 5, 6), 1),
        ("signal", (2, 30), 2),
        ("vector", (7,), 7),
        ("tokens", (16,), 16),
    ],
)
def test_shapes_fit_their_kind(kind: str, shape: tuple[int, ...], channels: int) -> None:
    spec = DataSpec(kind=kind, shape=shape)  # type: ignore[arg-type]
    assert spec.channels == channels
    assert spec.is_discrete == (kind == "tokens")
    for wrong in (shape[:-1], (*shape, 2)):
        with pytest.raises(ValueError, match="does not fit kind"):
            DataSpec(kind=kind, shape=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty axis"):
        DataSpec(kind=kind, shape=(0, *shape[1:]))  # type: ignore[arg-type]


def test_a_range_maps_to_minus_one_and_one_and_back() -> None:
    spec = DataSpec(kind="image", shape=(1, 2, 2), range=(0, 255))
    x = torch.tensor([0.0, 255.0, 127.5, 51.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(spec.to_model(x).flatten(), torch.tensor([-1.0, 1.0, 0.0, -0.6]))
    torch.testing.assert_close(spec.from_model(spec.to_model(x)), x)
    beyond = torch.tensor([-1.5, 1.5, 0.0, 0.0]).view(1, 1, 2, 2)
    assert spec.from_model(beyond).flatten()[:2].tolist() == [0.0, 255.0]
    assert spec.to_model(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).dtype == torch.float32
    assert spec.to_model(x.double()).dtype == torch.float64


def test_unbounded_data_is_scaled_per_feature_along_the_channel_axis() -> None:
    for kind, shape, layout in (
        ("vector", (2,), (1, 2)),
        ("signal", (2, 5), (1, 2, 1)),
        ("video", (3, 2, 4, 4), (1, 1, 2, 1, 1)),
    ):
        spec = DataSpec(kind=kind, shape=shape, mean=(1.0, -2.0), std=(2.0, 0.5))  # type: ignore[arg-type]
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
        mean, std = torch.tensor([1.0, -2.0]).view(layout), torch.tensor([2.0, 0.5]).view(layout)
        torch.testing.assert_close(spec.to_model(x), (x - mean) / std)
        torch.testing.assert_close(spec.from_model(spec.to_model(x)), x)


def test_tokens_and_plain_vectors_pass_unchanged() -> None:
    tokens = DataSpec(kind="tokens", shape=(3,), vocabulary=("a", "b"))
    ids = torch.tensor([[0, 1, 1]])
    assert tokens.to_model(ids) is ids
    assert tokens.from_model(ids) is ids
    assert tokens.categories == 2
    plain = DataSpec(kind="vector", shape=(3,))
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.to_model(x), x)


def test_a_spec_comes_back_from_json() -> None:
    for spec in (
        DataSpec(kind="image", shape=(1, 8, 8), range=(0, 16), classes=("zero", "one"), cond={"pose": POSE}),
        DataSpec(kind="vector", shape=(2,), mean=(0.5, 1.0), std=(1.0, 2.0)),
        DataSpec(kind="tokens", shape=(9,), vocabulary=("a", " ", "\n")),
    ):
        again = DataSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sound", "shape": (3,)}, "kind='sound'"),
        ({"kind": "vector", "shape": (3,), "range": (1.0, 1.0)}, "range"),
        ({"kind": "vector", "shape": (3,), "range": (0.0, float("nan"))}, "range"),
        ({"kind": "vector", "shape": (3,), "mean": (0.0, 1.0)}, "mean has 2 values"),
        ({"kind": "image", "shape": (3, 4, 4), "std": (1.0,)}, "std has 1 values"),
    ],
)
def test_wrong_specs_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSpec(**arguments)  # type: ignore[arg-type]


def test_a_standard_deviation_that_is_not_positive_is_refused() -> None:
    for std in ((1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="std"):
            DataSpec(kind="vector", shape=(2,), std=std)


def test_tokens_may_lie_on_a_grid() -> None:
    spec = DataSpec(kind="tokens", shape=(6,), grid=(2, 3), vocabulary=tuple("ab"), codebook="0123")
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    for wrong in ((2, 4), (6, 0), (5,)):
        with pytest.raises(ValueError, match="multiply"):
            replace(spec, grid=wrong)
    with pytest.raises(ValueError, match="grid"):
        DataSpec(kind="image", shape=(1, 2, 3), grid=(2, 3))
    with pytest.raises(ValueError, match="codebook"):
        DataSpec(kind="image", shape=(1, 2, 3), codebook="0123")

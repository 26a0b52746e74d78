"""What must hold for every operator, linear or not: files, rows, devices, determinism; the text form and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.operators.cases import ROWS, every_operator, items, normals
from undiffuse import operators as ops
from undiffuse.errors import DataError
from undiffuse.operators.base import LinearOperator, Operator, SVDOperator
from undiffuse.operators.catalogue import OPERATORS
from undiffuse.operators.registry import KINDS
from undiffuse.spec import DataSpec

EVERY = every_operator()


def test_every_operator_returns_from_a_file_as_it_was(tmp_path: Path):
    seen = set()
    for name, op in EVERY.items():
        ops.save_operator(tmp_path / "op.safetensors", op)
        again = ops.load_operator(tmp_path / "op.safetensors")
        assert type(again) is type(op) and again.describe() == op.describe(), name
        assert torch.equal(again(items(op)), op(items(op))), name
        seen |= {op.kind} | {part.kind for part in op.parts}
    assert seen == set(KINDS)  # every kind has been tried


def test_flags_and_catalogue_agree():
    for name, op in EVERY.items():
        assert op.linear == isinstance(op, LinearOperator) and op.is_svd == isinstance(op, SVDOperator), name
        facts = OPERATORS.get(name.split(",")[0]) or OPERATORS.get(name.split(":")[0])
        if facts and "&" not in name and "|" not in name and "per item" not in name:
            assert facts.has("linear") == op.linear, name
            assert facts.has("svd") or not op.is_svd, name
            assert facts.has("differentiable") == op.differentiable, name


def test_rows_of_a_batch_are_measured_alike_alone():
    for name, op in EVERY.items():
        x = items(op)
        alone = op.take(torch.tensor([2]))(x[2:])
        torch.testing.assert_close(alone, op(x)[2:], atol=1e-12, rtol=1e-12, msg=name)
        if op.rows:
            assert op.rows == ROWS
            with pytest.raises(ValueError, match=r"take\(\)"):
                op(x[:2])


def test_dtypes_are_kept_and_moving_changes_nothing():
    for name, op in EVERY.items():
        x = items(op).clamp(-0.9, 0.9)
        assert op(x.float()).dtype == torch.float32, name
        moved = op.to("cpu", torch.float32)
        assert moved is not op and torch.equal(moved(x.float()), op(x.float())), name
        if isinstance(op, LinearOperator):
            torch.testing.assert_close(op(x.float()).double(), op(x), atol=1e-4, rtol=1e-4, msg=name)
            assert op.adjoint(op(x.float())).dtype == torch.float32, name
            assert op(x.bfloat16()).dtype == torch.bfloat16, name


def test_random_operators_are_functions_of_their_seed():
    for text, shape in {"inpaint:random": (1, 9, 9), "inpaint:freeform": (1, 16, 16), "cs:dct": (1, 8, 8)}.items():
        x = normals(2, *shape)
        same, again, other = (ops.parse_operator(text, shape, seed=seed)(x) for seed in (1, 1, 2))
        assert torch.equal(same, again) and not (same.shape == other.shape and torch.equal(same, other)), text
    first = ops.parse_operator("inpaint:random", (1, 9, 9), items=[4, 7])
    assert torch.equal(first.mask[1], ops.parse_operator("inpaint:random", (1, 9, 9), items=[7]).mask[0])


def test_wrong_shapes_are_refused():
    op = ops.Downsample((1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"x has shape .* needs \(B, 1, 8, 8\)"):
        op(torch.zeros(2, 1, 8, 6))
    with pytest.raises(ValueError, match=r"y has shape .* needs \(B, 1, 4, 4\)"):
        op.adjoint(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="real and imaginary part as two channels"):
        op(torch.zeros(2, 1, 8, 8, dtype=torch.complex64))
    with pytest.raises(ValueError, match="no pseudo-inverse"):
        ops.PhaseRetrieval((1, 8, 8)).pinv(torch.zeros(1, 1, 12, 12))


def test_composition_is_in_the_order_of_the_text():
    blur, small = ops.gaussian_blur((1, 8, 8), sigma=1.0, size=5), ops.Downsample((1, 8, 8), 2)
    x = normals(2, 1, 8, 8)
    for composed in (small @ blur, ops.parse_operator("blur:gaussian,sigma=1,size=5|downsample:2", (1, 8, 8))):
        torch.testing.assert_close(composed(x), small(blur(x)), atol=0, rtol=0)
    both = ops.stack([small, blur])
    pieces = both.split(both(x))
    assert torch.equal(pieces[0], small(x)) and torch.equal(pieces[1], blur(x))
    assert isinstance(ops.parse_operator("hdr|downsample:2", (1, 8, 8)), Operator)
    with pytest.raises(ValueError, match="cannot be followed"):
        blur @ small


def test_what_is_not_measured_is_zero_whatever_the_noise():
    """What an operator calls unknown it never fills, what it calls known depends on x; `measured` keeps the latter."""
    for name, op in every_operator().items():
        y = op(items(op))
        seen = op.known(y)
        if seen is None:
            assert torch.equal(op.measured(y), y), name
            continue
        seen = seen.expand_as(y)
        assert not y[~seen].any(), name
        assert y[seen].ne(0).all() or "|" in name or "&" in name, name
        noisy = op.measured(y + 1)
        assert not noisy[~seen].any() and torch.equal(noisy[seen], (y + 1)[seen]), name
    hole = ops.box_mask((1, 4, 4), size=2)
    both = ops.stack([ops.Identity((1, 4, 4)), ops.chain(ops.uniform_blur((1, 4, 4), size=3), -2 * hole)])
    seen = both.known(torch.zeros(2, 32)).expand(2, 32)
    assert seen[:, :16].all()
    assert torch.equal(seen[0, 16:].view(1, 4, 4), hole.mask.bool().expand(1, 4, 4))
    film = ops.per_frame(hole, 3)
    assert torch.equal(
        film.known(torch.zeros(2, 3, 1, 4, 4)).expand(2, 3, 1, 4, 4)[1, 2, 0], hole.mask.bool().view(4, 4)
    )


def test_videos_are_measured_frame_by_frame():
    spec = DataSpec(kind="video", shape=(4, 1, 8, 8))
    x = normals(2, 4, 1, 8, 8)
    op = ops.parse_operator("downsample:2", spec)
    assert op.is_svd and torch.equal(op(x)[:, 1], ops.Downsample((1, 8, 8), 2)(x[:, 1]))
    averaged = ops.parse_operator("average-frames:2", spec)(x)
    torch.testing.assert_close(averaged[:, 0], (x[:, 0] + x[:, 1]) / 2)


def test_masks_have_what_they_were_asked_for():
    assert float(ops.box_mask((1, 9, 9), size=4).mask.sum()) == 81 - 16
    assert bool((ops.box_mask((1, 9, 9), size=2, position="1:3").mask[0, 1:3, 3:5] == 0).all())
    known = float(ops.random_mask((3, 64, 64), missing=0.8).mask.mean())
    assert known == pytest.approx(0.2, abs=5 * (0.16 / 4096) ** 0.5)
    for missing in (0.2, 0.3):
        hidden = 1 - float(ops.freeform_mask((1, 64, 64), missing=missing).mask.mean())
        assert missing <= hidden < missing + 0.02
    assert ops.half_mask((1, 4, 4), side="top").mask.tolist() == [[0.0] * 4] * 2 + [[1.0] * 4] * 2
    bayer = ops.bayer_mask((3, 4, 4)).mask
    assert bool((bayer.sum(0) == 1).all()) and bayer.sum((1, 2)).tolist() == [4.0, 8.0, 4.0]
    assert [bayer[0, 0, 0], bayer[1, 0, 1], bayer[1, 1, 0], bayer[2, 1, 1]] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "shape", "said"),
    [
        ("downsmple:2", (1, 8, 8), "Did you mean 'downsample'"),
        ("blur:gausian", (1, 8, 8), "Did you mean 'blur:gaussian'"),
        ("blur", (1, 8, 8), "choose blur:gaussian, blur:uniform"),
        ("downsample:3", (1, 8, 8), "does not divide 8 x 8"),
        ("downsample:2.5", (1, 8, 8), "whole number"),
        ("downsample:2,cubic", (1, 8, 8), "choose average or bicubic"),
        ("blur:gaussian,sgima=2", (1, 8, 8), "Did you mean 'sigma'"),
        ("blur:gaussian,sigma=2,sigma=3", (1, 8, 8), "given sigma twice"),
        ("blur:gaussian,4", (1, 8, 8), r"kernel \(25 x 25\) is larger than the picture"),
        ("blur:gaussian,1,4", (1, 8, 8), "must be odd"),
        ("blur:gaussian,1,boundary=mirror", (1, 8, 8), "choose circular, reflect, zero, replicate"),
        ("jpeg:0", (1, 8, 8), "whole number from 1 to 100"),
        ("jpeg:101", (1, 8, 8), "whole number from 1 to 100"),
        ("jpeg", (4, 8, 8), "grey or RGB"),
        ("colourise", (1, 8, 8), r"RGB pictures \(3, H, W\)"),
        ("cs:hadamard", (1, 6, 6), "power of two"),
        ("cs:gaussian", (1, 128, 128), "too large"),
        ("inpaint:random,1.5", (1, 8, 8), "between 0 and 1"),
        ("inpaint:box,9", (1, 8, 8), "between 1 and 8"),
        ("mask", (1, 8, 8), "needs mask"),
        ("mask:nowhere.png", (1, 8, 8), "cannot read nowhere.png"),
        ("mri", (3, 8, 8), "real and imaginary"),
        ("mri:random,acceleration=0.5", (2, 8, 8), "at least 1"),
        ("ct", (1, 8, 6), "square"),
        ("quantise:0", (1, 8, 8), "between 1 and 16"),
        ("hdr:1,2", (1, 8, 8), "is one more"),
        ("downsample:2", (8,), "works on pictures"),
    ],
)
def test_bad_texts_are_refused(text: str, shape: tuple[int, ...], said: str):
    with pytest.raises(ValueError, match=said):
        ops.parse_operator(text, shape)


def test_tokens_are_refused():
    with pytest.raises(ValueError, match="this model makes tokens"):
        ops.parse_operator("denoise", DataSpec(kind="tokens", shape=(4,), vocabulary=("a", "b")))


def test_masks_from_files_must_be_zeros_and_ones_of_the_right_size(tmp_path: Path):
    mask = np.zeros((8, 8))
    mask[:4] = 1
    np.save(tmp_path / "m.npy", mask)
    op = ops.parse_operator(f"mask:{tmp_path / 'm.npy'}", (3, 8, 8))
    assert op.mask.tolist() == mask.tolist()
    inverted = ops.parse_operator(f"mask:{tmp_path / 'm.npy'},invert=true", (3, 8, 8))
    assert inverted.mask.tolist() == (1 - mask).tolist()
    with pytest.raises(ValueError, match=r"\(8, 8\) does not fit items of shape \(3, 8, 6\)"):
        ops.parse_operator(f"mask:{tmp_path / 'm.npy'}", (3, 8, 6))
    with pytest.raises(ValueError, match="64 values that are neither 0"):
        ops.Mask((1, 8, 8), torch.full((8, 8), 0.5))
    with pytest.warns(UserWarning, match="nothing is left to restore"):
        ops.parse_operator("mask", (1, 8, 8), tensors={"mask": torch.ones(8, 8)})


def test_measurements_return_from_files(tmp_path: Path):
    op = ops.parse_operator("mri:coils=2", (2, 8, 8))
    y = op(items(op).float())
    made = ops.Measurement(y, op, ops.parse_noise("poisson_gaussian:20,0.1"), {"seed": 3})
    made.save(tmp_path / "deep" / "y.safetensors")
    again = ops.Measurement.load(tmp_path / "deep" / "y.safetensors")
    assert torch.equal(again.y, y) and again.noise == made.noise and again.about == {"seed": 3}
    assert torch.equal(again.operator(items(op)), op(items(op)))
    ops.save_operator(tmp_path / "op.safetensors", op)
    with pytest.raises(DataError, match="no measurement"):
        ops.Measurement.load(tmp_path / "op.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        ops.load_operator(tmp_path / "bad.safetensors")


class Physics:
    """The interface of a deepinv physics: a mask, with a wrong adjoint on wish."""

    def __init__(self, mask: torch.Tensor, wrong: bool = False) -> None:
        self.mask, self.wrong = mask, wrong

    def A(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return self.mask * x

    def A_adjoint(self, y: torch.Tensor, **_: object) -> torch.Tensor:
        return y if self.wrong else self.mask * y

    def A_dagger(self, y: torch.Tensor, **_: object) -> torch.Tensor:
        return self.mask * y


def test_operators_of_deepinv_work_as_ours():
    mask = (normals(1, 5, 4) > 0).float()
    ours, theirs = ops.Mask((1, 5, 4), mask), ops.from_deepinv(Physics(mask), (1, 5, 4))
    x, y = normals(2, 1, 5, 4).float(), normals(2, 1, 5, 4, seed=1).float()
    assert theirs.linear and theirs.describe().startswith("Physics")
    for call in ("__call__", "adjoint", "pinv", "gram"):
        torch.testing.assert_close(getattr(theirs, call)(x), getattr(ours, call)(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs.prox(x, y, 0.5), ours.prox(x, y, 0.5), atol=1e-6, rtol=0)
    with pytest.warns(UserWarning, match="not the adjoint"):
        mended = ops.from_deepinv(Physics(mask, wrong=True), (1, 5, 4))
    torch.testing.assert_close(mended.adjoint(y), ours.adjoint(y), atol=1e-6, rtol=0)
    with pytest.raises(TypeError, match="no method A"):
        ops.from_deepinv(object(), (1, 5, 4))
    with pytest.raises(ValueError, match="cannot be saved"):
        theirs.to_json()


def test_operators_go_to_deepinv_and_back():
    op = ops.Downsample((1, 6, 4), 2)
    there = ops.to_deepinv(op)
    back = ops.from_deepinv(there, (1, 6, 4))
    y = op(normals(1, 1, 6, 4).float())
    torch.testing.assert_close(back.pinv(y), op.pinv(y))
    with pytest.raises(ValueError, match="not linear"):
        ops.to_deepinv(ops.Clip((1, 2, 2))).A_adjoint(torch.zeros(1, 1, 2, 2))


def test_measurements_of_data_units_become_those_of_model_units():
    spec = DataSpec(kind="image", shape=(2, 8, 7), range=(0.0, 255.0))
    levels = 255 * torch.rand(3, 2, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for op in (EVERY["mri per item"], EVERY["mri"]):
        shape = (3, *op.in_shape)
        v = levels[..., : shape[-1]]
        x = spec.to_model(v)
        torch.testing.assert_close(op.to_model(op(v), spec), op(x), atol=1e-10, rtol=0)
    free = DataSpec(kind="vector", shape=(2,), mean=(1.0, 3.0), std=(2.0, 2.0))
    op, v = ops.Matrix((2,), normals(3, 2)), normals(3, 2)
    torch.testing.assert_close(op.to_model(op(v), free), op(free.to_model(v)), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="different units"):
        op.to_model(op(v), DataSpec(kind="vector", shape=(2,), std=(1.0, 2.0)))

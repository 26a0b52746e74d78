"""`bench_restore`: figures that can be had in another way, reasons where there are none, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import CheckpointError, ConfigError, UndiffuseError
from undiffuse.metrics import energy_distance, psnr
from undiffuse.metrics.classifier import ClassifierConfig, build_classifier, load_classifier, save_classifier
from undiffuse.metrics.perceptual import make_distance
from undiffuse.metrics.shares import wilson
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.diagonal import Identity, Mask
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.bench import bench_restore, figures, make_judge, measure
from undiffuse.tasks.restore.bench_results import EXACT, BenchRow, RestoreBench
from undiffuse.tasks.restore.bench_words import STANDARD, operator_text, split_operators
from undiffuse.tasks.restore.exact import exact_posterior
from undiffuse.tasks.restore.peak_memory import PeakMemory
from undiffuse.tasks.restore.run import restore

_SHAPE = (1, 4, 4)


def normals(count: int, *shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, range(count)).normal("data", 0, shape, torch.float64)


def gaussian() -> Model:
    spec = DataSpec(kind="image", shape=_SHAPE, range=(0.0, 1.0))
    cov = 0.2 * torch.eye(16, dtype=torch.float64) + 0.1
    process = GaussianProcess(make_schedule("vp"))
    return Model(GaussianDenoiser(torch.zeros(_SHAPE, dtype=torch.float64), cov, process, spec=spec), spec)


def data(count: int = 3) -> Tensor:
    return 0.45 * normals(count, *_SHAPE)


def mask() -> Mask:
    return Mask(_SHAPE, torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(1, 4, 4))


def test_rows_hold_what_the_metrics_say_and_the_exact_posterior_comes_first():
    model, clean = gaussian(), data()
    found = bench_restore(model, clean, {"holes": mask()}, ["ddrm", "red-diff"], [5], noise_std=0.2, samples=4)
    assert [row.key for row in found.rows] == [("holes", EXACT, 0), ("holes", "ddrm", 5), ("holes", "red-diff", 5)]
    trial = measure("holes", mask(), clean, 0.2, 0, model)
    assert not bool(trial.y[..., 1].any())  # no noise where nothing was measured
    exact = exact_posterior(model.denoiser, trial.y, mask(), 0.2)
    assert found.rows[0].psnr_mean == pytest.approx(float(psnr(exact.mean, clean).mean()))
    assert found.rows[0].exact_spread == pytest.approx(1.0, abs=0.5)  # 48 numbers in groups: their variance of 1/3 each
    ddrm = found.rows[1]
    assert (ddrm.nfe, ddrm.nfe_grad) == (5, 0)
    assert ddrm.seconds is not None and ddrm.seconds > 0
    assert ddrm.residual_ratio == pytest.approx(ddrm.residual / 0.2)
    assert all(row.energy is not None and row.mean_distance is not None for row in found.rows)


def test_figures_are_those_of_samples():
    model, clean = gaussian(), data()
    trial = measure("holes", mask(), clean, 0.2, 0, model)
    samples = clean + 0.1 * normals(4 * 3, *_SHAPE, seed=1).view(4, 3, *_SHAPE)
    got = figures(trial, samples)
    by_hand = torch.stack([psnr(one, clean) for one in samples])
    assert got["psnr"] == pytest.approx(float(by_hand.mean()))
    assert got["consistency"] == pytest.approx(float((mask()(samples[:, 0]) - trial.y[0]).abs().mean()), rel=0.5)
    assert got["exact_spread"] == pytest.approx(float(samples.var(0).mean() / trial.exact.variance.mean()))
    each = [energy_distance(samples[:, i], trial.reference[:, i]) for i in range(3)]
    assert got["energy"] == pytest.approx(sum(each) / 3)
    apart = (samples.mean(0) - trial.exact.mean).square().sum((1, 2, 3)).mean()
    assert got["mean_distance"] == pytest.approx(float(apart))
    single = figures(trial, samples[:1])
    assert "spread" not in single and "energy" not in single


def test_what_cannot_be_done_is_a_row_with_the_reason_and_the_rest_goes_on():
    found = bench_restore(gaussian(), data(1), {"noise": Identity(_SHAPE)}, ["repaint", "ddrm"], [3, 4], samples=2)
    assert [(row.method, bool(row.failure)) for row in found.rows[1:]] == [
        ("repaint", True),
        ("repaint", True),
        ("ddrm", False),
        ("ddrm", False),
    ]
    ((method, where, reason),) = found.failures()
    assert (method, where) == ("repaint", "noise") and "mask" in reason
    assert "Not done:\n\n- repaint on noise: " in found.markdown()
    assert len(found.table()) == 3 and len(found.table()[0]) == len(found.columns)


def test_rows_that_are_there_are_not_computed_again():
    model, clean, operators = gaussian(), data(1), {"noise": Identity(_SHAPE)}
    kept: list[RestoreBench] = []
    first = bench_restore(model, clean, operators, ["ddrm"], [3], samples=2, keep=kept.append)
    assert [len(found.rows) for found in kept] == [1, 2]
    marked = RestoreBench(rows=tuple(replace(row, psnr=99.0) for row in first.rows))
    read = RestoreBench.from_json(json.loads(json.dumps(marked.to_json())))
    assert read == marked
    kept.clear()
    second = bench_restore(model, clean, operators, ["ddrm"], [3, 4], samples=2, before=read, keep=kept.append)
    assert [row.psnr == 99.0 for row in second.rows] == [True, True, False]
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("inpaint50", "inpaint:random,missing=0.5"),
        ("sr4", "downsample:factor=4"),
        ("sr", "downsample:factor=2"),
        ("blur1.5", "blur:gaussian,sigma=1.5,boundary=reflect"),
        ("denoise", "denoise"),
        ("blur:uniform,9", "blur:uniform,9"),
    ],
)
def test_words_of_operators(word, text):
    assert operator_text(word) == text


def test_lists_of_operators():
    assert split_operators("inpaint50, sr2") == ["inpaint50", "sr2"]
    assert split_operators("blur:gaussian,sigma=2|downsample:4; sr2,jpeg5") == [
        "blur:gaussian,sigma=2|downsample:4",
        "sr2",
        "jpeg5",
    ]
    assert split_operators("standard;sr4") == [*STANDARD, "sr4"]
    assert all(operator_text(word) for word in STANDARD)
    with pytest.raises(ValueError, match=r"'impaint50' is unknown.*Did you mean 'inpaintN'"):
        operator_text("impaint50")


def test_peak_memory_sees_a_large_tensor():
    with PeakMemory() as memory:
        big = torch.ones(64 * 2**20, dtype=torch.uint8)
        del big
    assert memory.mib is None or memory.mib > 50


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["redif"]}, "method 'redif' is unknown"),
        ({"steps": [0]}, "at least 1"),
        ({"noise_std": -0.1}, "noise_std=-0.1"),
        ({"operators": {}}, "0 operators"),
    ],
)
def test_bad_input_is_refused(changes, words):
    given = {"operators": {"noise": Identity(_SHAPE)}, "methods": ["ddrm"], "steps": [3]} | changes
    with pytest.raises(ValueError, match=words):
        bench_restore(gaussian(), data(1), **given)


def test_other_files_are_refused():
    with pytest.raises(UndiffuseError, match="no results of bench-restore"):
        RestoreBench.from_json({"format": "other"})
    assert BenchRow(operator="a", method="b", steps=1).key == ("a", "b", 1)


def test_a_perceptual_distance_is_a_column_of_its_own(tmp_path: Path):
    config = ClassifierConfig(shape=_SHAPE, classes=("a", "b"), widths=(4,), blocks=(1,))
    folder = str(save_classifier(build_classifier(config), tmp_path / "classifier"))
    model, clean, holes = gaussian(), data(), {"holes": mask()}
    found = bench_restore(model, clean, holes, ["ddrm"], [3], noise_std=0.3, samples=2, perceptual=folder)
    assert [row.perceptual is not None and row.perceptual > 0 for row in found.rows] == [True, True]
    assert "perceptual" in found.columns
    trial = replace(measure("holes", mask(), clean, 0.3, 0, model), distance=make_distance(folder, model.spec))
    assert figures(trial, clean[None])["perceptual"] == 0.0
    video = normals(2, 3, *_SHAPE)  # frame by frame
    frames = replace(trial, clean=video, y=video, operator=Identity(video.shape[1:]))
    apart, distance = figures(frames, video.flip(1)[None])["perceptual"], make_distance(folder, model.spec)
    single = [part.flatten(0, 1).float() for part in (video.flip(1), video)]
    assert apart == pytest.approx(float(distance(*single).mean()))
    with pytest.raises(CheckpointError, match="there is no classifier"):
        bench_restore(model, clean, holes, ["ddrm"], [3], perceptual="nowhere")


def test_top_1_accuracy_stands_beside_that_of_the_truth(tmp_path: Path):
    config = ClassifierConfig(shape=_SHAPE, classes=("a", "b", "c"), widths=(8,), blocks=(1,))
    network = build_classifier(config, seed=3).eval()
    folder = str(save_classifier(network, tmp_path / "classifier"))
    model, clean, holes = gaussian(), 2 * data(12), {"holes": mask()}
    options: dict[str, Any] = {"noise_std": 0.3, "samples": 2, "classifier": folder}
    judged = load_classifier(folder)
    seen = judged(clean.float()).argmax(1)
    assert len(seen.unique()) > 1
    labels = torch.where(torch.arange(12) % 3 > 0, seen, (seen + 1) % 3)  # so that the truth is right in 8 of 12
    found = bench_restore(model, clean, holes, ["ddrm"], [3], labels=labels, **options)
    samples = restore(
        model, measure("holes", mask(), clean, 0.3, 0, model).y, mask(), "ddrm", noise_std=0.3, samples=2, steps=3
    )
    right = torch.stack([judged(one.float()).argmax(1) == labels for one in samples.samples])
    row = found.rows[-1]
    assert row.top1 == pytest.approx(float(right.double().mean()))
    assert (row.top1_true, row.top1_items) == (pytest.approx(2 / 3), 12)
    low, high = wilson(2 / 3, 12)
    assert row.top1_true_text == f"0.67 ({low:.2f} to {high:.2f})"
    assert found.columns[6:8] == ("top-1 (95 %)", "top-1 of the truth (95 %)")
    assert "top-1 of the truth" in found.markdown() and RestoreBench.from_json(found.to_json()) == found
    blind = bench_restore(model, clean, holes, ["ddrm"], [3], **options)
    agreed = torch.stack([judged(one.float()).argmax(1) == seen for one in samples.samples])
    assert blind.rows[-1].top1 == pytest.approx(float(agreed.double().mean()))
    assert "top-1 of the truth (95 %)" not in blind.columns
    trial = replace(measure("holes", mask(), clean, 0.3, 0, model), judge=make_judge(folder, clean, None, model))
    assert figures(trial, clean[None])["top1"] == 1.0
    for asked, said in (({"labels": labels[:3]}, "expected \\(12,\\)"), ({"labels": labels + 2}, "classes 0 to 2")):
        with pytest.raises(ValueError, match=said):
            bench_restore(model, clean, holes, ["ddrm"], [3], **options | asked)
    with pytest.raises(ValueError, match="give classifier too"):
        bench_restore(model, clean, holes, ["ddrm"], [3], labels=labels)
    with pytest.raises(ConfigError, match="sees pictures of shape"):
        bench_restore(model, clean, holes, ["ddrm"], [3], classifier="cifar10-classifier")

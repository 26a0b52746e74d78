"""Guidance as users ask for it: arguments of `Model.sample` against wrappers put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks.helpers import randomise
from undiffuse.codecs.build import build_codec
from undiffuse.codecs.options import PCAOptions
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.guidance.autoguidance import Autoguidance
from undiffuse.guidance.classifier import ClassifierGuidance
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.guidance.thresholding import Thresholding
from undiffuse.models.guided import ClassifierTarget
from undiffuse.models.model import Model
from undiffuse.models.parallel import sample_split
from undiffuse.models.processes import Processes
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(1, 4, 4), range=(0.0, 255.0), classes=("a", "b", "c"))
LABELS = [0, 1, 2, 0, 1, 2]


def small_model(seed: int = 0, schedule: str = "cosine", spec: DataSpec = SPEC, **fields: Any) -> Model:
    options = UNetOptions(channels=8, multipliers=(1,), blocks=1, heads=2)
    network = randomise(build_network(options, fields["codec"].latent if "codec" in fields else spec), seed, 0.1)
    process = GaussianProcess(make_schedule(schedule))
    return Model(NetworkDenoiser(network, process, "v", spec=spec), spec, **fields)


class Judge(torch.nn.Module):
    """A classifier of clean pictures with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(-1, 1, 48).reshape(3, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights.T


def run(model: Model, **options: Any) -> Tensor:
    return model.sample_result(6, cond={"label": LABELS}, steps=3, **options).x


def by_hand(model: Model, wrap: Any, **options: Any) -> Tensor:
    return run(model, wrap=wrap, guidance=1.0, **options)


def test_arguments_are_the_wrappers_in_their_order() -> None:
    model, weak = small_model(), small_model(1)
    away, judge = torch.tensor([2, 2, 0, 1, 1, 0]), Judge()
    found = run(
        model,
        guidance=2.0,
        negative={"label": away},
        autoguide=weak,
        classifier=ClassifierTarget(judge, LABELS, 0.5),
        threshold="dynamic",
        guidance_rescale=0.3,
    )
    wraps = [
        lambda d: Autoguidance(d, weak.denoiser, 2.0, negative={"label": away}, rescale=0.3),
        lambda d: ClassifierGuidance(d, judge, torch.tensor(LABELS), 0.5, at="clean"),
        lambda d: Thresholding(d, "dynamic"),
    ]
    assert torch.equal(found, by_hand(model, wraps))
    assert not torch.allclose(found, run(model, guidance=2.0))


def test_a_negative_label_by_name_for_all() -> None:
    model = small_model()
    found = run(model, guidance=2.0, negative={"label": "c"})
    wrap = lambda d: ClassifierFreeGuidance(d, 2.0, negative={"label": torch.full((6,), 2)})  # noqa: E731
    assert torch.equal(found, by_hand(model, wrap))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_and_processes_see_the_rows_of_their_samples(batch_size: int) -> None:
    model = small_model()
    options: dict[str, Any] = {
        "guidance": 2.0,
        "negative": {"label": [2, 2, 0, 1, 1, 0]},
        "classifier": ClassifierTarget(Judge(), LABELS, 0.5),
        "threshold": "dynamic",
    }
    whole = run(model, **options)
    torch.testing.assert_close(run(model, batch_size=batch_size, **options), whole, rtol=1e-4, atol=1e-4)
    split = sample_split(
        model, 6, processes=Processes.join(), cond={"label": LABELS}, batch_size=batch_size, steps=3, **options
    )
    torch.testing.assert_close(split.x, model.decode(whole).detach(), rtol=1e-3, atol=1e-2)


def test_the_order_of_wrappers_is_that_of_the_list() -> None:
    model = small_model()
    push = lambda x, t: 5 * x.flatten(1).sum(1)  # noqa: E731
    guide, bound = (lambda d: ClassifierGuidance(d, push, None)), (lambda d: Thresholding(d, "static", bound=0.5))
    inside, outside = (by_hand(model, wraps, grid="t") for wraps in ([bound, guide], [guide, bound]))
    assert not torch.allclose(inside, outside)
    assert float(outside.abs().max()) <= 0.5 + 1e-6 < float(inside.abs().max())


def test_a_default_threshold_holds_until_it_is_switched_off() -> None:
    model = small_model(defaults={"threshold": "static"})
    assert float(run(model, guidance=8.0).abs().max()) <= 1 + 1e-6
    assert torch.equal(run(model, guidance=8.0, threshold="none"), run(small_model(), guidance=8.0))


def test_a_clean_classifier_of_a_latent_model_sees_decoded_pictures() -> None:
    pictures = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    codec = build_codec(PCAOptions(channels=2, patch=2), SPEC, pictures)
    seen = []

    def judge(x: Tensor) -> Tensor:
        seen.append(x.shape[1:])
        return x.flatten(1)[:, :3]

    model = small_model(codec=codec)
    found = run(model, classifier=ClassifierTarget(judge, LABELS, 1.0))
    assert set(seen) == {(1, 4, 4)} and not torch.allclose(found, run(model))
    with pytest.raises(ValueError, match="this model works on latents"):
        run(model, threshold="static")
    with pytest.raises(ValueError, match="other latents"):
        run(model, guidance=2.0, autoguide=small_model())


def test_what_would_do_nothing_is_refused() -> None:
    model = small_model()
    for options in ({"negative": {"label": 1}}, {"autoguide": small_model(1)}):
        with pytest.raises(ValueError, match="need a scale other than 1"):
            run(model, **options)
    for words in ({"guidance_interval": (0.1, 1.0)}, {"guidance_rescale": 0.5}):
        with pytest.raises(ValueError, match="nothing is guided"):
            run(model, **words)
    with pytest.raises(ValueError, match="label 'd' does not exist"):
        run(model, guidance=2.0, negative={"label": "d"})
    with pytest.raises(ValueError, match="2 labels for 6 samples"):
        run(model, classifier=ClassifierTarget(Judge(), [0, 1]))
    with pytest.raises(ValueError, match="give ClassifierTarget"):
        run(model, classifier=Judge())
    vectors = DataSpec(kind="vector", shape=(3,))
    with pytest.raises(ValueError, match="vector data without a range"):
        Model(small_model().denoiser, vectors).sample(2, threshold="static")


def test_guidance_by_a_null_that_was_never_trained_is_refused() -> None:
    never = {"recipe": {"objective": {"drop": 0.0}, "train": {"init": None}}}
    model = small_model(info=never)
    with pytest.raises(ValueError, match=r"guidance=2\.0 compares with no condition.*objective\.drop=0"):
        run(model, guidance=2.0)
    assert torch.equal(run(model, guidance=1.0), run(model))
    run(model, guidance=2.0, negative={"label": "c"})  # which is trained
    begun = {"recipe": {"objective": {"drop": 0.0}, "train": {"init": "runs/before"}}}
    run(small_model(info=begun), guidance=2.0)  # whose weights may know it

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.networks.helpers import generator, randomise
from undiffuse.networks import DiTOptions, MLPOptions, UNetOptions, build_network, inflate
from undiffuse.spec import DataSpec

UNET = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
DIT = DiTOptions(width=16, depth=2, heads=2)
IMAGE = DataSpec(kind="image", shape=(1, 8, 8), classes=("a", "b", "c"))
VIDEO = DataSpec(kind="video", shape=(3, 1, 8, 8), classes=("a", "b", "c"))


@pytest.mark.parametrize("options", [UNET, DIT, replace(DIT, positions="learned", qk_norm=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_video_network_is_at_first_the_image_network_frame_by_frame(options, dtype):
    image = randomise(build_network(options, IMAGE)).to(dtype)
    video = inflate(image, VIDEO)
    assert video.options == replace(options, temporal=True)
    x, level = torch.randn(2, 3, 1, 8, 8, generator=generator()).to(dtype), torch.randn(2, 3, generator=generator(1))
    label = torch.tensor([0, 2])
    embedded = image.conditioners.embed({"label": label.repeat_interleave(3)}, 6)
    frames = image(x.flatten(0, 1), level.flatten().to(dtype), embedded)["out"]
    clips = video(x, level.to(dtype), video.conditioners.embed({"label": label}, 2))["out"]
    assert frames.abs().max() > 1e-2
    assert torch.equal(clips.flatten(0, 1), frames)


@pytest.mark.parametrize("options", [UNET, DIT])
def test_after_a_step_of_training_frames_meet(options):
    video = inflate(randomise(build_network(options, IMAGE)), VIDEO)
    x, level = torch.randn(2, 3, 1, 8, 8, generator=generator()), torch.zeros(2, 3)
    optimizer = torch.optim.SGD(video.parameters(), lr=0.1)
    video(x, level)["out"].square().mean().backward()
    optimizer.step()
    changed = level.clone()
    changed[:, 1] = 1.0
    difference = (video(x, changed)["out"] - video(x, level)["out"]).abs().amax((0, 2, 3, 4))
    assert (difference > 1e-6).all()


@pytest.mark.parametrize(
    ("network", "spec", "match"),
    [
        (build_network(UNET, IMAGE), IMAGE, "the spec is of image data"),
        (build_network(MLPOptions(), DataSpec(kind="vector", shape=(2,))), VIDEO, "MLP cannot be inflated"),
        (build_network(UNET, IMAGE), replace(VIDEO, classes=()), "'conditioners.label.table.weight' is of shape"),
        (build_network(UNET, IMAGE), replace(VIDEO, shape=(3, 2, 8, 8)), "'enter.weight' is of shape"),
        (
            build_network(replace(DIT, positions="learned"), IMAGE),
            replace(VIDEO, shape=(3, 1, 4, 4)),
            r"'places' is of shape \(16, 16\) in the image network and of shape \(4, 16\)",
        ),
    ],
)
def test_networks_that_do_not_match_are_refused(network, spec, match):
    with pytest.raises(ValueError, match=match):
        inflate(network, spec)

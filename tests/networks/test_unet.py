from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import count, described, generator, parameters_without_gradient, randomise
from undiffuse.networks.attention import math_attention
from undiffuse.networks.options import UNetOptions
from undiffuse.networks.unet import UNet

SMALL = UNetOptions(channels=8, multipliers=(1, 2, 2), blocks=1, heads=2)


def build(dims: int, channels: int, options: UNetOptions = SMALL, **kwargs) -> UNet:
    return randomise(UNet(dims, channels, options, **kwargs))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        (1, (7,)),
        (3, (1,)),
        (2, (64,)),
        (1, (5, 9)),
        (3, (8, 8)),
        (4, (28, 28)),
        (1, (1, 3)),
        (2, (3, 4, 5)),
        (1, (8, 8, 8)),
    ],
)
def test_keeps_any_shape(channels, size):
    x = draw(2, channels, *size)
    out = build(len(size), channels)(x, torch.zeros(2))["out"]
    assert out.shape == x.shape and out.isfinite().all()


def test_starts_at_zero_and_reads_the_level():
    x = draw(2, 1, 8, 8)
    assert (UNet(2, 1, SMALL)(x, torch.zeros(2))["out"] == 0).all()
    network = build(2, 1)
    assert not torch.allclose(network(x, torch.zeros(2))["out"], network(x, torch.ones(2))["out"])


def test_equal_levels_per_frame_equal_the_shared_level():
    network = build(2, 3, UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, temporal=True))
    x, level = draw(2, 4, 3, 6, 5), torch.tensor([0.4, -1.0])
    torch.testing.assert_close(
        network(x, level[:, None].expand(2, 4))["out"], network(x, level)["out"], rtol=1e-6, atol=1e-6
    )


def test_without_temporal_attention_a_frame_s_level_changes_that_frame_alone():
    network, x = build(2, 1), draw(2, 3, 1, 8, 8)
    level = torch.zeros(2, 3)
    changed = level.clone()
    changed[0, 1] = 1.0
    difference = (network(x, changed)["out"] - network(x, level)["out"]).abs().amax((2, 3, 4))
    assert difference[0, 1] > 1e-3
    difference[0, 1] = 0.0
    assert difference.max() < 1e-6


def test_each_frame_of_a_video_is_what_the_image_alone_gives():
    network, x = build(2, 1, conditions=described(3)), draw(2, 3, 1, 8, 8)
    level, label = draw(2, 3, seed=2), torch.tensor([0, 2])
    embed = network.conditioners.embed
    video = network(x, level, embed({"label": label}, 2))["out"]
    images = network(x.flatten(0, 1), level.flatten(), embed({"label": label.repeat_interleave(3)}, 6))["out"]
    torch.testing.assert_close(video.flatten(0, 1), images)


def test_temporal_attention_lets_frames_meet_in_order():
    options = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2, temporal=True)
    network, x = build(2, 1, options), draw(1, 3, 1, 8, 8)
    level = torch.zeros(1, 3)
    changed = torch.tensor([[0.0, 1.0, 0.0]])
    difference = (network(x, changed)["out"] - network(x, level)["out"]).abs().amax((2, 3, 4))
    assert (difference > 1e-4).all()
    swapped = network(x[:, [1, 0, 2]], level)["out"][:, [1, 0, 2]]
    assert not torch.allclose(swapped, network(x, level)["out"], atol=1e-4)


def test_inflation_starts_as_the_image_network():
    image = build(2, 1)
    options = UNetOptions(channels=8, multipliers=(1, 2, 2), blocks=1, heads=2, temporal=True)
    video = UNet(2, 1, options)
    missing, unexpected = video.load_state_dict(image.state_dict(), strict=False)
    assert unexpected == [] and all(name.startswith("temporal.") for name in missing)
    x, level = draw(2, 3, 1, 8, 8), draw(2, 3, seed=3)
    torch.testing.assert_close(video(x, level)["out"], image(x, level)["out"], rtol=0, atol=0)


def test_gradient_reaches_every_parameter():
    options = UNetOptions(channels=8, multipliers=(1, 2), blocks=2, attention=(0, 1), heads=2, temporal=True)
    network = build(2, 2, options, conditions=described(2, pose=2))
    drop = {name: torch.tensor([True, False, False]) for name in ("label", "pose")}
    cond = {"label": torch.tensor([0, 0, 1]), "pose": torch.ones(3, 2)}
    embedded = network.conditioners.embed(cond, 3, drop)
    network(draw(3, 2, 2, 5, 5), draw(3, 2, seed=1), embedded)["out"].square().sum().backward()
    assert parameters_without_gradient(network) == []


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_forward_and_reverse_derivatives_agree_with_finite_differences(dims):
    network = build(dims, 2).double()
    x, tangent = draw(2, 2, *[3] * dims).double(), draw(2, 2, *[3] * dims, seed=5).double()
    level = torch.tensor([0.2, -0.7], dtype=torch.float64)
    run = lambda y: network(y, level)["out"]  # noqa: E731
    with math_attention():
        out, jvp = torch.func.jvp(run, (x,), (tangent,))
        _, pull = torch.func.vjp(run, x)
    step = 1e-5
    difference = (run(x + step * tangent) - run(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close((out * jvp).sum(), (pull(out)[0] * tangent).sum())


def test_derivative_in_the_noise_level_exists():
    network = build(2, 1).double()
    x, level = draw(2, 1, 4, 4).double(), torch.tensor([0.2, -0.7], dtype=torch.float64)
    run = lambda at: network(x, at)["out"]  # noqa: E731
    with math_attention():
        _, jvp = torch.func.jvp(run, (level,), (torch.ones_like(level),))
    torch.testing.assert_close(jvp, (run(level + 1e-5) - run(level - 1e-5)) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("x", "level", "match"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), "expects 1 channels"),
        (torch.zeros(2, 1, 8), torch.zeros(2), "2 spatial axes"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1), r"expects \(2,\)\."),
        (torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 3), r"expects \(2,\) or \(2, 4\)"),
        (torch.zeros(2, 1, 8, 8), None, "noise level is None"),
    ],
)
def test_misfits_are_refused(x, level, match):
    with pytest.raises(ValueError, match=match):
        build(2, 1)(x, level)


def test_a_fourth_dimension_is_refused():
    with pytest.raises(ValueError, match="dims=4"):
        UNet(4, 1)


def test_attention_sits_at_the_chosen_levels():
    plain = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, attention=(), heads=2)
    network = UNet(2, 1, UNetOptions(channels=8, multipliers=(1, 2), blocks=1, attention=(0,), heads=2))
    attending = {name for name, block in network.blocks.items() if "attention.norm.weight" in block.state_dict()}
    assert attending == {"down0.0", "up0.0"}
    assert count(network) > count(UNet(2, 1, plain))


def test_block_names_follow_the_order_of_execution():
    options = UNetOptions(channels=8, multipliers=(1, 2), blocks=2, heads=2, temporal=True)
    network, ran = build(2, 1, options), []
    for name, block in network.blocks.items():
        block.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    network(draw(1, 2, 1, 4, 4), torch.zeros(1))
    assert ran == list(network.blocks)
    assert {"in", "down1.1", "mid", "mid.temporal", "up0.1", "out"} <= set(ran)


def test_parameter_count_of_the_digits_size():
    options = UNetOptions(channels=48, multipliers=(1, 2), blocks=1)
    assert 0.9e6 < count(UNet(2, 1, options, conditions=described(10))) < 1.1e6

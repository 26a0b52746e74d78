"""Distances of pictures in the features of a frozen network: a loss of codecs, and a figure of restorations.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1,
    arXiv:1801.03924: features are normalised over channels, differences squared and averaged over places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from undiffuse.errors import ConfigError
from undiffuse.metrics.classifier import ImageClassifier, classifier_for
from undiffuse.spec import DataSpec

Distance = Callable[[Tensor, Tensor], Tensor]
"""From pictures and others (N, C, H, W) in [-1, 1] to the distance of each pair (N,)."""


def make_distance(features: str, data: DataSpec) -> Distance:
    """Return the distance in features: "lpips", or a classifier by its folder or shipped name.

    Raises:
        ConfigError: The data are no pictures, the library is not there, or the classifier is of another shape.
        CheckpointError: The classifier cannot be loaded.
    """
    if data.kind not in ("image", "video"):
        raise ConfigError(f"a perceptual distance compares pictures, but these are {data.noun}; leave it out.")
    if features == "lpips":
        return _lpips()
    network = classifier_for(features, data)

    def distance(x: Tensor, made: Tensor) -> Tensor:
        network.to(x.device)
        pairs = zip(_stages(network, x), _stages(network, made), strict=True)
        return torch.stack([_gap(normalize(a), normalize(b)) for a, b in pairs]).sum(0)

    return distance


def _gap(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1).flatten(1).mean(1)


def _stages(network: ImageClassifier, x: Tensor) -> Iterator[Tensor]:
    """Yield the feature maps of every block."""
    x = network.stem(x)
    yield x
    for block in network.blocks:
        x = block(x)
        yield x


def _lpips() -> Distance:
    try:
        import lpips
    except ImportError as error:
        raise ConfigError(
            "the distance lpips needs the library lpips (pip install lpips); or give the folder of a classifier, see "
            "undiffuse.metrics.train_classifier."
        ) from error
    network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def distance(x: Tensor, made: Tensor) -> Tensor:
        network.to(x.device)
        a, b = (part.expand(-1, 3, -1, -1) if part.shape[1] == 1 else part for part in (x, made))
        return network(a, b).flatten()

    return distance

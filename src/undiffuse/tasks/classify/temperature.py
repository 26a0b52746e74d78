"""The temperature at which probabilities of classes are honest, found on labelled items."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from undiffuse.tasks.classify.results import Classification, read_truth

_LOW, _HIGH = math.log(1e-3), math.log(1e4)
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_WIDTH = 1e-4  # of log temperature
_LOWEST = -1e6  # of log p: tokens that are impossible under a class have none


def negative_log_likelihood(result: Classification, truth: Tensor, temperature: float = 1.0) -> float:
    """Return the mean of -log p(true class | item), nats.

    Raises:
        ValueError: Another number of labels than items, or labels that are no class.
    """
    log_p = result.class_logits(temperature).log_softmax(1)
    return -float(log_p.gather(1, read_truth(result, truth)[:, None]).mean())


def fit_temperature(result: Classification, truth: Tensor) -> float:
    """Return the temperature that makes labelled items likeliest; give items that are not those to be judged.

    Args:
        result: What `classify` said about them.
        truth: Their classes (B,).

    Returns:
        A temperature from 0.001 to 10000, by golden-section search, which is exact where classes have one prompt each.
        Of n items a share of 1 / (n + 2) counts for all classes alike (Platt's targets), so that items which are all
        right do not make it 0.

    Raises:
        ValueError: Labels that do not fit.

    Source: Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599, section 4.2; Platt 1999,
        "Probabilistic outputs for support vector machines", section 2.2.
    """
    labels = read_truth(result, truth)
    doubt = 1.0 / (len(labels) + 2)

    def loss(place: float) -> float:
        log_p = result.class_logits(math.exp(place)).log_softmax(1).clamp(min=_LOWEST)
        own = log_p.gather(1, labels[:, None])[:, 0]
        return -float(((1 - doubt) * own + doubt * log_p.mean(1)).mean())

    return math.exp(_lowest(loss, _LOW, _HIGH))


def _lowest(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function with one valley is lowest, by golden-section search."""
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    values = [loss(place) for place in inner]
    while high - low > _WIDTH:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - _GOLDEN * (high - low)
            values[0] = loss(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + _GOLDEN * (high - low)
            values[1] = loss(inner[1])
    return (low + high) / 2

"""Heads that are networks: trained by AdamW on features that were computed once."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from undiffuse.noise import permutation
from undiffuse.tasks.features.head import Head, Inputs, Standard
from undiffuse.tasks.features.head_networks import build_head
from undiffuse.tasks.features.options import HeadOptions

_CHUNK = 512
_DECAY = 0.01


class TrainedHead(Head):
    """A network on frozen features: the mlp on standardised flat features, cnn and attention on maps.

    The features are computed once, with the encoder's draws of noise, and not anew in every epoch as the authors do.
    """

    def __init__(self, network: nn.Module, facts: dict[str, Any], standard: Standard | None) -> None:
        self.network, self.standard, self._facts = network.eval(), standard, facts

    @classmethod
    def fit(cls, inputs: Inputs, labels: Tensor, classes: int, options: HeadOptions) -> Self:
        """Train; a function of the features, the options and their seed.

        Raises:
            ValueError: The loss is not finite.
        """
        facts = facts_of(inputs)
        standard = None if isinstance(inputs, dict) else Standard.of(inputs)
        network = build_head(facts, classes, options)
        head = cls(network, facts, standard)
        _train(network, head._scaled(inputs), labels, options)
        network.eval().requires_grad_(False)
        return head

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Tensor:
        """Return the network's scores."""
        scaled = self._scaled(inputs)
        rows = torch.arange(_count(scaled))
        return torch.cat([self.network(_take(scaled, part)).double() for part in rows.split(_CHUNK)])

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, and the scaling of flat features."""
        scaling = {} if self.standard is None else {"mean": self.standard.mean, "std": self.standard.std}
        return {f"network.{name}": value for name, value in self.network.state_dict().items()} | scaling

    @property
    def facts(self) -> dict[str, Any]:
        """Return the sizes of what the head reads."""
        return self._facts

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any], classes: int, options: HeadOptions) -> Self:
        """Return the head as it was."""
        network = build_head(facts, classes, options).requires_grad_(False)
        weights = {name.removeprefix("network."): value for name, value in tensors.items() if "network." in name}
        network.load_state_dict(weights)
        standard = Standard(tensors["mean"], tensors["std"]) if "mean" in tensors else None
        return cls(network, facts, standard)

    def _scaled(self, inputs: Inputs) -> Inputs:
        return inputs if self.standard is None else self.standard(inputs).float()


def facts_of(inputs: Inputs) -> dict[str, Any]:
    """Return the sizes of features, as plain JSON; maps of one time ("name@time") are one group."""
    if not isinstance(inputs, dict):
        return {"features": int(inputs.shape[1])}
    groups: dict[str, list[str]] = {}
    for name in inputs:
        groups.setdefault(name.partition("@")[2], []).append(name)
    return {"shapes": {name: list(part.shape[1:]) for name, part in inputs.items()}, "groups": list(groups.values())}


def _train(network: nn.Module, inputs: Inputs, labels: Tensor, options: HeadOptions) -> None:
    count = len(labels)
    per_epoch = max(1, count // options.batch)  # a last part is left to the next epoch: batch norm wants rows
    search = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=_DECAY)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(search, options.epochs * per_epoch)
    network.train()
    loss = torch.zeros(())
    with torch.enable_grad():
        for epoch in range(options.epochs):
            order = permutation(options.seed, epoch, count)
            for rows in order[: per_epoch * options.batch].split(options.batch):
                search.zero_grad()
                loss = cross_entropy(network(_take(inputs, rows)), labels[rows])
                loss.backward()
                search.step()
                decay.step()
    if not math.isfinite(last := float(loss.detach())):
        raise ValueError(f"the head's loss is {last}; lower rate={options.rate:g}.")


def _take(inputs: Inputs, rows: Tensor) -> Inputs:
    return {name: part[rows] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)

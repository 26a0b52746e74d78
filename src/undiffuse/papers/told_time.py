"""Whether a masked network needs the time: on a source whose law is known, trained until the networks know it too.

The source is a Markov chain, so -log p of every sequence is a sum, and no network's bound can be below the entropy but
by chance. What is told apart is the excess: the bound of a sequence less its own -log p, which has far less noise than
the bound itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.data import TensorDataset
from undiffuse.denoisers.elbo import token_bounds
from undiffuse.models import Model
from undiffuse.noise import KeyedNoise
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.spec import DataSpec
from undiffuse.training.run import train

_CLASSES, _LENGTH = 4, 8
_ROWS, _JUDGED, _DRAWS = 20_000, 1000, 8
_LEVELS = 100  # of the bound of D3PM; as many draws as levels meet each of them once
_STEPS = 500
_NETWORKS = {
    "without time": (),
    "told the time": ("model.time_dependent=true",),
    "without time and count": ("model.counts_masks=false",),
    "without time, count, gates": ("model.counts_masks=false", "model.gated=false"),
    "D3PM, without carry-over": (
        "model.time_dependent=true",
        "process.corruption=mask-replace",
        "process.keep=vq-diffusion",
        "objective=categorical-elbo",
        "objective.levels=100",
    ),
}
_SIZE = (
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.neighbours=1",
    "train.batch_size=128",
    "train.lr=4e-3",
)
_ASKED = 0.02  # nats per token


@dataclass(frozen=True)
class MarkovChain:
    """Sequences of tokens of which each depends on the one before.

    Args:
        first: Law of the first token (K,).
        step: Law of each token given the one before, [before, token] (K, K).
    """

    first: Tensor
    step: Tensor

    @staticmethod
    def drawn(classes: int, strength: float = 1.5, seed: int = 3) -> MarkovChain:
        """Return a chain with laws prop. to exp(strength g), g standard normal."""
        normal = torch.randn(classes + 1, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        laws = (strength * normal).softmax(-1)
        return MarkovChain(laws[0], laws[1:])

    def rows(self, uniform: Tensor) -> Tensor:
        """Return sequences (N, L) from uniforms (N, L), by inversion."""
        law, tokens = self.first.expand(len(uniform), -1), []
        for place in uniform.unbind(1):
            token = (law.cumsum(-1) <= place[:, None]).sum(-1).clamp(max=law.shape[1] - 1)
            tokens.append(token)
            law = self.step[token]
        return torch.stack(tokens, dim=1)

    def log_p(self, x: Tensor) -> Tensor:
        """Return log p of sequences (N, L), (N,)."""
        return self.first.log()[x[:, 0]] + self.step.log()[x[:, :-1], x[:, 1:]].sum(1)

    def entropy(self, length: int) -> float:
        """Return the entropy of a sequence in nats."""
        law, total = self.first, -torch.xlogy(self.first, self.first).sum()
        for _ in range(length - 1):
            total = total - (law[:, None] * torch.xlogy(self.step, self.step)).sum()
            law = law @ self.step
        return float(total)


def told_or_not(quick: bool = False, seed: int = 0, device: str = "auto") -> Part:
    """Train the networks on one chain, and compare their bounds with its entropy."""
    chain, steps = MarkovChain.drawn(_CLASSES), 20 if quick else _STEPS
    spec = DataSpec(kind="tokens", shape=(_LENGTH,), vocabulary=tuple("abcdefgh"[:_CLASSES]))
    count = 400 if quick else _ROWS
    data = TensorDataset(data=chain.rows(_uniforms(seed, 0, count)), spec=spec)
    judged = chain.rows(_uniforms(seed, count, 100 if quick else _JUDGED))
    found = {
        name: _excess(_trained(data, words, steps, seed, device), chain, judged) for name, words in _NETWORKS.items()
    }
    entropy = chain.entropy(_LENGTH) / _LENGTH
    rows = [
        (name, f"{entropy + float(part.mean()):.4f}", f"{float(part.mean()):.4f}", f"{_error(part):.4f}")
        for name, part in found.items()
    ]
    plain, told = found["without time"], found["told the time"]
    apart = plain - told
    return Part(
        title="Told the time or not",
        text=f"Sequences of {_LENGTH} tokens of {_CLASSES} classes from a Markov chain of which the entropy is "
        f"{entropy:.4f} nats per token, {steps} steps of each network, {len(judged)} new sequences. The best answer to "
        "masked tokens does not depend on the time, so all have the entropy for their limit. Excess: what their "
        "bounds have beyond -log p of the same sequences. On the way there a network that is told the time can be "
        "ahead: the time says how much is masked before the network has learned to count, so the recipe's network is "
        "told that; and its blocks have gates, which others have where model.gated says so. D3PM's has to repeat "
        f"the tokens that are open; its bound is that of {_LEVELS} levels.",
        columns=("network", "nats per token", "excess", "error"),
        rows=[*rows, ("the chain", f"{entropy:.4f}", "0", "")],
        numeric=(1, 2, 3),
        measures=[
            Measure(
                "told the time or not: difference", abs(float(apart.mean())), "nats", asked=_ASKED, error=_error(apart)
            ),
            Measure("without time: excess over the entropy", float(plain.mean()), "nats", asked=_ASKED),
            Measure("told the time: excess over the entropy", float(told.mean()), "nats", asked=_ASKED),
            Measure(
                "without carry-over: excess beyond told the time",
                float((found["D3PM, without carry-over"] - told).mean()),
                "nats",
                error=_error(found["D3PM, without carry-over"] - told),
            ),
        ],
    )


def _uniforms(seed: int, first: int, count: int) -> Tensor:
    return KeyedNoise(seed, range(first, first + count)).uniform("data", 0, (_LENGTH,))


def _trained(data: TensorDataset, words: tuple[str, ...], steps: int, seed: int, device: str = "auto") -> Model:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "steps": steps,
            "seed": seed,
            "device": device,
            "preview_every": 0,
            "checkpoint_every": 1_000_000,
            "validate_every": 0,
        }
        run = train(data, "text", out=Path(folder), overrides=[*_SIZE, *words], **options)
        return run.model


def _excess(model: Model, chain: MarkovChain, x: Tensor) -> Tensor:
    """Return the bound of each sequence less its -log p, nats per token (N,); all networks meet the same masks."""
    draws = _DRAWS if model.process.kind == "absorbing" else _LEVELS
    bounds = token_bounds(model.denoiser, x, KeyedNoise(0, range(len(x))), draws, levels=_LEVELS)
    return bounds.double().mean(0) + chain.log_p(x) / x.shape[1]


def _error(part: Tensor) -> float:
    return float(part.std()) / len(part) ** 0.5

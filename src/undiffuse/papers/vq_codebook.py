r"""The codebook half of VQ-DDM: rebuilding a mostly unused codebook beats training on for as many steps.

A codec is trained as VQ-VAEs were first: gradients move the codebook, nothing restarts unused vectors. Then, with the
same number of further steps each:

- *keep training* everything;
- *rebuild*: k-means centres of the encodings, at the old size and at smaller ones, then refit the decoder;
- *N(mean, std)*: a codebook drawn with the mean and standard deviation of the old one, then refit, which is what the
  paper's code does without k-means;
- *restarts*: keep training with moving averages and restarts of unused vectors, a strong baseline of today.

Source: Hu et al. 2021, arXiv:2112.01799, section 3.2; the figures asked for are those of our own small experiment.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from undiffuse.codecs.build import build_codec
from undiffuse.codecs.options import VQOptions
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.codecs.vq import VQCodec
from undiffuse.data import TensorDataset, open_data, split
from undiffuse.data.dataset import Dataset
from undiffuse.events import Advanced, Finished, Listener, Message, Started, silent
from undiffuse.metrics.codebook import CodebookHealth, codebook_health
from undiffuse.noise import KeyedNoise
from undiffuse.papers.sizes import DIGITS
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.spec import DataSpec
from undiffuse.training.codec_training import train_codec_network
from undiffuse.training.devices import Devices, choose_device
from undiffuse.training.options import TrainOptions
from undiffuse.training.refit import only_decoding, refit_codebook

_COLUMNS = ("codec", "codes", "squared error", "used", "perplexity")
_BASE, _KEPT, _RESTARTS = "base", "keep training", "keep training with restarts"


@dataclass(frozen=True)
class Stage:
    """One codec of the comparison, and its figures on held-out items; a codebook without refit is figures alone."""

    name: str
    health: CodebookHealth
    codec: TokenCodec | None = None


def codebook_study(
    *,
    seed: int = 0,
    options: VQOptions = DIGITS,
    more: int = 600,
    sizes: Sequence[int] = (128, 64, 32, 16),
    drawn: Sequence[int] = (128, 64, 32),
    data: str | Dataset = "digits",
    listener: Listener = silent,
    device: str = "cpu",
) -> list[Stage]:
    """Train a codec and compare what `more` further steps make of it.

    Args:
        seed: Of data order, weights and k-means.
        options: The codec; its `steps` are those of the base.
        more: Further steps of everything that is compared, at the same learning rate.
        sizes: Code vectors of the rebuilt codebooks.
        drawn: Code vectors of the codebooks drawn from N(mean, std).
        data: A data set or its name; a part is held out for the figures.
        listener: Hears about progress.
        device: Where codecs are trained and measured, as `train.device`.
    """
    training, held_out = split(open_data(data) if isinstance(data, str) else data)
    study = _Study(training, held_out, options, more, seed, listener, 3 + len(sizes) + len(drawn), device)
    listener(Started("codebooks", study.total, "codec"))
    base = base_codec(training, options, seed, device)
    study.note(_BASE, base)
    study.note(_KEPT, study.trained(base, replace(options, steps=more)))
    kept = replace(options, steps=more, codebook="ema", restart=100, codes=len(base.codebook))
    study.note(_RESTARTS, study.trained(_moving(base, kept), kept))
    for size in sizes:
        study.refit("rebuilt", base, size)
    for size in drawn:
        study.drawn(base, size)
    listener(Finished("codebooks"))
    return study.stages


def base_codec(training: Dataset, options: VQOptions = DIGITS, seed: int = 0, device: str = "cpu") -> VQCodec:
    """Return the codec that the study starts from, trained."""
    codec = build_codec(options, training.spec, seed=seed)
    assert isinstance(codec, VQCodec)
    return _trained(codec, options, training, seed, device)


def crops(data: Dataset, side: int, seed: int = 0) -> Dataset:
    """Return square crops of pictures, side by side, in random order: what is held out is then like the rest.

    Args:
        data: Pictures.
        side: Of a crop, in pixels.
        seed: Of the order.

    Raises:
        ValueError: The data are no pictures, or their sides are no multiples of that of a crop.
    """
    x = data.spec.from_model(data.batch(torch.arange(len(data)))["x"])
    if x.ndim != 4 or x.shape[2] % side or x.shape[3] % side:
        raise ValueError(f"items of shape {tuple(x.shape[1:])} cannot be cut into crops of {side} x {side} pixels.")
    cut = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()
    order = KeyedNoise(seed, range(len(cut))).uniform("order", 0, ()).argsort()
    spec = DataSpec(kind="image", shape=tuple(cut.shape[1:]), range=data.spec.range)
    return TensorDataset(data=cut[order], spec=spec)


def codebook_part(stages: Sequence[Stage], asked_gain: float = 0.1) -> Part:
    """Return the table of a study beside what is asked: usage at least 0.98, and an error that much below training on.

    Args:
        stages: From `codebook_study`.
        asked_gain: Share by which the rebuilt codebook of the old size must beat training on.
    """
    by_name = {stage.name: stage.health for stage in stages}
    base = by_name[_BASE]
    best = by_name[f"rebuilt, {base.codes} codes, refit"]
    gain = 1 - best.error / by_name[_KEPT].error
    over_restarts = 1 - best.error / by_name[_RESTARTS].error
    rows = [
        (s.name, str(s.health.codes), f"{s.health.error:.4f}", f"{s.health.usage:.2f}", f"{s.health.perplexity:.1f}")
        for s in stages
    ]
    return Part(
        title="Codebooks",
        text="Squared error of reconstructions per value on held-out items (pictures in [-1, 1]), share of the code "
        "vectors that occur there, and their perplexity. Every line below the first has had the same number of further "
        "steps, but for those of codebooks that were rebuilt and not refit.",
        columns=_COLUMNS,
        rows=rows,
        numeric=range(1, 5),
        measures=[
            Measure("codes used after the rebuild", best.usage, "share", 0.98, "higher"),
            Measure("error below that of training on", gain, "share", asked_gain, "higher"),
            Measure("error below that of training on with restarts", over_restarts, "share", better="higher"),
        ],
    )


class _Study:
    def __init__(
        self,
        training: Dataset,
        held_out: Dataset,
        options: VQOptions,
        more: int,
        seed: int,
        listener: Listener,
        total: int,
        device: str,
    ) -> None:
        self.training, self.held_out, self.options = training, held_out, options
        self.more, self.seed, self.listener, self.total = more, seed, listener, total
        self.device = str(choose_device(device))
        self.stages: list[Stage] = []
        self._done = 0

    def trained(self, codec: VQCodec, options: VQOptions, *, decoder_only: bool = False) -> VQCodec:
        """Return a copy of a codec after training all of it, or its decoder and codebook."""
        return _trained(codec, options, self.training, self.seed, self.device, decoder_only=decoder_only)

    def refit(self, name: str, codec: VQCodec, size: int) -> None:
        found = refit_codebook(
            codec,
            self.training,
            held_out=self.held_out,
            codes=size,
            train_steps=self.more,
            lr=self.options.lr,
            train_batch_size=self.options.batch_size,
            seed=self.seed,
            train=_usual(self.more, self.seed, self.device),
        )
        assert found.after is not None
        self._add(f"{name}, {size} codes", found.rebuilt)
        self._add(f"{name}, {size} codes, refit", found.after, found.codec)
        self._advance()

    def drawn(self, codec: VQCodec, size: int) -> None:
        """Refit a codebook that is drawn from the mean and standard deviation of the old one."""
        old = codec.codebook.detach()
        eps = KeyedNoise(self.seed, range(size)).normal("data", 0, (old.shape[1],))
        with torch.no_grad():
            other = codec.with_codebook(old.mean(0) + old.std(0) * eps)
        options = replace(self.options, codes=size, steps=self.more)
        self.note(f"N(mean, std), {size} codes, refit", self.trained(other, options, decoder_only=True))

    def note(self, name: str, codec: VQCodec) -> None:
        """Measure a codec."""
        self._add(name, codebook_health(codec.to(self.device), self.held_out, device=self.device), codec.cpu())
        self._advance()

    def _add(self, name: str, health: CodebookHealth, codec: TokenCodec | None = None) -> None:
        self.stages.append(Stage(name, health, codec))
        self.listener(Message("codebooks", f"{name}: {health}"))

    def _advance(self) -> None:
        self._done += 1
        self.listener(Advanced("codebooks", self._done))


def _trained(
    codec: VQCodec, options: VQOptions, training: Dataset, seed: int, device: str, *, decoder_only: bool = False
) -> VQCodec:
    """Return a trained copy of a codec, on the CPU."""
    train = _usual(options.steps, seed, device)
    own = copy.deepcopy(codec).requires_grad_(True)
    if decoder_only:
        only_decoding(own)
    with tempfile.TemporaryDirectory() as folder:
        made = train_codec_network(own, options, train, training, Path(folder), Devices(train), silent, seeded=True)
    if made is None:
        raise KeyboardInterrupt
    assert isinstance(made, VQCodec)
    return made.cpu().eval().requires_grad_(False)


def _usual(steps: int, seed: int, device: str) -> TrainOptions:
    return TrainOptions(seed=seed, device=device, checkpoint_every=max(1, steps), preview_every=0, validate_every=0)


def _moving(codec: VQCodec, options: VQOptions) -> VQCodec:
    """Return the codec with a codebook that moving averages train."""
    made = VQCodec(codec.data, options)
    made.load_state_dict(codec.state_dict())
    return made

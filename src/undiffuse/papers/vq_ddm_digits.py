"""Completing halves of digits through a codec: uniform and absorbing noise, replacement and given tokens, and from left
to right.

All networks see the same tokens for as many steps. What counts is whether a classifier that was trained on pictures
names the completed digit as the whole one is labelled.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.codecs.build import build_codec
from undiffuse.codecs.options import VQOptions
from undiffuse.codecs.vq import VQCodec
from undiffuse.data import open_data, split
from undiffuse.data.dataset import Dataset
from undiffuse.denoisers.causal import token_denoiser
from undiffuse.events import Listener, Message, silent
from undiffuse.images import image_grid
from undiffuse.metrics.classifier import ImageClassifier
from undiffuse.metrics.classifier_training import train_classifier
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import NetworkOptions
from undiffuse.papers.sizes import COMPLETIONS, CompletionSize
from undiffuse.papers.study import Part
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.keep import RootCosineKeep
from undiffuse.report.measures import Measure
from undiffuse.report.plots import labelled_pictures
from undiffuse.tasks.completion import inpaint
from undiffuse.training.build import make_objective
from undiffuse.training.codec_training import train_codec_network
from undiffuse.training.devices import Devices, choose_device
from undiffuse.training.latents import encode_data
from undiffuse.training.options import (
    AutoregressiveOptions,
    CategoricalELBOOptions,
    MaskedELBOOptions,
    TrainOptions,
)
from undiffuse.training.trainer import Trainer

_TASK = "vq-ddm"
_CODEC = VQOptions(codes=64, channels=8, halvings=1, width=32, lr=2e-3)
_SHOWN = 10  # digits in the picture


@dataclass(frozen=True)
class _Network:
    """A network of the comparison."""

    kind: CategoricalKind
    network: Literal["unet", "transformer"]
    objective: CategoricalELBOOptions | MaskedELBOOptions | AutoregressiveOptions
    evidence_free: bool = False
    causal: bool = False

    def options(self, size: CompletionSize) -> NetworkOptions:
        """Return the network of a size."""
        return replace(size.transformer, causal=self.causal) if self.network == "transformer" else size.unet


_UNIFORM, _ABSORBING = "uniform, U-Net", "absorbing, U-Net"
_MASKED, _CAUSAL = "absorbing, transformer", "left to right, transformer"
_NETWORKS: dict[str, _Network] = {
    _UNIFORM: _Network("uniform", "unet", CategoricalELBOOptions(times="running", drop=0.0), evidence_free=True),
    _ABSORBING: _Network("absorbing", "unet", MaskedELBOOptions(drop=0.0)),
    _MASKED: _Network("absorbing", "transformer", MaskedELBOOptions(drop=0.0)),
    _CAUSAL: _Network("absorbing", "transformer", AutoregressiveOptions(drop=0.0), causal=True),
}
_WAYS: tuple[tuple[str, int | None], ...] = (  # network, and passes of replacement; None: tokens are given
    (_UNIFORM, 1),
    (_UNIFORM, 8),
    (_ABSORBING, 1),
    (_ABSORBING, 8),
    (_ABSORBING, None),
    (_MASKED, None),
    (_CAUSAL, None),
)


def completed_digits(
    size: CompletionSize = COMPLETIONS["small"], seed: int = 0, listener: Listener = silent, device: str = "cpu"
) -> Part:
    """Train a codec and four networks, and complete the lower and the upper halves of held-out digits."""
    training, held_out = split(open_data("digits"), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        own = _Digits(training, held_out, size, seed, Path(folder), listener, choose_device(device))
        rows = [own.reference(), *(own.row(name, passes) for name, passes in _WAYS)]
        pictures = own.pictures()
    agreement = {(name, passes): row for (name, passes), row in zip(_WAYS, own.agreements, strict=True)}
    whole = size in COMPLETIONS.values()
    gains = {
        "uniform: each step 8 times over once": agreement[_UNIFORM, 8] - agreement[_UNIFORM, 1],
        "absorbing: given over replacement once": agreement[_ABSORBING, None] - agreement[_ABSORBING, 1],
        "absorbing: given over replacement 8 times": agreement[_ABSORBING, None] - agreement[_ABSORBING, 8],
        "transformer, lower half: given over left to right": agreement[_MASKED, None] - agreement[_CAUSAL, None],
    }
    return Part(
        title="Completed digits",
        text=f"{size.items} held-out digits of 8 x 8 pixels as 4 x 4 tokens of a codebook of {_CODEC.codes}, one "
        f"half known, completed {size.completions} times by networks of {size.steps} steps. Agreement: a "
        "classifier names the completed picture as its label says, the known half put back. Kept: squared error of "
        "the known half where it is not put back. A network that reads from left to right cannot see the lower half "
        "before it draws the upper one, so that row is a sample beside the known half.",
        columns=("network", "known tokens", "calls", "lower half", "kept", "upper half", "kept"),
        rows=rows,
        numeric=(2, 3, 4, 5, 6),
        measures=[
            Measure(f"agreement, {name}", gain, "share", 0.0 if whole and number < 2 else None, "higher")
            for number, (name, gain) in enumerate(gains.items())
        ],
        figure=labelled_pictures(pictures),
        caption="Lower halves of held-out digits, completed.",
    )


class _Digits:
    """The codec, the networks and the figures of one seed."""

    def __init__(
        self,
        training: Dataset,
        held_out: Dataset,
        size: CompletionSize,
        seed: int,
        folder: Path,
        listener: Listener,
        device: torch.device,
    ) -> None:
        self.training, self.size, self.seed, self.folder, self.listener = training, size, seed, folder, listener
        self.device = device
        batch = held_out.batch(torch.arange(min(size.items, len(held_out))))
        self.x, self.labels = batch["x"].float(), batch["cond"]["label"]  # model units
        self.classifier = _classifier(training, size.epochs, seed)
        self.codec = self._trained_codec()
        self.tokens = encode_data(self.codec, training, device, silent)
        self.models: dict[str, Model] = {}
        self.agreements: list[float] = []

    def reference(self) -> tuple[str, ...]:
        """Return the row of the whole digits, as the codec gives them back."""
        with torch.no_grad():
            rebuilt = self.codec.decode(self.codec.encode(self.x.to(self.device))).cpu()
        agrees = f"{float(self._agrees(rebuilt)):.3f}"
        kept = [float((rebuilt - self.x)[..., half, :].square().mean()) for half in (slice(0, 4), slice(4, 8))]
        return ("the codec alone", "all", "0", agrees, f"{kept[0]:.4f}", agrees, f"{kept[1]:.4f}")

    def row(self, name: str, passes: int | None) -> tuple[str, ...]:
        """Return the row of one network and one way."""
        self.listener(Message(_TASK, f"{name}, {'given' if passes is None else f'replacement, {passes} times'}"))
        cells: list[str] = []
        for lower in (True, False):
            found, nfe = self.completed(name, passes, lower)
            known = self._known(lower)
            pasted = torch.where(known, self.x, found)
            agreement = torch.stack([self._agrees(part) for part in pasted]).mean()
            kept = (found - self.x)[known.expand_as(found)].square().mean()
            cells += [f"{float(agreement):.3f}", f"{float(kept):.4f}"]
            if lower:
                calls, first = nfe, agreement
        self.agreements.append(float(first))
        return (name, "given" if passes is None else f"replacement, {passes} times", str(calls), *cells)

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return strips of the first digits: what is known, what was drawn, and the truth."""
        known = self._known(True)
        strips = {"known": torch.where(known, self.x, 0.0)}
        for name, passes in _WAYS:
            if (name, passes) in ((_UNIFORM, 1), (_UNIFORM, 8), (_ABSORBING, None), (_CAUSAL, None)):
                found = self.completed(name, passes, True)[0][0]
                told = name.partition(",")[0] + ("" if passes is None else f", {passes} times")
                strips[told] = torch.where(known, self.x, found)
        strips["truth"] = self.x
        return {name: image_grid(x[:_SHOWN], columns=_SHOWN, scale=4) for name, x in strips.items()}

    def completed(self, name: str, passes: int | None, lower: bool) -> tuple[Tensor, int]:
        """Return completions (K, B, C, H, W) in model units, known pixels as the codec gives them, and their calls."""
        model, spec = self._model(name), self.training.spec
        count, data = self.size.completions, spec.from_model(self.x)
        if name == _CAUSAL and not lower:
            drawn = model.sample(count * len(self.x), seed=self.seed, batch_size=512).cpu()
            return spec.to_model(drawn).unflatten(0, (count, -1)), 16
        done = inpaint(
            model,
            data,
            self._known(lower)[0, 0],
            samples=count,
            method="clamp" if passes is None else "replacement",
            resample=passes,
            steps=None if passes is None else self.size.calls,
            seed=self.seed,
            dilate=0,
            paste=False,
            batch_size=512,
        )
        return spec.to_model(done.samples), done.nfe

    def _known(self, lower: bool) -> Tensor:
        """Return which pixels are known where the lower (or upper) half is to be completed, (1, 1, H, W)."""
        known = torch.zeros(1, 1, *self.x.shape[2:], dtype=torch.bool)
        half = self.x.shape[2] // 2
        known[:, :, slice(0, half) if lower else slice(half, None)] = True
        return known

    @torch.no_grad()
    def _agrees(self, x: Tensor) -> Tensor:
        return (self.classifier(x.float()).argmax(1) == self.labels).float().mean()

    def _trained_codec(self) -> VQCodec:
        options = replace(_CODEC, steps=self.size.codec_steps)
        train = TrainOptions(seed=self.seed, device=str(self.device), checkpoint_every=options.steps, validate_every=0)
        codec = build_codec(options, self.training.spec, seed=self.seed)
        assert codec is not None
        self.listener(Message(_TASK, "training the codec"))
        made = train_codec_network(codec, options, train, self.training, self.folder / "codec", Devices(train), silent)
        if made is None:
            raise KeyboardInterrupt
        assert isinstance(made, VQCodec)
        return made.eval()

    def _model(self, name: str) -> Model:
        """Return a trained network, without labels, as a model of pictures."""
        if name in self.models:
            return self.models[name]
        asked = _NETWORKS[name]
        spec = replace(self.tokens.spec, classes=())
        process = CategoricalProcess(asked.kind, spec.categories, RootCosineKeep())
        network = build_network(asked.options(self.size), spec, states=process.states, seed=self.seed)
        denoiser = token_denoiser(
            network, process, spec=spec, time_dependent=network.time_dependent, evidence_free=asked.evidence_free
        )
        options = TrainOptions(
            steps=self.size.steps,
            batch_size=64,
            lr=1e-3,
            warmup=min(100, self.size.steps),
            seed=self.seed,
            device=str(self.device),
            checkpoint_every=self.size.steps,
            preview_every=0,
            validate_every=0,
        )
        self.listener(Message(_TASK, f"training {name}, {options.steps} steps"))
        data = replace(self.tokens, spec=spec, stored=replace(spec), labels=None)
        folder = self.folder / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        trainer = Trainer(denoiser, make_objective(asked.objective, denoiser, options.steps), data, options, folder)
        trainer.run()
        made = trainer.state.model().eval()
        self.models[name] = Model(made, self.training.spec, codec=self.codec)
        return self.models[name]


def _classifier(training: Dataset, epochs: int, seed: int) -> ImageClassifier:
    return train_classifier(
        training, training, widths=(16, 32, 64), blocks=(0, 1, 1), epochs=epochs, rate=0.1, flip=False, seed=seed
    )

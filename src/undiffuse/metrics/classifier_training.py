"""Training an `ImageClassifier` on labelled images: the recipe of the shipped one, for any data set."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.data.holdout import split
from undiffuse.errors import CheckpointError, DataError
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.files import write_whole
from undiffuse.metrics.classifier import ClassifierConfig, ImageClassifier, build_classifier, stored_tensors
from undiffuse.noise import KeyedNoise, permutation

_TASK = "classifier"
_MOMENTUM, _DECAY, _SMOOTHING = 0.9, 5e-4, 0.1
_WARM_UP = 0.2  # share of the steps over which the learning rate rises
_JUDGED = 500  # images per batch when counting right answers


def train_classifier(
    dataset: Any,
    held_out: Any = None,
    *,
    widths: tuple[int, ...] = (32, 64, 128),
    blocks: tuple[int, ...] = (0, 1, 2),
    epochs: int = 12,
    batch: int = 128,
    rate: float = 0.15,
    flip: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: str | Path | None = None,
    listener: Listener = silent,
) -> ImageClassifier:
    """Train a small residual network to name the class of an image.

    Stochastic gradient descent with Nesterov momentum, a learning rate that rises and then falls linearly to 0, weight
    decay and label smoothing, on images that are shifted by up to an eighth of their side and mirrored at random.

    Args:
        dataset: Images with labels, as `open_data` returns them.
        held_out: Images that the stated accuracy is measured on; None splits a part off `dataset`.
        widths: See `ClassifierConfig`.
        blocks: See `ClassifierConfig`.
        epochs: Passes over the data.
        batch: Images per step.
        rate: Highest learning rate.
        flip: Mirror half of the images; switch it off where left and right mean something (digits, letters).
        seed: Seed of the weights, of the order and of the augmentation.
        device: Where to train.
        checkpoint: A file to go on from, rewritten after every epoch; None keeps nothing.
        listener: Receives progress events, with the loss and, after every epoch, the accuracy.

    Returns:
        The classifier on the CPU, ready to judge. Its weights are rounded as `save_classifier` writes them, and
        `config.info` holds the number of images, epochs, seed and `accuracy` on held-out images.

    Raises:
        DataError: The data are no images with labels of at least two classes, or the loss is no longer a number.
        ValueError: A number is out of its range.
        CheckpointError: The checkpoint is damaged or of another network.
    """
    if epochs < 1 or batch < 2 or not rate > 0:
        raise ValueError(f"epochs={epochs}, batch={batch}, rate={rate}; expected at least 1, at least 2, above 0.")
    shape = _check(dataset)
    train, unseen = (dataset, held_out) if held_out is not None else split(dataset)
    config = ClassifierConfig(shape=shape, classes=train.spec.classes, widths=widths, blocks=blocks)
    network = build_classifier(config, seed).to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = _Run(network, train, epochs, min(batch, len(train)), rate, flip, seed)
    first = _resume(run, checkpoint)
    listener(Started(_TASK, total=epochs * run.steps, done=first * run.steps))
    for epoch in range(first, epochs):
        loss = run.epoch(epoch, listener)
        if not math.isfinite(loss):
            raise DataError(f"the loss of epoch {epoch + 1} is {loss}; lower rate={rate} or look for NaN in the data.")
        if checkpoint is not None:
            _keep(run, Path(checkpoint), epoch + 1)
        listener(Advanced(_TASK, (epoch + 1) * run.steps, {"loss": loss, "accuracy": accuracy(network, unseen)}))
    listener(Finished(_TASK))
    result = build_classifier(config, seed)
    result.load_state_dict(stored_tensors(network))
    info = {"images": len(train), "epochs": epochs, "batch": batch, "rate": rate, "flip": flip, "seed": seed}
    info |= {"accuracy": accuracy(result, unseen), "held_out_images": len(unseen)}
    result.config = replace(config, info=info)
    return result.eval().requires_grad_(False)


def accuracy(network: ImageClassifier, dataset: Any) -> float:
    """Return the share of images whose class the network names."""
    device = next(network.parameters()).device
    network.eval()
    right = 0
    with torch.inference_mode():
        for part in torch.arange(len(dataset)).split(_JUDGED):
            items = dataset.batch(part)
            x = items["x"].to(device, memory_format=torch.channels_last)
            right += int((network(x).argmax(dim=1).cpu() == items["cond"]["label"].cpu()).sum())
    return right / len(dataset)


class _Run:
    """One training: network, optimiser and the batches, each a function of (seed, epoch, step)."""

    def __init__(
        self, network: ImageClassifier, data: Any, epochs: int, batch: int, rate: float, flip: bool, seed: int
    ) -> None:
        self.network, self.data, self.batch, self.rate, self.flip, self.seed = network, data, batch, rate, flip, seed
        self.steps = len(data) // batch
        self.total = epochs * self.steps
        matrices = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True)
        self.device = next(network.parameters()).device

    def epoch(self, epoch: int, listener: Listener) -> float:
        """Train for one pass over the data and return the mean loss."""
        self.network.train()
        order = permutation(self.seed, epoch, len(self.data))[: self.steps * self.batch]
        losses = []
        for step, rows in enumerate(order.view(self.steps, self.batch)):
            losses.append(self._step(epoch, epoch * self.steps + step, rows))
            listener(Advanced(_TASK, done=epoch * self.steps + step + 1))
        return float(torch.stack(losses).mean())

    def _step(self, epoch: int, step: int, rows: Tensor) -> Tensor:
        items = self.data.batch(rows)
        x = augment(items["x"], KeyedNoise(self.seed, rows), epoch, flip=self.flip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * _schedule((step + 1) / self.total)
        self.optimizer.zero_grad()
        logits = self.network(x.to(self.device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, items["cond"]["label"].to(self.device), label_smoothing=_SMOOTHING)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def augment(x: Tensor, noise: KeyedNoise, epoch: int, *, flip: bool) -> Tensor:
    """Shift images (B, C, H, W) by up to an eighth of their sides, edges mirrored outwards, and mirror half of them."""
    draws = noise.uniform("data", epoch, (3,)).to(x.device)
    count, _, height, width = x.shape
    pads = (height // 8, width // 8)
    if flip:
        x = torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
    padded = F.pad(x, (pads[1], pads[1], pads[0], pads[0]), mode="reflect")
    rows, columns = (
        (draws[:, axis, None] * (2 * pad + 1)).long() + torch.arange(size, device=x.device)
        for axis, (pad, size) in enumerate(zip(pads, (height, width), strict=True))
    )
    picture = torch.arange(count, device=x.device)[:, None, None]
    # The advanced indices stand around the channel axis, which puts it last: (B, H, W, C).
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _schedule(progress: float) -> float:
    return min(progress / _WARM_UP, (1.0 - progress) / (1.0 - _WARM_UP))


def _check(dataset: Any) -> tuple[int, int, int]:
    spec = dataset.spec
    if spec.kind != "image" or len(spec.classes) < 2:
        raise DataError(
            f"a classifier is trained on images with labels; these are {spec.kind} items with {len(spec.classes)} "
            "class(es). Put the pictures of each class into a folder of their own."
        )
    channels, height, width = spec.shape
    return channels, height, width


def _keep(run: _Run, path: Path, epochs_done: int) -> None:
    """Write weights, momenta and the number of epochs done, whole or not at all."""
    from safetensors.torch import save_file

    parameters = dict(run.network.named_parameters())
    tensors = {f"network.{name}": tensor for name, tensor in run.network.state_dict().items()}
    state = run.optimizer.state
    tensors |= {f"momentum.{name}": state[p]["momentum_buffer"] for name, p in parameters.items()}
    tensors["epochs_done"] = torch.tensor(epochs_done)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda part: save_file(plain, part))


def _resume(run: _Run, checkpoint: str | Path | None) -> int:
    """Take weights and momenta from a checkpoint, where there is one, and return the number of epochs done."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if checkpoint is None or not Path(checkpoint).is_file():
        return 0
    try:
        tensors = load_file(checkpoint)
        done = int(tensors.pop("epochs_done"))
        network = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        run.network.load_state_dict(network)
        for name, parameter in run.network.named_parameters():
            run.optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"].to(
                parameter.device, memory_format=torch.preserve_format
            )
    except (KeyError, OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{checkpoint} is no checkpoint of this classifier ({reason}); remove it.") from error
    return done

r"""Does a network predict what its configuration says? Asked with noised data, for the answer gives it away.

Each prediction type turns the network's output into another posterior mean. The right one denoises, the others do not:
its error is far below that of the best scaling of x_t by a number, V rho^2 / (V + rho^2) for data of variance V and
noise rho = sigma / alpha. A type "denoises" here where its error is below half of that at every level asked about. A
network with random weights denoises under no type, so nothing is said about it. Nor is there an alarm where the stated
type denoises.

Without data of the model's kind, smooth random fields stand for them, which networks of pictures denoise, and small
ones of one kind of picture do not. What needs no data is the far end: there x_t is noise, and a network that gives it
back predicts noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import CheckpointError
from undiffuse.models.conditions import class_turns, fit_conditions
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import Prediction

if TYPE_CHECKING:
    from undiffuse.models.model import Model

_LEVELS = (0.3, 0.6, 1.2)  # sigma / alpha
_DENOISES = 0.5
_KINDS: tuple[Prediction, ...] = ("noise", "data", "v", "velocity")
_FAR = 20.0  # sigma / alpha, where data do not show, or the schedule's largest
_GIVES_BACK = 0.9
_NUMBERS = 65_536  # of all probes together, about
_MEND = "Correct the prediction type: of a pipeline, prediction_type in scheduler/scheduler_config.json."
_WORDS = {"noise": "epsilon", "data": "sample", "v": "v_prediction", "velocity": "flow velocity", "edm": "EDM's F"}


@dataclass(frozen=True)
class Check:
    """What `check_model` measured.

    Args:
        stated: The model's prediction type.
        errors: Prediction type -> largest error over the levels, in units of the best scaling's; below 0.5 denoises.
        ranges: Other units of the data -> the same for the stated type; empty where no data were given.
    """

    stated: Prediction
    errors: dict[Prediction, float]
    ranges: dict[str, float]

    @property
    def likely(self) -> Prediction | None:
        """The type that denoises; None where none does."""
        best = min(self.errors, key=lambda kind: self.errors[kind])
        return best if self.errors[best] < _DENOISES else None


def check_model(model: Model, data: Tensor | None = None, seed: int = 0) -> Check:
    """Ask a model's network about noised data and judge its answers.

    Args:
        model: A Gaussian denoiser with a network.
        data: Items of the model's data in data units (N, *shape), which also show a wrong range; None: smooth random
            fields, which show a wrong prediction type only.
        seed: Of random fields and noise.

    Raises:
        CheckpointError: The answers are those of another prediction type, or of data in another range.
        ValueError: The model has no prediction type to check.
    """
    denoiser = model.module
    if not isinstance(denoiser, NetworkDenoiser):
        raise ValueError(
            f"check=True judges what the network of a Gaussian denoiser predicts; this model is a "
            f"{type(denoiser).__name__}. Leave it out."
        )
    rows = _probes(model, seed) if data is None else model.encode(data)
    kinds = tuple(dict.fromkeys((denoiser.prediction, *_KINDS)))
    if data is None:
        _refuse_noise(model, denoiser, rows, seed)
    errors = _errors(model, denoiser, rows, kinds, seed)
    found = Check(denoiser.prediction, errors, {})
    if data is not None:
        others = {name: change(rows) for name, change in _other_units(model).items()}
        own = (denoiser.prediction,)
        ranges = {name: _errors(model, denoiser, x, own, seed)[own[0]] for name, x in others.items()}
        found = Check(denoiser.prediction, errors, ranges)
    _refuse(found)
    return found


def _refuse(found: Check) -> None:
    stated, likely = found.errors[found.stated], found.likely
    if stated >= _DENOISES and likely is not None:
        raise CheckpointError(
            f"the model says that its network predicts {found.stated} ({_WORDS[found.stated]}), but read that way it "
            f"does not denoise (error {stated:.2g} times that of scaling the input), and read as {likely} "
            f"({_WORDS[likely]}) it does ({found.errors[likely]:.2g}). {_MEND}"
        )
    for name, error in sorted(found.ranges.items(), key=lambda one: one[1]):
        if error < min(_DENOISES, stated / 2):
            raise CheckpointError(
                f"the network denoises data in {name} much better (error {error:.2g} times that of scaling the input) "
                f"than in the units that the model states ({stated:.2g}); correct the range or the codec's scale."
            )


@torch.no_grad()
def _refuse_noise(model: Model, denoiser: NetworkDenoiser, x0: Tensor, seed: int) -> None:
    """Refuse a network that is said to predict data or v, and gives noise back where there is nothing else."""
    if denoiser.prediction in ("noise", "velocity"):
        return
    schedule = denoiser.process.schedule
    far = torch.tensor(-math.log(_FAR), dtype=torch.float64)
    t = min(float(schedule.time(far)), schedule.t_max)
    z, raw = _answer(model, denoiser, x0, t, seed)[1:]
    given_back = 1 - float(((raw - z) ** 2).mean() / (z**2).mean())
    if given_back > _GIVES_BACK:
        raise CheckpointError(
            f"the model says that its network predicts {denoiser.prediction} ({_WORDS[denoiser.prediction]}), but "
            f"asked about noise it gives {given_back:.0%} of the noise back, as one that predicts noise (epsilon). "
            f"{_MEND}"
        )


def _answer(model: Model, denoiser: NetworkDenoiser, x0: Tensor, t: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t of noised data, the noise, and what the network puts out."""
    n = len(x0)
    z = KeyedNoise(seed, range(n), model.device).normal("probe", 1, tuple(x0.shape[1:]), torch.float32)
    cond = fit_conditions(class_turns(model.spec, n) or None, n, model.state_spec, model.device)
    x = denoiser.process.corrupt(x0, t, z)
    raw = denoiser(x, t, denoiser.embed(cond or None, n)).raw
    assert raw is not None
    return x, z, raw


@torch.no_grad()
def _errors(
    model: Model, denoiser: NetworkDenoiser, x0: Tensor, kinds: tuple[Prediction, ...], seed: int
) -> dict[Prediction, float]:
    """Return the largest error of each type over the levels, relative to the best scaling's."""
    process = denoiser.process
    centre = x0.mean()
    variance = float(((x0 - centre) ** 2).mean())
    worst = dict.fromkeys(kinds, 0.0)
    for level in _LEVELS:
        t = float(process.schedule.time(torch.tensor(-math.log(level), dtype=torch.float64)))
        alpha, sigma = (float(c) for c in process.schedule.levels(torch.tensor(t, dtype=torch.float64)))
        rho = sigma / alpha
        scaling = variance * rho**2 / (variance + rho**2)
        x, _, raw = _answer(model, denoiser, x0, t, seed)
        for kind in kinds:
            # A flow's velocity is noise minus data, whatever the schedule.
            mean = (
                (x - sigma * raw) / (alpha + sigma)
                if kind == "velocity"
                else process.mean_from(kind, raw, x, t, denoiser.data_std)
            )
            error = float(((mean - x0) ** 2).mean()) / scaling
            worst[kind] = max(worst[kind], error if math.isfinite(error) else math.inf)
    return worst


def _probes(model: Model, seed: int) -> Tensor:
    """Return smooth random fields in model units: amplitudes fall like 1 / frequency."""
    shape = model.state_spec.shape
    n = max(2, min(16, _NUMBERS // math.prod(shape)))
    white = KeyedNoise(seed, range(n), model.device).normal("probe", 0, shape, torch.float32)
    if model.state_spec.kind not in ("image", "video", "volume"):
        return white
    rows, columns = (torch.fft.fftfreq(size, device=white.device) for size in shape[-2:])
    frequency = (rows[:, None] ** 2 + columns**2).sqrt()
    smooth = torch.fft.ifft2(torch.fft.fft2(white) / frequency.clamp(min=0.5 / max(shape[-2:]))).real
    smooth = smooth / smooth.std()
    return (0.5 * smooth).clamp(-1, 1) if model.state_spec.range is not None else smooth


def _other_units(model: Model) -> dict[str, Callable[[Tensor], Tensor]]:
    if model.codec is not None:
        return {"latents without the codec's scale": model.codec.latent.from_model}
    if model.spec.range is None:
        return {}
    return {"[0, 1]": lambda x: (x + 1) / 2, "[-1, 1], with these data's own range,": _filled}


def _filled(x: Tensor) -> Tensor:
    low, high = x.min(), x.max()
    return 2 * (x - low) / (high - low).clamp(min=1e-6) - 1

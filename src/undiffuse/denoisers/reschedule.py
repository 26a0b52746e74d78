"""`Reschedule`: the same denoiser on another schedule, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time

_NUMBERS = count()  # tells the cached times of several wrappers of one process apart


class Reschedule(Wrapper):
    """Serves a denoiser of one Gaussian process on another.

    Two processes describe the same posterior wherever sigma / alpha agrees, up to the length of x_t. So at the
    time u of equal half log-SNR the wrapped denoiser is asked about x_t scaled by the ratio of the lengths
    sqrt(alpha^2 + sigma^2); unlike the ratio of alphas, that is finite at both ends. Noise levels beyond the old
    schedule's range are asked at its nearest end.

    Raises:
        TypeError: The denoiser's process is not Gaussian.

    Source: principles, section 2.3.
    """

    process: GaussianProcess

    def __init__(self, denoiser: Denoiser, process: GaussianProcess) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise TypeError(
                "Reschedule changes the schedule of Gaussian processes; this denoiser's process is categorical."
            )
        super().__init__(denoiser)
        self.source = denoiser.process
        # Paths, and whether a score follows from the mean, are the denoiser's.
        own = process if process.source == self.source.source else replace(process, source=self.source.source)
        self.process = own
        self._key = f"reschedule/{next(_NUMBERS)}"

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Ask the wrapped denoiser at the time of equal noise level."""
        (u,) = self.process.evaluate(self._key, self._time, t)
        new, old = self.process.coefficients(t, x), self.source.coefficients(u, x)
        scale = ((old[0] ** 2 + old[1] ** 2) / (new[0] ** 2 + new[1] ** 2)) ** 0.5
        return self.denoiser(x * scale, u, cond)  # mean and noise are free of the schedule

    @property
    def normalised(self) -> bool:
        """As the wrapped denoiser: the same density on another schedule."""
        return self.denoiser.normalised

    def calls(self, t: Time) -> int:
        """What the wrapped denoiser costs at its own time."""
        (u,) = self.process.evaluate(self._key, self._time, t)
        return self.denoiser.calls(u)

    def prefetch(self, times: Sequence[float]) -> None:
        """Translate the times before passing them on."""
        self.process.prefetch(self._key, self._time, times)
        self.denoiser.prefetch([float(self.process.evaluate(self._key, self._time, t)[0]) for t in times])

    def _time(self, t: Tensor) -> tuple[Tensor]:
        return (self.source.schedule.time(self.process.schedule.half_logsnr(t)),)

"""What `bench_restore` found: a row of figures for each operator, method and number of steps. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from undiffuse.errors import UndiffuseError
from undiffuse.words import plain_json

FORMAT = "undiffuse-bench-restore"
EXACT = "exact posterior"


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One method on one operator with one number of steps; dB and model units.

    Args:
        operator: As it was written.
        method: Name of the restorer, or "exact posterior" where that is known.
        steps: Steps asked for; 0 for the exact posterior.
        psnr: Of one sample, mean over images and samples.
        psnr_mean: Of the mean of K samples.
        ssim: Of one sample.
        perceptual: Distance in features of one sample to the truth, where asked for.
        top1: Share of samples in which a classifier sees the right class, where one was asked for.
        top1_true: Share of the true items in which it does, the best that `top1` can be expected to reach; None where
            the right class is what it sees in the true item.
        top1_items: Items behind both. The samples of an item are no news of each other, so intervals count items.
        consistency: Mean absolute difference of A(sample) and y.
        residual: Root mean square of A(sample) - y over what was measured.
        residual_ratio: That over the noise; None for a noiseless measurement.
        spread: Variance of the samples over the squared error of their mean, with its correction for K; 1 is
            calibrated. None for one sample.
        coverage: Share of true values between the lowest and the highest sample.
        crps: Fair continuous ranked probability score.
        exact_spread: Variance of the samples over that of the exact posterior.
        mean_distance: Squared distance of the mean of K samples to the exact posterior's mean, summed over an item.
        energy: Energy distance to samples of the exact posterior; 0 is perfect, and it may be negative by chance.
        nfe, nfe_grad: Network evaluations per sample, and how many of them were differentiated.
        seconds: Per image, for all its samples.
        memory: Most MiB that the process used beyond what it had; None where the system does not tell.
        warnings: What the method said.
        failure: Why there are no figures; empty where there are.
    """

    operator: str
    method: str
    steps: int
    psnr: float | None = None
    psnr_mean: float | None = None
    ssim: float | None = None
    perceptual: float | None = None
    top1: float | None = None
    top1_true: float | None = None
    top1_items: int | None = None
    consistency: float | None = None
    residual: float | None = None
    residual_ratio: float | None = None
    spread: float | None = None
    coverage: float | None = None
    crps: float | None = None
    exact_spread: float | None = None
    mean_distance: float | None = None
    energy: float | None = None
    nfe: int | None = None
    nfe_grad: int | None = None
    seconds: float | None = None
    memory: float | None = None
    warnings: tuple[str, ...] = ()
    failure: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes a row one of its kind."""
        return self.operator, self.method, self.steps

    @property
    def top1_text(self) -> str | None:
        """`top1` with Wilson's interval of 95 %, None where there is none."""
        return _share_text(self.top1, self.top1_items)

    @property
    def top1_true_text(self) -> str | None:
        """`top1_true` likewise."""
        return _share_text(self.top1_true, self.top1_items)


def _share_text(value: float | None, items: int | None) -> str | None:
    from undiffuse.metrics.shares import wilson

    if value is None or items is None:
        return None
    low, high = wilson(value, items)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


_COLUMNS: dict[str, tuple[str, str]] = {
    "operator": ("operator", ""),
    "method": ("method", ""),
    "steps": ("steps", "{:d}"),
    "psnr": ("PSNR, one", "{:.2f}"),
    "psnr_mean": ("PSNR, mean", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "perceptual": ("perceptual", "{:.4f}"),
    "top1_text": ("top-1 (95 %)", ""),
    "top1_true_text": ("top-1 of the truth (95 %)", ""),
    "spread": ("spread", "{:.2f}"),
    "exact_spread": ("spread / exact", "{:.2f}"),
    "energy": ("energy distance", "{:.3f}"),
    "mean_distance": ("to exact mean", "{:.3f}"),
    "consistency": ("Cons", "{:.4f}"),
    "residual_ratio": ("residual / noise", "{:.2f}"),
    "nfe": ("NFE", "{:d}"),
    "nfe_grad": ("NFE with gradient", "{:d}"),
    "seconds": ("s / image", "{:.3g}"),
    "memory": ("MiB", "{:.0f}"),
}
"""Field -> head of its column and format of its figures."""
_OPTIONAL = (
    "perceptual",
    "top1_text",
    "top1_true_text",
    "spread",
    "exact_spread",
    "energy",
    "mean_distance",
    "residual_ratio",
    "memory",
)


@dataclass(frozen=True, kw_only=True)
class RestoreBench:
    """All rows of a benchmark, in the order in which they were computed.

    Args:
        rows: Those with figures and those that failed.
        settings: What the figures depend on: model, items, samples, noise, seed, machine.
    """

    rows: tuple[BenchRow, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    numeric: ClassVar[tuple[str, ...]] = tuple(name for name in _COLUMNS if name not in ("operator", "method"))

    @property
    def done(self) -> list[BenchRow]:
        """Rows with figures."""
        return [row for row in self.rows if not row.failure]

    @property
    def failed(self) -> list[BenchRow]:
        """Rows without."""
        return [row for row in self.rows if row.failure]

    @property
    def shown(self) -> list[str]:
        """Fields that some row has."""
        return [
            name for name in _COLUMNS if name not in _OPTIONAL or any(getattr(r, name) is not None for r in self.done)
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of `table`."""
        return tuple(_COLUMNS[name][0] for name in self.shown)

    def table(self) -> list[tuple[str, ...]]:
        """Return rows of strings to go under `columns`."""
        return [tuple(_cell(row, name) for name in self.shown) for row in self.done]

    def failures(self) -> list[tuple[str, str, str]]:
        """Return method, operators and reason of what has no figures; the steps make no difference.

        What would work instead stands in the rows; here the other rows show it.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for row in self.failed:
            operators = found.setdefault((row.method, row.failure.split("; methods that work")[0]), [])
            if row.operator not in operators:
                operators.append(row.operator)
        return [(method, ", ".join(operators), reason) for (method, reason), operators in found.items()]

    def markdown(self) -> str:
        """Return the table, and under it what has no figures, as Markdown."""
        numeric = [name in self.numeric for name in self.shown]
        lines = [_line(self.columns), _line(["---:" if right else "---" for right in numeric])]
        lines += [_line(cells) for cells in self.table()]
        if self.failed:
            lines += ["", "Not done:", ""]
            lines += [f"- {method} on {where}: {reason}" for method, where, reason in self.failures()]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return plain_json({"format": FORMAT, "settings": self.settings, "rows": [asdict(row) for row in self.rows]})

    @classmethod
    def from_json(cls, given: Any) -> RestoreBench:
        """Read what `to_json` returned.

        Raises:
            UndiffuseError: It is something else.
        """
        known = {entry.name for entry in fields(BenchRow)}
        try:
            if given["format"] != FORMAT:
                raise ValueError(f"its format is {given['format']!r}")
            rows = [{key: value for key, value in row.items() if key in known} for row in given["rows"]]
            made = tuple(BenchRow(**row | {"warnings": tuple(row.get("warnings", ()))}) for row in rows)
            return cls(rows=made, settings=dict(given["settings"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UndiffuseError(f"these are no results of bench-restore ({error}); expected {FORMAT!r}.") from error


def _cell(row: BenchRow, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    form = _COLUMNS[name][1]
    return form.format(value) if form else str(value)


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

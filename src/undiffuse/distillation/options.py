"""Options of the objectives that train flow maps, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from undiffuse.limits import at_least_one, not_negative, positive, share, share_below_one
from undiffuse.words import option


@dataclass(frozen=True, kw_only=True)
class FlowMapOptions:
    """What all objectives over a flow map have in common.

    Attributes:
        copies: Networks that are kept beside the student, at most: a teacher, a target. For estimates of memory.
    """

    copies: ClassVar[int] = 2
    teacher: str = option(
        "", "model to learn from: a folder or a built-in model; empty: from data alone, where possible"
    )
    teacher_hash: str = option(
        "", "hash of the teacher's weights, written by undiffuse distill; another one is refused"
    )
    guidance: float = option(1.0, "classifier-free guidance of the teacher, folded into the student; 1 is none")
    drop: float = option(0.1, "share of labels and vector conditions dropped, for samples without a condition")

    def __post_init__(self) -> None:
        share(self, "drop")
        if self.guidance < 0:
            raise ValueError(f"guidance={self.guidance} must not be negative; 1 is none.")
        if self.guidance != 1 and self.needs_teacher_to_guide and not self.teacher:
            raise ValueError(
                f"guidance={self.guidance} is that of a teacher, and there is none; set teacher, or leave it."
            )

    @property
    def needs_teacher_to_guide(self) -> bool:
        """Whether `guidance` is that of the teacher's answers; else the method guides itself."""
        return True

    @property
    def follows_length(self) -> bool:
        """Whether the loss follows the number of steps of the run, so that a run that has begun keeps its length."""
        return False

    @property
    def default_steps(self) -> int:
        """Jumps that a student makes unless told otherwise."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ProgressiveOptions(FlowMapOptions):
    """Progressive distillation: a student of N steps learns two steps of its teacher at once, again and again."""

    kind: Literal["progressive"] = "progressive"
    first_steps: int = option(64, "steps of the teacher in the first round, uniform in t")
    last_steps: int = option(1, "steps of the student in the last round")
    average: float = option(0.1, "relative width of the average over a round, which is the next round's teacher")

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.first_steps / self.last_steps if self.last_steps >= 1 else 0
        if ratio < 2 or ratio != 2 ** (int(ratio).bit_length() - 1):
            raise ValueError(
                f"first_steps={self.first_steps} must be last_steps={self.last_steps} times a power of 2; use 64 and 1."
            )
        if not 0 < self.average < 0.28:
            raise ValueError(f"average={self.average} must lie between 0 and 0.28.")

    @property
    def rounds(self) -> int:
        """Number of halvings."""
        return (self.first_steps // self.last_steps).bit_length() - 1

    @property
    def follows_length(self) -> bool:
        """Rounds share the steps out."""
        return self.rounds > 1

    @property
    def default_steps(self) -> int:
        """Those of the last round."""
        return self.last_steps


@dataclass(frozen=True, kw_only=True)
class ConsistencyOptions(FlowMapOptions):
    """Consistency training, or with a teacher consistency distillation: all points of a path map to its clean end."""

    kind: Literal["consistency"] = "consistency"
    plan: Literal["ict", "original"] = option(
        "ict", "how levels, loss and target are chosen: improved, or as first published"
    )
    first_levels: int | None = option(
        None, "noise levels at the start; none: 10 (ict), 2 (original), 18 with a teacher"
    )
    last_levels: int | None = option(
        None, "noise levels at the end; none: 1280 (ict), 150 (original), 18 with a teacher"
    )
    rho_min: float = option(0.002, "sigma / alpha at the clean end; the schedule's own where that is larger")
    rho_max: float = option(80.0, "sigma / alpha of pure noise; the schedule's own where that is smaller")
    mean: float = option(-1.1, "ict: mean of ln(sigma / alpha) of the levels drawn")
    std: float = option(2.0, "ict: std of ln(sigma / alpha) of the levels drawn")
    huber: float | None = option(
        None,
        "ict: the pseudo-Huber constant, times the root of the number of values of an item; none: 0.00054, or squares "
        "for data alone of fewer than 64 values",
    )
    target_decay: float = option(0.9, "original: decay of the target at the first number of levels")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.rho_min, self.rho_max)
        positive(self, "std", "huber")
        share_below_one(self, "target_decay")
        low, high = self.levels
        if not 2 <= low <= high:
            raise ValueError(f"first_levels={low} and last_levels={high} must be at least 2 and not fall.")

    @property
    def levels(self) -> tuple[int, int]:
        """Number of levels at the start and at the end."""
        usual = (10, 1280) if self.plan == "ict" else (18, 18) if self.teacher else (2, 150)
        low = usual[0] if self.first_levels is None else self.first_levels
        return low, max(low, usual[1]) if self.last_levels is None else self.last_levels

    @property
    def follows_length(self) -> bool:
        """The number of levels rises over the run."""
        return self.levels[0] < self.levels[1]


@dataclass(frozen=True, kw_only=True)
class SCMOptions(FlowMapOptions):
    """Continuous-time consistency (sCM): the derivative along the path of the clean end is 0. On schedule `trig`."""

    kind: Literal["scm"] = "scm"
    time_mean: float = option(-1.0, "mean of ln tan of the angle, that is of ln(sigma / alpha)")
    time_std: float = option(1.4, "std of ln tan of the angle")
    warmup: float = option(0.1, "share of the steps over which the derivative of the network is faded in")
    normalise: bool = option(True, "divide the tangent by its length + 0.1")
    adapt: bool = option(True, "weight each noise level by 1 / its running loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "time_std")
        share(self, "warmup")

    @property
    def follows_length(self) -> bool:
        """The fading-in is a share of the steps."""
        return self.warmup > 0


@dataclass(frozen=True, kw_only=True)
class MeanFlowOptions(FlowMapOptions):
    """MeanFlow: the average velocity between two times, from its own derivative along the path."""

    kind: Literal["meanflow"] = "meanflow"
    pairs: float = option(0.25, "share of each batch with two different times; the rest is flow matching")
    power: float | None = option(
        None,
        "each row's gradient is divided by (|error|^2 + 0.001)^power, which biases velocities and counts long jumps "
        "least where items have few values; none: 1, or 0 for items of fewer than 64 values",
    )
    times: Literal["logit-normal", "uniform"] = option("logit-normal", "law of both times")
    time_mean: float = option(-0.4, "logit-normal: mean of logit t")
    time_std: float = option(1.0, "logit-normal: std of logit t")
    rho_max: float = option(
        20.0, "sigma / alpha where sampling starts, within reach of the law of times; the schedule's own if smaller"
    )
    kappa: float = option(0.0, "guidance without a teacher: share of the student's own conditional velocity in it")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pairs <= 1:
            raise ValueError(f"pairs={self.pairs} is a share of the batch and must lie in [0, 1]; 0.25 is usual.")
        if not self.rho_max > 10:
            raise ValueError(f"rho_max={self.rho_max} must be above 10, for pure noise is no state below; 20 is usual.")
        if self.power is not None and not 0 <= self.power <= 2:
            raise ValueError(f"power={self.power} must lie in [0, 2]; 1 is usual.")
        positive(self, "time_std")
        share_below_one(self, "kappa")
        if self.kappa and (self.teacher or self.guidance == 1):
            raise ValueError(
                f"kappa={self.kappa} is for guidance that the student folds in itself, without teacher; leave it at 0."
            )

    @property
    def needs_teacher_to_guide(self) -> bool:
        """A student can guide itself."""
        return False


@dataclass(frozen=True, kw_only=True)
class ShortcutOptions(FlowMapOptions):
    """Shortcut models: one step of 2d is two steps of d."""

    kind: Literal["shortcut"] = "shortcut"
    share: float = option(0.25, "share of each batch that learns jumps; the rest is flow matching")
    finest: int = option(128, "number of steps of the finest grid, a power of 2")
    target_decay: float = option(0.999, "decay of the averaged student that gives the targets; 0: the student itself")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} of each batch must lie in (0, 1); 0.25 is usual.")
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise ValueError(f"finest={self.finest} must be a power of 2, at least 2; 128 is usual.")
        share_below_one(self, "target_decay")


@dataclass(frozen=True, kw_only=True)
class CTMOptions(FlowMapOptions):
    """Consistency trajectory models, without adversarial loss: jumps from neighbours on a path agree at its end."""

    kind: Literal["ctm"] = "ctm"
    levels: int = option(18, "noise levels between which jumps are trained")
    solver_steps: int = option(17, "most levels over which the teacher walks before the jump that it is compared with")
    rho_min: float = option(0.002, "lowest sigma / alpha; the schedule's own where that is larger")
    rho_max: float = option(80.0, "highest sigma / alpha; the schedule's own where that is smaller")
    denoising: float = option(1.0, "weight of the denoising loss on the diagonal")
    time_mean: float = option(-1.2, "denoising: mean of ln(sigma / alpha)")
    time_std: float = option(1.2, "denoising: std of ln(sigma / alpha)")
    target_decay: float = option(0.999, "decay of the averaged student that gives the targets")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2:
            raise ValueError(f"levels={self.levels} must be at least 2; 18 is usual.")
        at_least_one(self, "solver_steps")
        _check_range(self.rho_min, self.rho_max)
        not_negative(self, "denoising")
        positive(self, "time_std")
        share_below_one(self, "target_decay")


@dataclass(frozen=True, kw_only=True)
class DMDOptions(FlowMapOptions):
    """Distribution matching (DMD2, without adversarial loss): samples whose noisy density is the teacher's."""

    kind: Literal["dmd"] = "dmd"
    jumps: int = option(1, "jumps that the generator makes, with fresh noise between them")
    updates: int = option(5, "updates of the denoiser of generated samples per update of the generator")
    fake_lr: float = option(5e-4, "learning rate of the denoiser of generated samples")
    time_low: float = option(0.02, "lowest time at which densities are compared")
    time_high: float = option(0.98, "highest time at which densities are compared")
    warmup: float = option(0.1, "share of the steps, the first, that regress jumps on the teacher's own samples")
    teacher_steps: int = option(20, "steps of the teacher from noise to such a sample")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "jumps", "updates", "teacher_steps")
        positive(self, "fake_lr")
        share(self, "warmup")
        if not 0 < self.time_low < self.time_high < 1:
            raise ValueError(f"time_low={self.time_low} and time_high={self.time_high} must rise inside (0, 1).")

    @property
    def follows_length(self) -> bool:
        """The regression is a share of the steps."""
        return self.warmup > 0

    @property
    def default_steps(self) -> int:
        """The jumps that it is trained for."""
        return self.jumps


@dataclass(frozen=True, kw_only=True)
class ReflowOptions(FlowMapOptions):
    """Reflow (rectified flow): straight lines between the teacher's noise and its samples."""

    kind: Literal["reflow"] = "reflow"
    teacher_steps: int = option(20, "steps of the teacher from noise to a sample")
    reuse: int = option(4, "rows of a batch that share such a pair, at different times")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "teacher_steps", "reuse")


def _check_range(low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"rho_min={low} and rho_max={high} must be positive and rise.")

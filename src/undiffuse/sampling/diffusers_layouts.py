"""Options of diffusers' schedulers as our processes and spacings, and back: tables of betas, flows, EDM, iPNDM.

What the classes of one family have in common is read and written here; their solvers are in `diffusers_setup`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from undiffuse.errors import PlanError
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.process.schedules import EDMSchedule, RectifiedFlowSchedule, TrigSchedule, VESchedule
from undiffuse.sampling.diffusers_betas import Betas
from undiffuse.sampling.diffusers_spacing import (
    AngleSpacing,
    Curve,
    EDMSpacing,
    End,
    FlowSpacing,
    SCMSpacing,
    Spacing,
    TableSpacing,
)

Config = dict[str, Any]
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
_ENDS: dict[str, End] = {"zero": "zero", "sigma_min": "sigma_min"}
_CURVES: dict[str, Curve] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What diffusers does to each predicted x_0; see `guidance.Thresholding`.

    Args:
        mode: "static" clips (`clip_sample`), "dynamic" is `thresholding`.
        bound: The data's range, or where dynamic thresholds stop falling.
        quantile: Of dynamic thresholds.
    """

    mode: Literal["static", "dynamic"]
    bound: float = 1.0
    quantile: float = 0.995


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a config says beside the solver.

    Args:
        process: The noise levels.
        prediction: What its networks put out.
        spacing: Where its steps lie.
        betas: What the table of noise levels came from; None for continuous ones.
        data_std: Standard deviation of the data, for prediction "edm".
        bounds: Of the predicted data; None for none.
    """

    process: GaussianProcess
    prediction: Prediction
    spacing: Spacing
    betas: Betas | None = None
    data_std: float = 1.0
    bounds: Bounds | None = None


class Options:
    """The options of a config, taken one by one, so that none is overlooked."""

    def __init__(self, name: str, left: Config) -> None:
        self.name = name
        self.left = left

    def take(self, key: str, default: Any) -> Any:
        """Return an option, or its default where the config does not have it."""
        return self.left.pop(key, default)

    def choose(self, key: str, default: str, among: Mapping[str, Any]) -> Any:
        """Return what an option stands for.

        Raises:
            PlanError: It is none of the values known.
        """
        value = self.take(key, default)
        if value not in among:
            raise PlanError(f"{key}={value!r} of {self.name} has no counterpart; known are {', '.join(among)}.")
        return among[value]

    def refuse_rest(self) -> None:
        """Refuse what was not taken, unless it says nothing.

        Raises:
            PlanError: An option with an effect.
        """
        for key, value in self.left.items():
            if key in _SILENT or (key in _NEUTRAL and value in _NEUTRAL[key]):
                continue
            raise PlanError(f"{key}={value!r} of {self.name} has no counterpart here; leave it at its default.")


# Options that only matter together with others, which are read or refused, and those whose default says nothing.
_SILENT = {
    "flow_shift", "time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_lu_lambdas": (False,), "use_flow_sigmas": (False,), "lambda_min_clipped": (-math.inf, "-inf", None),
    "variance_type": (None,), "use_dynamic_shifting": (False,), "euler_at_final": (False,),
    "disable_corrector": ([], ()), "solver_p": (None,), "sigma_min": (None,), "sigma_max": (None,),
    "shift_terminal": (None, 0), "interpolation_type": ("linear",), "timestep_type": ("discrete",),
    "invert_sigmas": (False,), "stochastic_sampling": (False,), "rescale_betas_zero_snr": (False,),
    "thresholding": (False,), "clip_sample": (False,), **{key: (False,) for key in _CURVES},
}  # fmt: skip


# -- where steps lie: tables, flows, EDM -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """Schedulers on a table of betas.

    Args:
        extra, whole: See `TableSpacing`.
        end: The option that says where the last step ends, or the end itself.
        spacing: Default of `timestep_spacing`; None where the class has no such option.
        kind, first, last: Defaults of `beta_schedule` and of the betas' ends.
        clips: Default of `clip_sample`; None where the class has none.
        tiny: Whether a last entry of zero becomes 2^-24, since the class divides by alpha.
        curves: Whether it takes the `use_*_sigmas`.
        coarse: Default of `original_inference_steps`; None where the class has no such option. Those that have it are
            given `timestep_spacing`, `steps_offset` and `set_alpha_to_one` and do not read them.
    """

    extra: bool = False
    whole: bool = False
    end: str = "zero"
    spacing: str | None = "linspace"
    kind: str = "linear"
    first: float = 1e-4
    last: float = 0.02
    clips: bool | None = None
    tiny: bool = True
    curves: bool = True
    coarse: int | None = None

    def read(self, options: Options, mu: float | None) -> Parts:
        """Take the options of the table, its spacing and the prediction."""
        if self.coarse is not None:
            for unread in ("timestep_spacing", "steps_offset", "set_alpha_to_one"):
                options.take(unread, None)
        betas = Betas(
            kind=options.take("beta_schedule", self.kind),
            first=options.take("beta_start", self.first),
            last=options.take("beta_end", self.last),
            count=options.take("num_train_timesteps", 1000),
            trained=tuple(map(float, trained))
            if (trained := options.take("trained_betas", None)) is not None
            else None,
            zero_snr=options.take("rescale_betas_zero_snr", False),
            tiny=self.tiny,
        )
        curve = [name for key, name in _CURVES.items() if self.curves and options.take(key, False)]
        shapes = {"linspace": "linspace", "leading": "leading", "trailing": "trailing"}
        spacing = TableSpacing(
            shape=options.choose("timestep_spacing", self.spacing, shapes) if self.spacing else "linspace",
            offset=options.take("steps_offset", 0) if self.spacing else 0,
            extra=self.extra,
            whole=self.whole,
            curve=curve[0] if curve else None,
            end=self._end(options),
            coarse=options.take("original_inference_steps", self.coarse) if self.coarse else None,
        )
        return Parts(
            process=GaussianProcess(betas.schedule()),
            betas=betas,
            spacing=spacing,
            prediction=options.choose("prediction_type", "epsilon", _PREDICTIONS),
            bounds=self._bounds(options),
        )

    def _end(self, options: Options) -> End:
        if self.end == "final_sigmas_type":
            return options.choose("final_sigmas_type", "zero", _ENDS)
        if self.end == "set_alpha_to_one":
            return "zero" if options.take("set_alpha_to_one", self.clips is not None) else "sigma_min"
        return "zero" if self.end == "zero" else "sigma_min"

    def _bounds(self, options: Options) -> Bounds | None:
        ratio, most = options.take("dynamic_thresholding_ratio", 0.995), options.take("sample_max_value", 1.0)
        reach = options.take("clip_sample_range", 1.0)
        dynamic, static = options.take("thresholding", False), options.take("clip_sample", self.clips)
        if dynamic:
            # Their threshold is clamped to [1, sample_max_value]: at 1, the default, that is a static clip.
            if most != 1.0:
                raise PlanError(f"sample_max_value={most} has no counterpart; only 1.0 has.")
            return Bounds(mode="dynamic", quantile=ratio)
        return Bounds(mode="static", bound=reach) if static else None

    def write(self, parts: Parts) -> Config:
        """Write those options."""
        assert isinstance(parts.spacing, TableSpacing) and parts.betas is not None
        spacing, betas, bounds = parts.spacing, parts.betas, parts.bounds
        config: Config = {
            "num_train_timesteps": betas.count,
            "beta_schedule": betas.kind,
            "beta_start": betas.first,
            "beta_end": betas.last,
            "trained_betas": None if betas.trained is None else list(betas.trained),
            "prediction_type": next(key for key, kind in _PREDICTIONS.items() if kind == parts.prediction),
        }
        if betas.zero_snr:
            config["rescale_betas_zero_snr"] = True
        if self.spacing is not None:
            config |= {"timestep_spacing": spacing.shape, "steps_offset": spacing.offset}
        if spacing.coarse is not None:
            config["original_inference_steps"] = spacing.coarse
        if self.curves:
            config |= {key: spacing.curve == name for key, name in _CURVES.items()}
        if self.end == "final_sigmas_type":
            config["final_sigmas_type"] = spacing.end
        elif self.end == "set_alpha_to_one":
            config["set_alpha_to_one"] = spacing.end == "zero"
        if self.clips is not None:
            config["clip_sample"] = bounds is not None and bounds.mode == "static"
        if bounds is not None:
            static = bounds.mode == "static"
            config |= {"clip_sample_range": bounds.bound} if static else {
                "thresholding": True, "dynamic_thresholding_ratio": bounds.quantile
            }  # fmt: skip
        return config


@dataclass(frozen=True, kw_only=True)
class UnboundedLayout(TableLayout):
    """A table whose class has the options of bounds and does not read them."""

    def _bounds(self, options: Options) -> Bounds | None:
        super()._bounds(options)
        return None


@dataclass(frozen=True)
class SCMLayout:
    """The scheduler of sCM: v on the circle, in units of the data's deviation, which the pipeline divides by itself."""

    def read(self, options: Options, mu: float | None) -> Parts:
        """Take what must be at its default."""
        options.choose("prediction_type", "trigflow", {"trigflow": "v"})
        options.take("sigma_data", 0.5), options.take("num_train_timesteps", 1000)
        return Parts(process=GaussianProcess(TrigSchedule()), spacing=SCMSpacing(), prediction="v")

    def write(self, parts: Parts) -> Config:
        """Write nothing: what there is says where other code multiplies."""
        return {}


@dataclass(frozen=True)
class FlowLayout:
    """Schedulers of the straight line."""

    def read(self, options: Options, mu: float | None) -> Parts:
        """Take shift and number of training steps."""
        shift, total = options.take("shift", 1.0), options.take("num_train_timesteps", 1000)
        dynamic = options.take("use_dynamic_shifting", False)
        if dynamic:
            kind = options.take("time_shift_type", "exponential")
            if mu is None or kind != "exponential":
                raise PlanError(
                    f"use_dynamic_shifting needs mu (computed from the picture's size), and time_shift_type "
                    f"'exponential'; mu={mu} and {kind!r} were given."
                )
            shift = math.exp(mu)
        return Parts(
            process=GaussianProcess(RectifiedFlowSchedule(t_min=1 / total)),
            spacing=FlowSpacing(shift=shift, total=total, ends_too=not dynamic),
            prediction="velocity",
        )

    def write(self, parts: Parts) -> Config:
        """Write them; mu is no part of a config."""
        assert isinstance(parts.spacing, FlowSpacing)
        spacing = parts.spacing
        shift = {"shift": spacing.shift} if spacing.ends_too else {"use_dynamic_shifting": True}
        return {"num_train_timesteps": spacing.total, **shift}


@dataclass(frozen=True)
class AngleLayout:
    """The scheduler of iPNDM, whose networks put out v on the circle."""

    def read(self, options: Options, mu: float | None) -> Parts:
        """Take what must be at its default."""
        total, trained = options.take("num_train_timesteps", 1000), options.take("trained_betas", None)
        if total != 1000 or trained is not None:
            raise PlanError(f"num_train_timesteps={total} and trained_betas of {options.name} have no counterpart.")
        return Parts(process=GaussianProcess(TrigSchedule()), spacing=AngleSpacing(), prediction="v")

    def write(self, parts: Parts) -> Config:
        """Write nothing: there are no options."""
        return {}


@dataclass(frozen=True)
class EDMLayout:
    """Schedulers of EDM, and of Stable Audio ("Cosine")."""

    low: float = 0.002
    high: float = 80.0
    data_std: float = 0.5
    curve: Curve = "karras"
    prediction: str = "epsilon"

    def read(self, options: Options, mu: float | None) -> Parts:
        """Take levels, curve and preconditioning."""
        low, high = options.take("sigma_min", self.low), options.take("sigma_max", self.high)
        curve = options.choose("sigma_schedule", self.curve, {"karras": "karras", "exponential": "exponential"})
        rho, total = options.take("rho", 7.0), options.take("num_train_timesteps", 1000)
        kind = options.take("prediction_type", self.prediction)
        data_std = options.take("sigma_data", self.data_std)
        if kind not in ("epsilon", "v_prediction") or (kind == "v_prediction" and data_std != 1.0) or total != 1000:
            raise PlanError(
                f"prediction_type={kind!r} of {options.name}, sigma_data={data_std}, num_train_timesteps={total} has "
                "no counterpart; known are 'epsilon', and 'v_prediction' with sigma_data=1, of 1000 steps."
            )
        ends = {"sigma_min": low, "sigma_max": high}
        schedule = EDMSchedule(**ends, rho=rho) if curve == "karras" else VESchedule(**ends)
        return Parts(
            process=GaussianProcess(schedule),
            spacing=EDMSpacing(curve=curve, rho=rho, end=options.choose("final_sigmas_type", "zero", _ENDS)),
            prediction="edm" if kind == "epsilon" else "v",
            data_std=data_std,
        )

    def write(self, parts: Parts) -> Config:
        """Write them."""
        schedule, spacing = parts.process.schedule, parts.spacing
        assert isinstance(schedule, EDMSchedule | VESchedule) and isinstance(spacing, EDMSpacing)
        return {
            "sigma_min": schedule.sigma_min,
            "sigma_max": schedule.sigma_max,
            "sigma_data": parts.data_std,
            "sigma_schedule": spacing.curve,
            "rho": spacing.rho,
            "final_sigmas_type": spacing.end,
            "prediction_type": "epsilon" if parts.prediction == "edm" else "v_prediction",
        }

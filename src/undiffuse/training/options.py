"""Options of objectives and of the trainer, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from undiffuse.limits import at_least_one, not_negative, positive, share, share_below_one
from undiffuse.words import option

_PLACE = ("device", "shard", "checkpoint_activations", "compile")
_WRITING = ("log_every", "checkpoint_every", "keep", "preview_every", "previews", "max_bad_steps")
_WATCHING = ("snapshot_every", "snapshot_dtype", "validate_every", "validate_items", "trackers")
RUNTIME_KEYS = frozenset(f"train.{name}" for name in (*_PLACE, *_WRITING, *_WATCHING))
"""Keys that change where a run computes and what it writes but not what it learns: a resumption may change them."""


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """Denoising objective of Gaussian processes: a weight in log-SNR and a law of times."""

    kind: Literal["denoising"] = "denoising"
    weight: Literal[
        "own",
        "data",
        "noise",
        "v",
        "velocity",
        "rf-velocity",
        "edm",
        "min-snr",
        "p2",
        "truncated-snr",
        "elbo",
        "sigmoid",
    ] = option("own", "loss weight; 'own' is uniform on the error of what the network predicts")
    error: Literal["squared", "absolute"] = option(
        "squared", "of what the network predicts; absolute, as SR3 and IR-SDE have it, aims at medians instead of means"
    )
    min_snr_gamma: float = option(5.0, "min-snr: ceiling of the SNR")
    p2_k: float = option(1.0, "p2: offset of the SNR")
    p2_gamma: float = option(1.0, "p2: exponent")
    bias: float = option(0.0, "sigmoid: shift of the log-SNR, in nats")
    times: Literal["uniform", "logit-normal", "edm", "mode", "importance"] = option(
        "uniform", "law of the training times"
    )
    time_mean: float | None = option(None, "logit-normal: mean of logit t (0); edm: mean of ln sigma (-1.2)")
    time_std: float | None = option(None, "logit-normal: std of logit t (1); edm: std of ln sigma (1.2)")
    mode_scale: float = option(1.29, "mode: strength of the pull to middle times")
    stratified: bool = option(True, "spread the times of one batch evenly over their law")
    importance: bool = option(False, "divide by the density of the times, so that it changes the variance only")
    p_async: float = option(0.0, "video: share of clips whose frames get independent times (0.2 is usual)")
    async_per: Literal["clip", "batch"] = option("clip", "video: draw that choice per clip or per batch")
    learn_variance: bool = option(
        False, "train a second head for the variance of a step, for sample.solver=ddpm-learned"
    )
    vlb_weight: float = option(0.001, "learn_variance: weight of the variational bound beside the loss")
    levels: int | None = option(
        None, "learn_variance: number of noise levels of the bound; none: those of the table, else 1000"
    )
    coupling: Literal["independent", "optimal"] = option(
        "independent", "optimal: noise goes to near data (minibatch optimal transport), for straighter paths"
    )
    drop: float = option(0.1, "share of labels and vector conditions dropped, for guidance")

    def __post_init__(self) -> None:
        if self.coupling == "optimal" and self.learn_variance:
            raise ValueError(
                "coupling=optimal makes noise depend on the data, so no variance of a step follows; set "
                "learn_variance=false."
            )
        if not self.vlb_weight > 0:
            raise ValueError(
                f"vlb_weight={self.vlb_weight} must be positive; learn_variance=false leaves the bound out."
            )
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels={self.levels} must be at least 2; 1000 is usual.")
        share(self, "p_async", "drop")
        positive(self, "min_snr_gamma", "p2_k", "p2_gamma", "time_std", "mode_scale")
        if self.mode_scale > 2 / (3.141592653589793 - 2) + 1e-9:
            raise ValueError(f"mode_scale={self.mode_scale} is above 1.75, where the map of times folds; lower it.")
        if self.times == "importance" and self.p_async:
            raise ValueError(
                f"times=importance learns one time per clip, but p_async={self.p_async} draws one per frame; set "
                f"p_async=0 or choose other times."
            )


@dataclass(frozen=True, kw_only=True)
class MaskedELBOOptions:
    """Evidence bound of absorbing processes: a masked-prediction loss."""

    kind: Literal["masked-elbo"] = "masked-elbo"
    sampling: Literal["count", "time"] = option("count", "draw the number of masked tokens (less variance) or the time")
    drop: float = option(0.1, "share of labels and vector conditions dropped, for guidance")

    def __post_init__(self) -> None:
        share(self, "drop")


@dataclass(frozen=True, kw_only=True)
class AutoregressiveOptions:
    """Exact likelihood of tokens from left to right: the baseline of masked diffusion, with model.causal=true."""

    kind: Literal["autoregressive"] = "autoregressive"
    drop: float = option(0.1, "share of labels and vector conditions dropped, for guidance")

    def __post_init__(self) -> None:
        share(self, "drop")


@dataclass(frozen=True, kw_only=True)
class CategoricalELBOOptions:
    """Discrete-time evidence bound of any categorical process: uniform, mask-replace, absorbing."""

    kind: Literal["categorical-elbo"] = "categorical-elbo"
    levels: int = option(1000, "number of noise levels of the bound")
    aux: float = option(0.0, "weight of -log p(x_0 | x_t) beside each level's term; VQ-Diffusion: 0.0005 at levels=100")
    adaptive_aux: bool = option(False, "multiply that weight by 2 - t")
    times: Literal["uniform", "importance", "running"] = option(
        "uniform",
        "levels: all alike, or more often where the loss is large, divided by how often; by the last ten losses, or by "
        "a running mean of their squares",
    )
    masked_weight: float = option(1.0, "weight of the loss of masked tokens, but for that of the last level")
    open_weight: float = option(1.0, "the same of tokens that are not masked")
    drop: float = option(0.1, "share of labels and vector conditions dropped, for guidance")

    def __post_init__(self) -> None:
        share(self, "drop")
        if min(self.masked_weight, self.open_weight) < 0 or not self.masked_weight + self.open_weight > 0:
            raise ValueError(
                f"masked_weight={self.masked_weight} and open_weight={self.open_weight} must not be negative, nor "
                "both 0; 1 and 1 is the bound."
            )
        if self.levels < 1:
            raise ValueError(f"levels={self.levels} must be at least 1.")
        if not self.aux >= 0:
            raise ValueError(f"aux={self.aux} must not be negative; 0 leaves the auxiliary loss out.")
        if self.adaptive_aux and not self.aux:
            raise ValueError("adaptive_aux weighs the auxiliary loss, which aux=0 leaves out; set aux, such as 0.0005.")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and how to train, and what to write on the way."""

    steps: int = option(10_000, "optimizer steps")
    batch_size: int = option(128, "items per optimizer step, over all processes")
    accumulate: int = option(1, "parts in which a batch goes through the network, to save memory")
    optimizer: Literal["adamw", "muon"] = option("adamw", "muon: for matrices inside the network; AdamW for the rest")
    lr: float = option(1e-3, "peak learning rate")
    muon_lr: float = option(0.02, "muon: peak learning rate of the matrices; it follows the course of lr")
    warmup: int = option(100, "steps of linear warm-up")
    decay: Literal["cosine", "linear", "constant", "plateau"] = option(
        "cosine", "learning rate after the warm-up; plateau: it falls whenever the loss has stopped falling"
    )
    final_lr: float = option(0.0, "learning rate at the end, as a share of the peak; plateau: the least share")
    plateau_factor: float = option(0.5, "plateau: factor by which the rate falls")
    plateau_patience: int = option(2000, "plateau: steps without a better loss that are waited for")
    plateau_threshold: float = option(0.01, "plateau: share by which a loss must be below the best to be better")
    plateau_every: int = option(100, "plateau: steps whose mean loss is compared")
    weight_decay: float = option(0.0, "decoupled weight decay")
    betas: tuple[float, float] = option((0.9, 0.99), "moment decays of AdamW")
    clip: float = option(1.0, "largest norm of the gradient; 0 does not clip")
    clip_steps: int | None = option(None, "first steps, whose gradients are clipped; none: all")
    ema: tuple[float, ...] = option((0.05, 0.10), "relative widths of the averaged weights; the first is the model")
    ema_every: int = option(1, "steps between updates of the averages; keep it small beside a width times steps")
    precision: Literal["float32", "bfloat16"] = option("float32", "dtype inside the network")
    checkpoint_activations: bool = option(
        False, "compute activations again in the backward pass instead of keeping them: less memory, a third more time"
    )
    compile: bool = option(False, "compile the network's blocks: minutes at the start, then faster steps")
    device: str = option("auto", "auto, cpu, cuda, cuda:1")
    shard: bool = option(False, "several processes: each keeps a slice of the network (FSDP2) instead of all of it")
    init: str | None = option(
        None, "model whose weights start the run (fine-tuning), ours or of diffusers; none: fresh weights"
    )
    seed: int = option(0, "seed of weights, order and noise")
    log_every: int = option(50, "steps per line of log.jsonl")
    checkpoint_every: int = option(1000, "steps between checkpoints")
    keep: int = option(2, "checkpoints kept")
    preview_every: int = option(1000, "steps between preview pictures; 0 for none")
    previews: int = option(36, "samples in a preview")
    max_bad_steps: int = option(20, "consecutive non-finite steps that stop the run")
    snapshot_every: int = option(0, "steps between snapshots of the averages, for averages of other widths; 0 for none")
    snapshot_dtype: Literal["float32", "float16"] = option("float32", "dtype of snapshots; float16 takes half the disk")
    validate_every: int | None = option(None, "steps between held-out losses; none: checkpoint_every; 0: never")
    validate_items: int = option(512, "held-out items, and as many training items, per held-out loss")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = option((), "where figures and previews go beside log.jsonl")

    @property
    def validation_steps(self) -> int:
        """Steps between held-out losses, 0 for never."""
        return self.checkpoint_every if self.validate_every is None else self.validate_every

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep")
        at_least_one(self, "max_bad_steps", "validate_items", "clip_steps", "ema_every", "plateau_every")
        not_negative(self, "warmup", "preview_every", "snapshot_every", "validate_every", "plateau_patience")
        not_negative(self, "weight_decay", "clip", "final_lr")
        self._check_plateau()
        if self.clip_steps is not None and not self.clip:
            raise ValueError(f"clip_steps={self.clip_steps} but clip=0 does not clip at all; set clip, such as 1.")
        positive(self, "lr", "muon_lr")
        if self.optimizer == "muon" and self.shard:
            raise ValueError("optimizer=muon needs whole matrices, which shard=true cuts; use one of the two.")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}.")
        if not self.ema or not all(0 < width < 0.28 for width in self.ema):
            raise ValueError(f"ema={self.ema} must hold relative widths between 0 and 0.28, for example 0.05.")
        if self.compile and self.shard:
            raise ValueError("compile=true has not been made to work with shard=true; leave one of them off.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be two numbers in [0, 1).")

    def _check_plateau(self) -> None:
        share_below_one(self, "plateau_threshold")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"plateau_factor={self.plateau_factor} must lie inside (0, 1); 0.5 halves the rate.")
        if self.decay == "plateau":
            share(self, "final_lr")
            return
        for name in ("plateau_factor", "plateau_patience", "plateau_threshold", "plateau_every"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} belongs to decay=plateau, not decay={self.decay}; leave it out."
                )

"""The training loop: batches in, weights out; logs, previews, checkpoints and stops on the way.

A step is: corrupted rows, forward and backward (in parts), one fused clip-and-update, the averages, one append to
the log window. Nothing in it waits for the device, but for the mean losses of `decay=plateau`. Everything written is a
function of the recipe and of the number of steps done, timings excepted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.errors import TrainingError
from undiffuse.events import Advanced, Listener, Message, silent
from undiffuse.noise import KeyedNoise
from undiffuse.training.blocks import prepare_blocks
from undiffuse.training.checkpoints import CHECKPOINTS, Checkpoint, disk_errors, newest_checkpoint, write_checkpoint
from undiffuse.training.clock import Clock
from undiffuse.training.degrade import Transforms
from undiffuse.training.devices import Devices, Scoring
from undiffuse.training.layout import Layout
from undiffuse.training.log import RunLog
from undiffuse.training.objectives import Corrupted, Losses, Objective, Trained
from undiffuse.training.optimizer import ClippedStep, learning_rate
from undiffuse.training.options import TrainOptions
from undiffuse.training.posthoc import drop_snapshots, write_snapshot
from undiffuse.training.state import TrainingState
from undiffuse.training.stop import StopRequest
from undiffuse.training.stream import BatchStream
from undiffuse.training.trackers import open_trackers
from undiffuse.training.validation import Validation, make_validation
from undiffuse.training.versions import versions
from undiffuse.training.window import Window
from undiffuse.words import human_duration

if TYPE_CHECKING:
    from undiffuse.data import Dataset

Hook = Callable[[Any, int], Path | None]
_TASK = "train"
_ESTIMATE_AFTER = 20  # steps


@dataclass(frozen=True)
class Outcome:
    """How a training loop ended: steps done, and whether that was all of them."""

    step: int
    finished: bool


class Trainer:
    """Trains a denoiser or a flow map into a folder, from its newest checkpoint if it has one.

    Args:
        denoiser: What to train, on the CPU; it is moved to the device.
        objective: Its loss.
        dataset: Training items, on any device.
        options: How to train.
        folder: An existing folder for `log.jsonl` and `checkpoints/`.
        publish: Called with (averaged denoiser, step) at every checkpoint, to write the model.
        publish_start: Call it before the first step too.
        published: Returns the step of the model that is written; one of another step is written again on resumption.
        preview: Called likewise every `preview_every` steps.
        listener: Hears `Advanced` and `Message`.
        transforms: What is done to the items of each batch; the denoiser has their conditions.
        held_out: Items whose loss is logged every `validate_every` steps.
    """

    def __init__(
        self,
        denoiser: Trained,
        objective: Objective,
        dataset: Dataset,
        options: TrainOptions,
        folder: Path,
        *,
        publish: Hook | None = None,
        publish_start: bool = False,
        published: Callable[[], int | None] | None = None,
        preview: Hook | None = None,
        listener: Listener = silent,
        devices: Devices | None = None,
        transforms: Transforms | None = None,
        held_out: Dataset | None = None,
    ) -> None:
        self.devices = devices or Devices(options)
        self.options, self.folder, self.listener = options, folder, listener
        self.publish, self.published, self.preview = publish, published, preview
        self.publish_start = publish_start
        self.devices.check_batch(options)
        self.denoiser = denoiser.to(self.devices.device).train()
        self.objective = objective.to(self.devices.device)
        scoring = Scoring(self.denoiser, self.objective)
        self.layout = self.devices.layout(scoring, options.shard)
        self.state = TrainingState(self.denoiser, self.objective, options, self.layout)
        prepare_blocks(self.denoiser, options)
        if self.devices.share.size > 1:
            self.state.window = Window(self.devices.total)
        self.stream = BatchStream(
            dataset,
            self.objective,
            self.denoiser,
            seed=options.seed,
            batch_size=options.batch_size,
            device=self.devices.device,
            share=self.devices.share,
            transforms=transforms,
        )
        self.scoring = self.devices.prepare(scoring)
        self.update = ClippedStep(self.state.optimizer, options.clip, self.layout.total_norm, self.state.muon)
        self.dropout = _dropout_generator(self.denoiser, self.devices.device)
        self.validation = make_validation(self.objective, held_out, dataset, options, self.devices.device, transforms)
        self.bad_steps = 0
        self.bad_run = 0
        self.seconds = 0.0
        self.rate = 0.0  # of the last step
        self.saved_step: int | None = None
        self.log: RunLog | None = None
        self._resumed = False

    # -- the loop ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until all steps are done, or until SIGINT or SIGTERM.

        Raises:
            TrainingError: Too many steps were not finite, or the disk is full.
            CheckpointError: The newest checkpoint cannot be resumed.
            PeerError: Another process of the run failed or ended.
        """
        try:
            with self.devices.together():
                return self._run()
        finally:
            if self.log is not None:
                self.log.trackers.finish()

    def _run(self) -> Outcome:
        self.resume()
        self._publish_again()
        clock = self.clock()
        with StopRequest() as stop:
            while self.state.step < self.options.steps:
                self.step()
                self._after_step(clock)
                if self._asks_together() and self.devices.any(stop.name is not None):
                    self._stop(stop.name or "a signal", clock)
                    return Outcome(self.state.step, self.state.step >= self.options.steps)
        if self.saved_step != self.state.step:
            self.save(clock)
        return Outcome(self.state.step, True)

    def clock(self) -> Clock:
        """Start the clock of this sitting."""
        return Clock(self.seconds, self.state.step)

    def step(self) -> None:
        """Make one optimizer step."""
        number, plateau = self.state.step, self.state.plateau
        corrupted = self.stream.step(number)
        if self.dropout is not None:
            self._seed_dropout(number)
        self.objective.before_step(self.denoiser, corrupted)
        corrupted = self._couple(corrupted, number)
        losses = self._backward(corrupted)
        per_sample = losses.per_sample
        self.layout.take_gradients()
        loss = self.devices.mean(per_sample.mean())
        span = self.objective.span(number, self.options.steps)
        self.rate = learning_rate(number, self.options, span) * (plateau.share if plateau else 1.0)
        clips = self.options.clip_steps is None or number < self.options.clip_steps
        report = self.update(loss, self.rate, clips)
        if plateau is not None:
            plateau.note(number, loss, report.bad)
        self.update.zero_grad()
        self.state.average()
        self.objective.after_step(self.denoiser, self.state.step)
        if self.objective.adapts:
            self.objective.observe(self.devices.gather(corrupted.t), self.devices.gather(per_sample))
        if self.objective.watches:
            self.objective.watch(self._gathered(losses))
        self.state.window.add(loss, report.grad_norm, report.bad, per_sample, losses.half_logsnr)

    def _couple(self, corrupted: Corrupted, step: int) -> Corrupted:
        """Let the objective look at a whole batch that will be scored in parts; dropout then begins again."""
        if self.options.accumulate == 1:
            return corrupted
        with torch.no_grad():
            seen = self.scoring(corrupted, self.options.accumulate)
        if self.dropout is not None:
            self._seed_dropout(step)
        return seen

    def _backward(self, corrupted: Corrupted) -> Losses:
        """Run forward and backward in `accumulate` parts; return the losses."""
        parts = self.options.accumulate
        rows = len(corrupted.x) // parts
        taken = []
        for part in range(parts):
            last = part == parts - 1
            with nullcontext() if last else self.devices.no_sync(self.scoring):
                losses = self.scoring(corrupted if parts == 1 else corrupted.rows(part * rows, (part + 1) * rows))
                (losses.per_sample.mean() / parts).backward()
            taken.append(Losses(losses.per_sample.detach(), losses.half_logsnr))
        return taken[0] if parts == 1 else Losses(*(_join(column) for column in zip(*taken, strict=True)))

    def _gathered(self, losses: Losses) -> Losses:
        """Return the losses of the whole batch."""
        levels = losses.half_logsnr
        return Losses(self.devices.gather(losses.per_sample), None if levels is None else self.devices.gather(levels))

    def _seed_dropout(self, step: int) -> None:
        assert self.dropout is not None
        item = step * self.devices.share.size + self.devices.share.rank
        key = KeyedNoise(self.options.seed, [item]).uniform("dropout", 0, ())
        self.dropout.manual_seed(int(key * 2**53))

    # -- what happens between steps ---------------------------------------------------------------

    def _after_step(self, clock: Clock) -> None:
        step, options = self.state.step, self.options
        if step % options.log_every == 0 or step == options.steps:
            self._write_log(clock)
        if clock.due():
            self._report({})
        if step - clock.first_step == _ESTIMATE_AFTER and step < options.steps:
            self._estimate(clock)
        if self.validation and _is_due(step, options.validation_steps, options.steps):
            self._validate(self.validation)
        if _is_due(step, options.snapshot_every, options.steps):
            self._snapshot()  # before the checkpoint: a run that goes on from it must find this snapshot
        if self.preview and _is_due(step, options.preview_every, options.steps):
            path = self._show(self.preview, "preview")
            if self.log is not None:
                self.log.picture(path, step)
        if step % options.checkpoint_every == 0:
            self.save(clock)

    def _write_log(self, clock: Clock) -> None:
        figures = self.state.window.close()
        step = self.state.step
        self._count_bad(figures.bad)
        row = {
            "step": step,
            "images": step * self.options.batch_size,
            "loss": figures.loss,
            "lr": self.rate,
            "grad_norm": figures.grad_norm,
            "bad_steps": self.bad_steps,
            "seconds": round(clock.seconds(), 3),
        }
        self._append(row)
        self._report({"loss": figures.loss, "lr": row["lr"], "grad_norm": figures.grad_norm})
        if self.bad_run >= self.options.max_bad_steps:
            with self.devices.agree():
                self._give_up()

    def _validate(self, measure: Validation) -> None:
        model = self.state.model()
        with self.devices.agree():
            if self.devices.is_main:
                self._append({"step": self.state.step, "validation": measure(model)})

    def _snapshot(self) -> None:
        averages, dtype = self.state.named_averages(), getattr(torch, self.options.snapshot_dtype)
        with self.devices.agree():
            if self.devices.is_main:
                write_snapshot(self.folder, self.state.step, averages, self.options.ema, dtype, self.state.begun)

    def _append(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.append(row)

    def _count_bad(self, bad: list[bool]) -> None:
        self.bad_steps += sum(bad)
        for flag in bad:
            self.bad_run = self.bad_run + 1 if flag else 0
        if any(bad):
            self._say(
                f"{sum(bad)} of the last {len(bad)} steps had a loss or gradient that is not finite and were skipped "
                f"({self.bad_steps} in all).",
                "warning",
            )

    def _give_up(self) -> None:
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "there is no checkpoint yet"
        raise TrainingError(
            f"{self.bad_run} steps in a row were not finite (limit {self.options.max_bad_steps}); {kept}. Lower "
            f"train.lr, or check the data for extreme values."
        )

    def _estimate(self, clock: Clock) -> None:
        self.state.window.wait()  # wait for the device once, so that the clock tells the truth
        rate = clock.rate(self.state.step)
        left = (self.options.steps - self.state.step) / rate
        self._say(f"{rate:.3g} steps per second; about {human_duration(left)} to go.")

    def _report(self, info: dict[str, float]) -> None:
        if self.devices.is_main:
            self.listener(Advanced(_TASK, self.state.step, info))

    def _say(self, text: str, level: str = "info") -> None:
        if self.devices.is_main:
            self.listener(Message(_TASK, text, level))

    def _asks_together(self) -> bool:
        """Whether to look for a stop request now; several processes on GPUs agree only at log lines, for it waits."""
        at_once = self.devices.share.size == 1 or self.devices.device.type == "cpu"
        return at_once or self.state.step % self.options.log_every == 0

    def _stop(self, signal_name: str, clock: Clock) -> None:
        if self.saved_step != self.state.step:
            self.save(clock)
        self._say(
            f"stopped by {signal_name} at step {self.state.step} of {self.options.steps}; a checkpoint is written. "
            f"Run the same command to go on.",
            "warning",
        )

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, clock: Clock | None = None) -> None:
        """Write a checkpoint, and publish the averaged model."""
        self.seconds = clock.seconds() if clock else self.seconds
        if _is_due(self.state.step, self.options.checkpoint_every, self.options.steps):
            self._log_levels()  # first: a checkpoint must not hold what the log has already
        checkpoint = Checkpoint(self.state.tensors(), self._facts())
        with self.devices.agree():
            if self.devices.is_main:
                write_checkpoint(self.folder / CHECKPOINTS, checkpoint, self.options.keep)
        self._publish()
        self.saved_step = self.state.step

    def _publish(self) -> None:
        if self.publish is not None:
            self._show(self.publish, "model")

    def _show(self, hook: Hook, what: str) -> Path | None:
        """Let the main process do something with the averaged model; the others wait, and fail where it fails."""
        model = self.state.model()
        with self.devices.agree():
            if self.devices.is_main:
                with disk_errors(what, self.folder):
                    return hook(model, self.state.step)
        return None

    def _publish_again(self) -> None:
        """Publish where the last sitting ended between its checkpoint and its model, or where the start is wanted."""
        if self.saved_step is None and self.publish_start:
            self._publish()
        if self.saved_step is None or self.published is None:
            return
        if self.devices.any(self.devices.is_main and self.published() != self.saved_step):
            self._publish()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; cut the log back to it. Once; `run` does it too."""
        if self._resumed:
            return
        self._resumed = True
        checkpoint = None
        with self.devices.agree():
            if self.devices.is_main:
                checkpoint = newest_checkpoint(self.folder / CHECKPOINTS, self._reading_device())
        with self.devices.agree():
            if not self.devices.is_main:
                checkpoint = newest_checkpoint(self.folder / CHECKPOINTS, self._reading_device())
        self._check_same(checkpoint)
        if checkpoint is not None:
            self._load(checkpoint)
        if self.devices.is_main:
            drop_snapshots(self.folder, self.state.step)
            trackers = open_trackers(self.options.trackers, self.folder, self.state.step)
            self.log = RunLog(self.folder / "log.jsonl", self.state.step, trackers)

    def _reading_device(self) -> torch.device:
        """A checkpoint is whole: where each process keeps a share, the whole may not fit on its device."""
        return self.devices.device if type(self.layout) is Layout else torch.device("cpu")

    def _check_same(self, checkpoint: Checkpoint | None) -> None:
        step = torch.tensor([-1 if checkpoint is None else checkpoint.facts["step"]], device=self.devices.device)
        steps = self.devices.gather(step).tolist()
        with self.devices.agree():
            if len(set(steps)) > 1:
                raise TrainingError(
                    f"the processes see checkpoints of different steps in {self.folder}: {steps} (-1: none); all "
                    f"machines need the same out folder, on storage that they share."
                )

    def _load(self, checkpoint: Checkpoint) -> None:
        facts = checkpoint.facts
        self.state.load(checkpoint.tensors, facts["step"])
        self.bad_steps, self.bad_run = facts["bad_steps"], facts["bad_run"]
        self.seconds, self.saved_step = facts["seconds"], facts["step"]
        self._say(f"resuming at step {self.state.step} of {self.options.steps}.")
        if facts["threads"] != torch.get_num_threads():
            self._say(
                f"this run began with {facts['threads']} thread(s) and goes on with {torch.get_num_threads()}; sums "
                f"may round differently. Set OMP_NUM_THREADS={facts['threads']} to continue bit for bit.",
                "warning",
            )

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.state.step,
            "images": self.state.step * self.options.batch_size,
            "seed": self.options.seed,
            "bad_steps": self.bad_steps,
            "bad_run": self.bad_run,
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "processes": self.devices.share.size,
            "versions": versions(),
        }

    def _log_levels(self) -> None:
        levels = self.state.window.take_levels()
        if levels is not None:
            self._append({"step": self.state.step, "levels": levels})


def _join(parts: tuple[Any, ...]) -> Any:
    """Return the rows of all parts of a batch, None where they have none."""
    return None if parts[0] is None else torch.cat(parts)


def _is_due(step: int, every: int, last: int) -> bool:
    """Whether something done `every` so many steps (0: never), and after the last one, is due now."""
    return every > 0 and (step % every == 0 or step == last)


def _dropout_generator(denoiser: Trained, device: torch.device) -> torch.Generator | None:
    """Return a generator for dropout and token routing, or None where the network draws nothing."""
    network = getattr(denoiser, "backbone", None)
    if network is None or not getattr(network, "draws_in_training", False):
        return None
    network.dropout_generator = torch.Generator(device)
    return network.dropout_generator

"""The loop around the steps: data in, pictures, lines and checkpoints out, and the reasons to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gan_fast.data import Feed, mix_seed

from . import files, inputs, pictures
from .convergence import ConvergenceWatch
from .errors import NonFiniteError, NonFiniteLossError
from .events import open_events
from .progress import Progress
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["FitLoop", "FitResult"]

logger = logging.getLogger(__name__)

_GRID = 64
_PREVIEW_STREAM = -2  # names the latents of the sample grids among the streams that a run's seed gives


@dataclass(frozen=True)
class FitResult:
    """What `Trainer.fit` did.

    Attributes:
        steps: steps done by this call.
        step: steps done in all.
        reason: why it stopped, in words.
        converged: whether the convergence rule was the reason.
        folder: the run folder, or None without an outdir.
        seconds: time spent in this call's steps, without pictures and checkpoints.
        img_s: real images per second in this call's steps; 0 if there were none.
    """

    steps: int
    step: int
    reason: str
    converged: bool
    folder: Path | None
    seconds: float
    img_s: float


class FitLoop:
    """One call of `Trainer.fit`.

    Args:
        trainer: whose `train_step` is called (a subclass may have its own).
        feed: the batches.
        goal: the step at which to stop; None if only the rule ends the training.
        watch: the convergence rule, or None.
    """

    def __init__(self, trainer: Trainer, feed: Feed, goal: int | None, watch: ConvergenceWatch | None) -> None:
        self.trainer = trainer
        self.feed = feed
        self.goal = goal
        self.watch = watch
        self.settings = trainer.run_settings
        self.run: RunFolder | None = None
        self._first_step = trainer.step
        self._saved = trainer.step  # the last step of which a checkpoint was written, or tried
        self._images = 0
        self._seconds = 0.0
        self._logged = (0, 0.0)  # images and seconds at the last line

    def __call__(self) -> FitResult:
        trainer, watch = self.trainer, self.watch
        if watch is not None and watch.reason is not None:
            return self._result(f"already {watch.reason}", converged=True)
        if self.goal is not None and trainer.step >= self.goal:
            return self._result(f"already at step {trainer.step} of {self.goal}: nothing to do", converged=False)
        batch = self._begin()
        reason, converged = "", False
        interrupt = _Interrupt()
        with (
            interrupt,
            open_events(self.run.path if self.run else None, trainer.step) as events,
            Progress(trainer.step, self.goal, self.settings.progress) as progress,
        ):
            try:
                while not reason:
                    row = self._step(batch)
                    progress.advance()
                    if row is not None:
                        progress.report(row)
                        events(row)
                        reason = self._converged() or ""
                        converged = bool(reason)
                    if not reason and trainer.step == self.goal:
                        reason = f"reached step {self.goal}"
                    if not reason and interrupt.asked:
                        reason = f"interrupted at step {trainer.step}"
                    self._write(last=bool(reason))
                    if not reason:
                        batch = self._next_batch()
            except NonFiniteError as error:
                raise self._explain(error) from None
            except BaseException as error:
                if not (interrupt.asked and isinstance(error, KeyboardInterrupt)):  # a second Ctrl-C: stop at once
                    self._rescue()
                raise
        logger.info("training stopped: %s", reason)
        if interrupt.asked:
            raise KeyboardInterrupt(reason)
        return self._result(reason, converged)

    def _begin(self) -> Tensor:
        """Take the first batch and open the run folder; wrong data leaves no folder behind, and an error no batch
        taken."""
        position = self.feed.state_dict()
        batch = self._next_batch()
        try:
            what = f"a batch of {self.feed.name}"
            inputs.check_values(inputs.check_form(batch, self.trainer.sample_shape, what), what)
            self.run = self.trainer.open_run_folder(self.feed, self.goal, self.watch)
            self._first_pictures(batch)
        except (ValueError, TypeError, OSError):
            self.feed.load_state_dict(position)
            raise
        return batch

    def _next_batch(self) -> Tensor:
        with self._clock():
            return self.trainer.send(self.feed.next())

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        """Counts the time of data and steps; pictures, lines and checkpoints stay outside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._seconds += seconds
            self.trainer.seconds += seconds

    def _step(self, batch: Tensor) -> dict[str, Any] | None:
        """One training step; returns the line for stats.jsonl when one is due."""
        trainer = self.trainer
        with self._clock():
            self._metrics = trainer.train_step(batch)
            self._images += len(batch)
            trainer.losses.add(self._metrics)
            due = trainer.step % self.settings.log_every == 0
            # On the CPU reading a loss costs nothing; on a GPU it would wait for the device, so losses are read in
            # bulk.
            if due or trainer.device.type == "cpu":
                trainer.losses.read(trainer.step)
        if not due:
            return None
        d_losses, g_losses = trainer.losses.take()
        if self.watch is not None:
            self.watch.update(trainer.step, d_losses, g_losses)
        row = self._row(d_losses, g_losses)
        self._append(row)
        self._logged = (self._images, self._seconds)
        return row

    def _row(self, d_losses: Sequence[float], g_losses: Sequence[float]) -> dict[str, Any]:
        """A line of stats.jsonl: means of the losses since the last one, the discriminator's probabilities at this
        step."""
        images, seconds = self._images - self._logged[0], self._seconds - self._logged[1]
        return {
            "step": self.trainer.step,
            "epoch": round(self._epoch(), 4),
            "d_loss": sum(d_losses) / len(d_losses),
            "g_loss": sum(g_losses) / len(g_losses),
            "d_real": float(self._metrics.d_real),
            "d_fake": float(self._metrics.d_fake),
            "img_s": round(images / max(seconds, 1e-9), 2),
            "seconds": round(self.trainer.seconds, 3),
        }

    def _append(self, row: dict[str, Any]) -> None:
        if self.run is not None:
            with files.output_errors("stats.jsonl", self.run.path, self._remedy()):
                self.run.stats.append(row)

    def _epoch(self) -> float:
        return self.feed.epoch + (self.feed.position / self.feed.steps_per_epoch if self.feed.steps_per_epoch else 0.0)

    def _converged(self) -> str | None:
        return self.watch.reason if self.watch is not None else None

    def _save_due(self) -> bool:
        every = self.settings.save_every
        return every > 0 and self.trainer.step % every == 0

    def _write(self, last: bool) -> None:
        """Pictures and checkpoints that are due after this step."""
        if last:
            self._log_rest()
        if self.run is None:
            return
        if last or self._save_due():
            self._save()  # before the pictures, whose errors must not cost the training
        every = self.settings.sample_every
        if last or (every and self.trainer.step % every == 0):
            self._save_fakes()
        if last:
            self._save_curves()

    def _save(self) -> None:
        assert self.run is not None
        self._saved = self.trainer.step
        self.trainer.save_to_run(self.run)

    def _rescue(self) -> None:
        """Save the steps since the last checkpoint when data, pictures or anything else outside a step has failed. The
        error stays the one that the caller sees."""
        step = self.trainer.step
        if self.run is None or step == self._saved or self.trainer.halfway:
            return
        try:
            self._save()
        except (OSError, RuntimeError, TypeError, ValueError) as failure:
            logger.error("the training failed after step %d, and so did its checkpoint: %s", step, failure)
        else:
            logger.error("the training failed after step %d, which was saved: resume=%r", step, str(self.run.path))

    def _log_rest(self) -> None:
        """A line for the steps since the last one. It is marked and goes when the run goes on: those losses stay
        collected, so that the lines of a resumed run are those of an undisturbed one."""
        self.trainer.losses.read(self.trainer.step)
        collected = self.trainer.losses.state_dict()
        if collected["d"]:
            self._append({**self._row(collected["d"], collected["g"]), "partial": True})

    def _first_pictures(self, batch: Tensor) -> None:
        if self.run is None or self.trainer.step > 0 or not pictures.is_picture(self.trainer.sample_shape):
            return
        with files.output_errors("sample grids", self.run.samples, self._remedy()):
            pictures.save_grid(batch[:_GRID], self.run.samples / "reals.png")
        self._save_fakes()

    def _save_fakes(self) -> None:
        assert self.run is not None
        if not pictures.is_picture(self.trainer.sample_shape):
            return
        # The same latents in every grid, so that a row of grids shows one image growing.
        fakes = self.trainer.sample(_GRID, seed=mix_seed(self.trainer.settings.seed, _PREVIEW_STREAM))
        with files.output_errors("sample grids", self.run.samples, self._remedy()):
            pictures.save_grid(fakes, self.run.samples / f"fakes_{self.trainer.step:06d}.png")

    def _save_curves(self) -> None:
        assert self.run is not None
        rows = self.run.stats.rows()
        if rows:
            with files.output_errors("the loss curves", self.run.path, self._remedy()):
                pictures.save_loss_curves(rows, self.run.path / "loss_curves.png")

    def _explain(self, error: NonFiniteError) -> NonFiniteError:
        kept = "no checkpoint was saved before it"
        if self.run is not None:
            with contextlib.suppress(OSError):  # the loss is what has to be reported
                self._save_curves()
            good = self.run.candidates()
            if good:
                kept = f"the last good checkpoint is {good[0]}"
        text = f"{error}; {kept}. Usual cures: a lower learning rate (lr=), precision='fp32', data free of outliers"
        if isinstance(error, NonFiniteLossError):
            return NonFiniteLossError(text, step=error.step, which=error.which)
        return NonFiniteError(text)

    def _remedy(self) -> str:
        return f"The training itself is unharmed, at step {self.trainer.step}: trainer.save(folder) stores it elsewhere"

    def _result(self, reason: str, converged: bool) -> FitResult:
        rate = self._images / self._seconds if self._images else 0.0
        folder = self.run.path if self.run is not None else self.trainer.run_folder
        return FitResult(
            steps=self.trainer.step - self._first_step,
            step=self.trainer.step,
            reason=reason,
            converged=converged,
            folder=folder,
            seconds=self._seconds,
            img_s=rate,
        )


class _Interrupt:
    """Ctrl-C ends the training after the step at hand, with a checkpoint; a second one ends it at once.

    Only where Python's own handler is in place, in the main thread: a program with a handler of its own keeps it.
    """

    def __init__(self) -> None:
        self.asked = False
        self._installed = False

    def __enter__(self) -> _Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("finishing this step and saving a checkpoint; press Ctrl-C again to stop at once")

    def __exit__(self, *details: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

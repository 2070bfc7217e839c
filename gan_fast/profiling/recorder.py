"""`Profile`: watches the steps of any training loop and says where their time goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .assemble import Measured, assemble
from .counting import counting
from .memory import PeakMemory
from .networks import Networks, Tracker
from .operators import analyse
from .patches import Patches
from .phases import DATA, OPTIMISER, PhaseTimer, clock
from .report import Report

__all__ = ["EnoughSteps", "Profile"]

T = TypeVar("T")

#: So many steps of one optimiser without the others': nobody updates the rest.
_PATIENCE = 20


class EnoughSteps(BaseException):
    """Ends a loop that would go on; no Exception, so that no loop's own error handling takes it for one."""


class Profile:
    """Profiles the training steps that run inside its ``with`` block.

        with gan_fast.Profile(generator=G, discriminator=D) as profile:
            for real in loader:
                ...                          # your own step, unchanged
        print(profile.report)

    Found by themselves: calls of the networks, losses and their gradients, optimisers' steps, waits for a DataLoader or
    one of gan_fast's feeds, TensorBoard, `gan_fast.Trainer`. A step is over when each network has been updated; call
    `step` at the end of each turn if that is not what a turn is. The first steps are a warm-up, one is counted (FLOPs,
    bytes), some run under torch.profiler (layers, operators); in those that follow the phases are timed in every
    second one, the others are left alone, which tells what the profiling costs. Networks, numbers and results of the
    training stay what they are.

    Args:
        networks: a `gan_fast.Trainer`; or networks: two are called generator and discriminator. Without any, those
            that the loop calls are taken.
        warmup: steps before the measuring, at least 1.
        detail: steps under torch.profiler.
        trace: file for a Chrome trace of those (chrome://tracing, Perfetto).
        stop_after: end the loop by raising `EnoughSteps` when so many phases were timed.
        named: more networks, by name.

    Raises:
        TypeError, ValueError: an argument is not what is expected.
    """

    def __init__(
        self,
        *networks: Any,
        warmup: int = 2,
        detail: int = 3,
        trace: str | Path | None = None,
        stop_after: int | None = None,
        **named: nn.Module,
    ) -> None:
        for argument, value, least in (("warmup", warmup, 1), ("detail", detail, 0), ("stop_after", stop_after, 1)):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{argument} must be an integer of at least {least}, got {value!r}")
        if trace is not None and not Path(trace).expanduser().absolute().parent.is_dir():
            raise ValueError(f"trace={str(trace)!r}: there is no folder {Path(trace).expanduser().absolute().parent}")
        if trace is not None and detail == 0:
            raise ValueError("a trace is of the steps under torch.profiler: detail must be at least 1, got 0")
        self._networks = Networks(_by_name(networks, named))
        self._warmup, self._detail, self._stop_after = warmup, detail, stop_after
        self._trace = None if trace is None else Path(trace).expanduser()
        self._state = "new"
        self._report: Report | None = None

    # --------------------------------------------------------------------------------------------- for the loop

    def __enter__(self) -> Profile:
        if self._state != "new":
            raise RuntimeError("a Profile watches one with block; make a new one")
        self._state = "running"
        self._device = "cuda" if self._on_cuda() else "cpu"
        self._timer = PhaseTimer(clock(self._device))
        self._patches = Patches(self._timer, self._networks)
        self._counting: Any = None
        self._tracker = Tracker()
        self._profiler: torch.profiler.profile | None = None
        self._measured = Measured(self._networks)
        self._explicit = False
        self._updated: dict[str, int] = {}
        self._ever: set[str] = set()
        self._done = 0
        self._mode = ""
        self._memory = PeakMemory(self._device)
        self._handles = [
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> bool:
        for handle in self._handles:
            handle.remove()
        self._end_mode()
        self._patches.remove()
        self._state = "done"
        self._report = assemble(self._measured, self._device, self._tracker)
        return kind is EnoughSteps

    @property
    def report(self) -> Report:
        """What was found; there once the ``with`` block is over.

        Raises:
            RuntimeError: it is not over yet.
        """
        if self._report is None:
            raise RuntimeError("the report is there when the with block of the Profile is over")
        return self._report

    def phase(self, label: str) -> contextlib.AbstractContextManager[None]:
        """A phase of your own: ``with profile.phase("augmentation"): ...``; phases found within keep their time."""
        return self._patches.phase(label)

    def loader(self, batches: Iterable[T]) -> Iterator[T]:
        """Iterate over ``batches`` (no DataLoader, but a generator or the like); waiting for it counts as data."""
        iterator = iter(batches)
        while True:
            with self._patches.phase(DATA):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch

    def step(self) -> None:
        """Say that a step is over; from the first call on nothing else says so."""
        if not self._explicit:
            self._explicit = True
        self._next_step()

    # -------------------------------------------------------------------------------------------- the steps' ends

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._timer.mine() and self._mode != "bare":
            self._timer.enter(OPTIMISER, True)

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._timer.mine():
            return
        owners = self._networks.of_optimizer(optimizer)
        if self._mode != "bare":
            self._timer.leave()
            self._timer.stepped(owners)
        for name in owners:
            self._updated[name] = self._updated.get(name, 0) + 1
        self._ever.update(owners)
        if self._explicit:
            return
        if max(self._updated.values(), default=0) >= _PATIENCE:
            self._networks.settle(self._ever)
        if self._updated and self._networks.expected <= set(self._updated):
            self._next_step()

    def _next_step(self) -> None:
        self._finish()
        self._updated.clear()
        self._done += 1
        if self._mode in ("timed", "bare") and self._enough():
            self._end_mode()
            self._patches.remove()
            raise EnoughSteps
        self._begin()

    def _enough(self) -> bool:
        wanted = self._stop_after
        return wanted is not None and min(len(self._measured.timed), len(self._measured.bare)) >= wanted

    def _mode_of(self, step: int) -> str:
        for mode, length in (("warmup", self._warmup), ("count", 1), ("detail", self._detail)):
            if step < length:
                return mode
            step -= length
        return "bare" if step % 2 else "timed"

    # ----------------------------------------------------------------------------------------- what a step is for

    def _begin(self) -> None:
        mode = self._mode_of(self._done)
        if mode != self._mode:
            self._end_mode()
            self._begin_mode(mode)
        if mode == "bare":
            self._patches.remove()
            self._bare_since = self._timer.clock.now()
        else:
            self._patches.install()
            self._timer.start()

    def _finish(self) -> None:
        clock = self._timer.clock
        if self._mode == "bare":
            self._measured.bare.append((self._bare_since, clock.now()))
            return
        segments = self._timer.stop()
        if self._mode == "timed":
            self._measured.timed.append(segments)
        elif self._mode == "detail":
            self._measured.detailed.append((segments[0].begin, segments[-1].end))
        self._measured.clock = clock

    def _begin_mode(self, mode: str) -> None:
        self._mode = mode
        if mode == "count":
            self._measured.memory = self._memory()
            self._patches.tracker = Tracker()
            self._counting = counting(self._patches.tracker)
            self._measured.counts = self._counting.__enter__().counts
        elif mode == "detail":
            self._patches.tracker, self._patches.ranges = self._tracker, True
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.__enter__()

    def _end_mode(self) -> None:
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
            self._counting = None
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.__exit__(None, None, None)
            seconds = [self._timer.clock.seconds(*stamps) for stamps in self._measured.detailed]
            counted = {name for _, _, name in self._measured.counts}
            self._measured.detail = analyse(profiler.events() or [], self._tracker, counted, seconds)
            if self._trace is not None:
                profiler.export_chrome_trace(str(self._trace))
        self._patches.tracker, self._patches.ranges = None, False

    def _on_cuda(self) -> bool:
        modules = list(self._networks.modules.values())
        if not modules:
            return torch.cuda.is_available()
        return any(parameter.is_cuda for module in modules for parameter in module.parameters())


def _by_name(networks: tuple[Any, ...], named: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Names for what was given."""
    found: dict[str, nn.Module] = {}
    modules = []
    for position, given in enumerate(networks):
        pair = [getattr(given, name, None) for name in ("generator", "discriminator")]
        if not isinstance(given, nn.Module) and all(isinstance(module, nn.Module) for module in pair):
            modules += pair  # a trainer
        elif isinstance(given, nn.Module):
            modules.append(given)
        else:
            raise TypeError(
                f"networks[{position}]: got {type(given).__name__}, expected a torch.nn.Module or a gan_fast.Trainer"
            )
    names = ["generator", "discriminator"] if len(modules) == 2 else [type(module).__name__ for module in modules]
    for name, module in [*zip(names, modules, strict=True), *named.items()]:
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name}: got {type(module).__name__}, expected a torch.nn.Module")
        if name in found:
            raise ValueError(f"{name}: two networks of this name; give them by keywords, e.g. Profile(coarse=..., ...)")
        found[name] = module
    return found

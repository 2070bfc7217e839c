"""Where the time of a step goes, by phases that neither overlap nor leave anything out.

Time belongs to the innermost open phase; what is left outside of all of them is `GAPS`. So the phases of a step add up
to its wall time whatever was found and whatever was not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch

__all__ = [
    "BACKWARD",
    "DATA",
    "GAPS",
    "LOGGING",
    "LOSS",
    "OPTIMISER",
    "SAVING",
    "Clock",
    "PhaseTimer",
    "Segment",
    "clock",
]

DATA = "data"
LOSS = "loss"
BACKWARD = "backward"
OPTIMISER = "optimiser"
LOGGING = "logging"
SAVING = "checkpoints and pictures"
#: Python between the phases, and what no phase covers (drawing latents, checks, the loop itself).
GAPS = "host gaps"


class Clock(Protocol):
    """Stamps whose differences are known at the latest when the step is over."""

    def now(self) -> Any:
        """A stamp."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Time between two stamps."""


class HostClock:
    """The host's own time."""

    def now(self) -> float:
        """A stamp."""
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        """Time between two stamps."""
        return end - begin


class DeviceClock:
    """The time of a CUDA device's current stream, which lags behind the host's calls: a stamp is an event, passed when
    the work before it is done. A device that waits for the host is in the phase that the host is in."""

    def now(self) -> Any:
        """A stamp."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Time between two stamps; waits for the second one."""
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def clock(device: str) -> Clock:
    """The clock for networks on this type of device."""
    return DeviceClock() if device == "cuda" else HostClock()


class Segment(NamedTuple):
    """A stretch of time in one phase. ``update``: the network whose optimiser step it led to, or ""."""

    label: str
    update: str
    begin: Any
    end: Any


class PhaseTimer:
    """A stack of open phases. Phases are opened and closed all the time; stamps are taken only while it is running.

    Args:
        clock: gives the stamps.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        #: Only the thread of the training opens phases; autograd's and the loader's threads do not.
        self.thread = threading.get_ident()
        self.running = False
        self._stack: list[tuple[str, bool]] = [(GAPS, False)]
        self._segments: list[Segment] = []
        self._of_update: list[bool] = []
        self._assigned = 0
        self._last: Any = None

    def mine(self) -> bool:
        """Whether the caller is the training's thread."""
        return threading.get_ident() == self.thread

    @property
    def label(self) -> str:
        """The innermost open phase."""
        return self._stack[-1][0]

    def enter(self, label: str, of_update: bool = False) -> None:
        """Open a phase inside the open ones. ``of_update``: it is part of the update whose optimiser steps next."""
        if self.running:
            self._cut()
        self._stack.append((label, of_update))

    def leave(self) -> None:
        """Close the phase opened last."""
        if self.running:
            self._cut()
        self._stack.pop()

    def stepped(self, networks: Iterable[str]) -> None:
        """An optimiser of these networks has just stepped: what came before was for this."""
        if not self.running:
            return
        self._cut()
        update = " and ".join(networks)
        for index in range(self._assigned, len(self._segments)):
            if self._of_update[index]:
                self._segments[index] = self._segments[index]._replace(update=update)
        self._assigned = len(self._segments)

    def start(self) -> None:
        """Begin a step."""
        self.running = True
        self._segments, self._of_update, self._assigned = [], [], 0
        self._last = self.clock.now()

    def stop(self) -> list[Segment]:
        """End the step: its segments, without a hole between them."""
        self._cut()
        self.running = False
        return self._segments

    def _cut(self) -> None:
        now = self.clock.now()
        label, of_update = self._stack[-1]
        self._segments.append(Segment(label, "", self._last, now))
        self._of_update.append(of_update)
        self._last = now

"""Workers as processes of their own, watched by one that runs nothing on the device.

A kernel that was never run on a device may reach beyond its memory, which breaks the device for the whole process, or
may never end. Either costs the task it happened in: the supervisor writes that down and starts a new process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from .journal import Journal, row
from .tasks import BROKEN, THROUGH, failed_check

#: Deaths after which a phase is given up: by then it is not a task that is to blame.
MOST_DEATHS = 25
#: Seconds beyond the deadline that a worker may take to notice it.
GRACE = 3.0
POLL = 0.1

Command = Callable[[int], Sequence[str]]
StageOf = Callable[[str], str]


class Phases:
    """Runs the workers of one phase after another.

    Args:
        journal: what they write to.
        stage_of: key of a task -> its stage.
        say: gets a line for each event.
        environment: of the workers; None for this process's.
    """

    def __init__(
        self,
        journal: Journal,
        stage_of: StageOf,
        say: Callable[[str], None] = print,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.journal = journal
        self.stage_of = stage_of
        self.say = say
        self.environment = environment
        self.processes: dict[int, subprocess.Popen[Any]] = {}

    def run(self, command: Command, workers: int, deadline: float) -> None:
        """Start `command(worker)` for each worker, and again where one dies, until all are through.

        Workers know themselves when their phase is over; `deadline` is the end of everything.
        """
        deaths = 0
        for worker in range(workers):
            self._start(command, worker)
        while self.processes:
            time.sleep(POLL)
            self.journal.reload()
            now = time.time()
            for worker, process in list(self.processes.items()):
                reason = None
                code = process.poll()
                if code is None:
                    reason = self._overdue(worker, now, deadline)
                    if reason is None:
                        continue
                    self._kill(process)
                del self.processes[worker]
                if code == THROUGH:
                    continue
                reason = reason or f"the process ended with code {code}"
                self._blame(worker, reason, quiet=code == BROKEN)
                deaths += 1
                if now < deadline and deaths < MOST_DEATHS:
                    self._start(command, worker)
        if deaths >= MOST_DEATHS:
            self.say(f"given up after {deaths} deaths of workers")

    def stop(self) -> None:
        """End every worker that still runs."""
        for process in self.processes.values():
            self._kill(process)
        self.processes.clear()

    def _start(self, command: Command, worker: int) -> None:
        # A session of its own: what it starts (compilers) ends with it.
        self.processes[worker] = subprocess.Popen(command(worker), env=self.environment, start_new_session=True)

    def _kill(self, process: subprocess.Popen[Any]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _overdue(self, worker: int, now: float, deadline: float) -> str | None:
        """Why a running worker must be ended, if it must."""
        if now > deadline + GRACE and worker not in self.journal.running:
            return "still there after the deadline"
        if worker in self.journal.running:
            key, begun, limit = self.journal.running[worker]
            if now > min(begun + limit, deadline + GRACE):
                late = "the time of the run was up" if now > deadline + GRACE else f"took over {limit:.0f} s"
                return f"{key}: {late}"
        return None

    def _blame(self, worker: int, reason: str, quiet: bool) -> None:
        """Write down for the task that a dead worker was at why there is no figure."""
        self.journal.reload()
        open_task = self.journal.running.pop(worker, None)
        if open_task is None:
            if not quiet:
                self.say(f"worker {worker}: {reason}")
            return
        key = open_task[0]
        self.say(f"{key}: {reason}")
        if "the time of the run was up" in reason:
            return  # another run may have the time
        stage = self.stage_of(key)
        self.journal.end(key, stage, [row(key, check=failed_check(stage), state="failed", reason=reason)])

"""A piece of work, and a worker that goes through a list of them inside its time."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections.abc import Callable, Sequence

from .journal import Journal, Row, row

#: Exit codes of a worker: through with its list; its device is broken, a new process may go on.
THROUGH, BROKEN = 0, 3
#: Words in an error after which nothing that this process asks of the device can be believed.
FATAL = (
    "illegal memory access",
    "misaligned address",
    "device-side assert",
    "unspecified launch failure",
    "CUDA error",
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        key: its name, unique and the same in every run.
        stage: what it belongs to.
        rank: importance, 0 first.
        run: does it and returns rows.
        estimate: seconds that must be left for it to start.
        limit: seconds after which it is given up.
        needs: keys of checks that must be green.
        what, dtype, batch: for a row that says why there is no figure.
    """

    key: str
    stage: str
    rank: int
    run: Callable[[], Sequence[Row]]
    estimate: float = 2.0
    limit: float = 60.0
    needs: tuple[str, ...] = ()
    what: str = ""
    dtype: str | None = None
    batch: int | None = None

    def without_figure(self, check: str, state: str, reason: str) -> list[Row]:
        """The rows of a task that found nothing."""
        return [row(self.what or self.key, check=check, dtype=self.dtype, batch=self.batch, state=state, reason=reason)]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Tasks that belong together in time.

    Attributes:
        name: for the log.
        stages: whose tasks it takes.
        until: share of the whole time at which it stops; what is left then comes in the last phase.
        workers: processes at a time; more than one only where nothing is timed.
        worst_rank: tasks of less importance wait for a later phase.
    """

    name: str
    stages: tuple[str, ...]
    until: float
    workers: int = 1
    worst_rank: int = 99


def select(tasks: Sequence[Task], phase: Phase) -> list[Task]:
    """The phase's tasks, most important first; equals keep their order."""
    chosen = [task for task in tasks if task.stage in phase.stages and task.rank <= phase.worst_rank]
    return sorted(chosen, key=lambda task: task.rank)


def work(
    tasks: Sequence[Task],
    journal: Journal,
    deadline: float,
    worker: int = 0,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.time,
) -> int:
    """Do what is not done yet and fits in before the deadline; returns an exit code."""
    parent = os.getppid()
    for task in tasks:
        if task.key in journal.done or clock() + task.estimate > deadline:
            continue
        if os.getppid() != parent:
            return BROKEN  # nobody supervises any more
        verdict = journal.verdict(task.needs)
        if verdict == "unchecked" and not all(key in journal.done for key in task.needs):
            continue  # a later phase or run may get to the check
        if verdict != "green":
            names = ", ".join(key for key in task.needs if journal.verdict([key]) != "green")
            journal.end(task.key, task.stage, task.without_figure(verdict, "refused", f"not green: {names}"))
            say(f"{task.key}: no figure, a check is {verdict}: {names}")
            continue
        journal.start(task.key, worker, task.limit)
        begun = clock()
        fatal = False
        try:
            rows = list(task.run())
        except Exception as error:  # noqa: BLE001  # whatever a task meets, the others must still get their turn
            text = f"{type(error).__name__}: {error}".strip()
            fatal = any(word in text for word in FATAL)
            rows = task.without_figure(failed_check(task.stage), "failed", text[:1000])
            say(f"{task.key}: {traceback.format_exc(limit=-3)}")
        journal.end(task.key, task.stage, rows)
        say(f"{task.key}: {summary(rows)} ({clock() - begun:.1f} s)")
        if fatal:
            return BROKEN
    return THROUGH


def failed_check(stage: str) -> str:
    """State of the check of a task that broke off: a check that cannot be made is as bad as one that fails."""
    return "red" if stage.startswith("check") else "unchecked"


def summary(rows: Sequence[Row]) -> str:
    """Rows in a few words, for the log."""
    times = [f"{1e3 * r['seconds']:.3g} ms" for r in rows if r["seconds"] is not None and r["check"] != "red"]
    checks = [r["check"] for r in rows]
    states = sorted({r["state"] for r in rows} - {"done"})
    red = checks.count("red")
    words = times[:6] or [f"{len(rows)} rows"]
    return " ".join([*words, *([f"{red} of {len(rows)} RED"] if red else []), *states])

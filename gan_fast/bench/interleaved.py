"""Interleaved timing of several programs in one process, with disturbed rounds taken out.

A shared machine drifts, and now and then runs at half its speed for a while. So the programs take turns, a fixed
piece of work is timed around each turn, and a turn in which that work took clearly longer than at its best does not
count.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

#: A turn counts if the fixed work around it took at most this many times its best.
LARGEST_DISTURBANCE = 1.10
#: The fixed work lasts at least so many seconds: well above the clock's and the threads' start, well below a turn.
SHORTEST_WORK = 1e-3

#: Does a number of rounds of fixed work on all threads and returns the floating-point operations done.
Work = Callable[[int], float]


def matrix_product(size: int = 640) -> Work:
    """Work for where there is no loop of pure arithmetic: PyTorch's matrix product, whose data stay in the caches."""
    left, right, out = torch.ones(size, size), torch.ones(size, size), torch.empty(size, size)

    def work(rounds: int) -> float:
        for _ in range(rounds):
            torch.mm(left, right, out=out)
        return 2.0 * size**3 * rounds

    return work


def copy_bandwidth(elements: int = 1 << 24, rounds: int = 7) -> float:
    """Bytes read and written in a second by PyTorch's copy of float32 tensors that no cache holds, at best."""
    source, target = torch.ones(elements), torch.empty(elements)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2.0 * source.nbytes / min(times)


class Calibration:
    """A fixed piece of work whose time tells whether the machine is disturbed, and its best what the machine can do.

    Args:
        work: what to do; `matrix_product` if None.

    Attributes:
        best: seconds of the fixed work, at best so far.
        rounds: of the work in one go; settled when the object is made.
    """

    def __init__(self, work: Work | None = None) -> None:
        self._work = matrix_product() if work is None else work
        self._operations = 0.0
        self.rounds = 1
        self()  # the first run wakes the threads
        while min(self() for _ in range(5)) < SHORTEST_WORK:
            self.rounds *= 2
        self.best = min(self() for _ in range(15))

    def __call__(self) -> float:
        """Seconds for the fixed work, now."""
        start = time.perf_counter()
        self._operations = self._work(self.rounds)
        return time.perf_counter() - start

    @property
    def peak(self) -> float:
        """Floating-point operations in a second, at best so far: the roof that a program's own rate can be held to."""
        return self._operations / self.best

    def disturbed(self, seconds: float) -> bool:
        """Whether the machine was disturbed when the fixed work took so long; a new best is remembered."""
        self.best = min(self.best, seconds)
        return seconds > LARGEST_DISTURBANCE * self.best


class Turns:
    """Turns that programs take, in one visit or several.

    The turns of a visit follow each other; between two visits other things are measured. What the machine does for
    some seconds meets all turns of a visit, so visits tell more of what a figure is worth than turns do.

    Args:
        names: of the programs.
        calibration: knows the machine's best.

    Attributes:
        times: name -> for each visit, the seconds of one run in each turn, disturbed ones too. The same places of two
            programs belong to the same turn; one that took part in fewer visits has the first ones.
    """

    def __init__(self, names: Iterable[str], calibration: Calibration) -> None:
        self.times: dict[str, list[list[float]]] = {name: [] for name in names}
        self._calibration = calibration
        self._good: dict[str, list[float]] = {name: [] for name in self.times}
        self._asked = dict.fromkeys(self.times, 0)

    def visit(
        self,
        programs: Mapping[str, Callable[[], Any]],
        turns: int,
        *,
        repeats: int = 1,
        most: int | None = None,
    ) -> None:
        """Let the programs take turns, every second one in the opposite order: what changes steadily meets all alike.

        Args:
            programs: name -> what to run once.
            turns: of each program that must be undisturbed, if `most` allows.
            repeats: runs in one turn, for programs that are too short for the clock.
            most: turns at most; `turns` if None.
        """
        names, good = list(programs), dict.fromkeys(programs, 0)
        for name in names:
            self.times[name].append([])
            self._asked[name] += turns
        for number in range(turns if most is None else most):
            if all(count >= turns for count in good.values()):
                break
            before = self._calibration()
            for name in names if number % 2 == 0 else reversed(names):
                run = programs[name]
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                seconds = (time.perf_counter() - start) / repeats
                after = self._calibration()
                self.times[name][-1].append(seconds)
                if not self._calibration.disturbed(max(before, after)):
                    good[name] += 1
                    self._good[name].append(seconds)
                before = after

    def results(self) -> dict[str, dict[str, Any]]:
        """What :func:`measure` returns."""
        found = {}
        for name, good in self._good.items():
            every = list(itertools.chain.from_iterable(self.times[name]))
            # With fewer than three turns asked for, one must do.
            trusted = len(good) >= min(self._asked[name], max(3, self._asked[name] // 3))
            times = good if trusted else every
            lower, median, upper = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
            found[name] = {
                "seconds": median,
                "quartiles": [lower, upper],
                "rounds": len(times),
                "disturbed": len(every) - len(good),
                "trusted": trusted,
                "peak": self._calibration.peak,
                "times": self.times[name],
            }
        return found


def measure(
    programs: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 2,
    repeats: int = 1,
    calibration: Calibration | None = None,
) -> dict[str, dict[str, Any]]:
    """Time programs in turns, in one visit.

    Args:
        programs: name -> what to run once.
        rounds: turns of each program that must count; at most three times as many are taken.
        warmup: uncounted turns first.
        repeats: runs in one turn, for programs that are too short for the clock.
        calibration: one from earlier measurements, which knows the machine's best; a new one if None.

    Returns:
        name -> {"seconds": median of one run, "quartiles": [lower, upper], "rounds": turns counted,
        "disturbed": turns not, "trusted": whether only undisturbed turns are counted, "peak": the calibration's,
        "times": of all turns, by visits}. If too many turns were disturbed, all are counted, and the result is not
        "trusted".
    """
    for _ in range(warmup):
        for run in programs.values():
            run()
    turns = Turns(programs, Calibration() if calibration is None else calibration)
    turns.visit(programs, rounds, repeats=repeats, most=3 * rounds)
    return turns.results()
